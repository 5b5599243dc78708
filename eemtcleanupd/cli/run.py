"""``eemtcleanupd run``: the daemon."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

import click

from eemtcleanupd.cli.common import caller, config_option, working_folder
from eemtcleanupd.errors import CleanupError, ConfigError, LockHeldError
from eemtcleanupd.model import Trigger

_READY = b"ready"


@click.command()
@config_option
@click.option("--detach", is_flag=True, help="Go into the background once it has started.")
@click.option(
    "--pidfile",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the process id there; the file is locked, so one that a crash left does no harm.",
)
@click.option("--debug", is_flag=True, help="Log every SQL statement and file operation, with times.")
def run(config_file: Path | None, detach: bool, pidfile: Path | None, debug: bool) -> int:
    """Run the daemon: clean on schedule until SIGTERM.

    SIGHUP reads the configuration again, SIGUSR1 starts a run, SIGUSR2 logs what every thread is doing.
    A first SIGTERM or SIGINT ends the daemon in order, a second one at once.
    """
    cwd = working_folder()
    if not detach:
        with _pidfile(pidfile and cwd / pidfile):
            _run_daemon(config_file, cwd, debug=debug)
        return 0
    return _detached(config_file, cwd, pidfile and cwd / pidfile, debug=debug)


def _run_daemon(
    config_file: Path | None, cwd: Path, *, debug: bool, on_ready: Callable[[], None] = lambda: None
) -> None:
    from eemtcleanupd.clock import system_clock
    from eemtcleanupd.config import Loaded, find_file
    from eemtcleanupd.daemon.config_reload import ConfigManager
    from eemtcleanupd.daemon.daemon import Daemon
    from eemtcleanupd.daemon.systemd import SystemdNotifier
    from eemtcleanupd.logs.events import write_event
    from eemtcleanupd.logs.setup import log_to_stderr
    from eemtcleanupd.plugins import load
    from eemtcleanupd.web.supervisor import HttpInterface

    def read() -> Loaded:
        return load(find_file(config_file, os.environ, cwd), environ=os.environ, options={}, cwd=cwd)

    configuration = ConfigManager(read, system_clock)
    handler = log_to_stderr(os.environ)
    if debug:
        logging.getLogger("eemtcleanupd").setLevel(logging.DEBUG)
    try:
        service = SystemdNotifier(os.environ)
        daemon = Daemon(configuration, emit=write_event, systemd=service, interface=HttpInterface())
        gc.collect()
        gc.freeze()
        gc.enable()
        with _signals(daemon.inbox.put):
            daemon.run_forever(on_ready)
        service.close()
    finally:
        logging.getLogger("eemtcleanupd").removeHandler(handler)


@contextmanager
def _signals(put: Callable[..., None]) -> Iterator[None]:
    """Turn signals into messages and nothing else; the handlers from before come back at the end."""
    from eemtcleanupd.daemon.messages import DumpThreads, ReloadRequested, RunRequested, StopRequested, Wakeup

    def end(number: int, _frame: FrameType | None) -> None:
        put(StopRequested(signal.Signals(number).name))
        for each in (signal.SIGINT, signal.SIGTERM):  # a second one ends the process at once
            signal.signal(each, signal.SIG_DFL)

    user = caller()
    handlers = {
        signal.SIGTERM: end,
        signal.SIGINT: end,
        signal.SIGHUP: lambda *_: put(ReloadRequested("SIGHUP")),
        signal.SIGUSR1: lambda *_: put(RunRequested(Trigger.SIGNAL, user)),
        signal.SIGUSR2: lambda *_: put(DumpThreads()),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with _signal_wakeup(lambda: put(Wakeup())):
            yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _signal_wakeup(nudge: Callable[[], None]) -> Iterator[None]:
    """Call something at once when a signal arrives, from a thread that only waits for that.

    Handlers run in the main thread between two of its bytecodes.  A signal that arrives in the moment before
    it begins to wait for a message does not interrupt the wait, and would only be seen when that is over.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writing, False)

    def watch() -> None:
        while os.read(reading, 64):
            nudge()

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    old = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(old)
        os.close(writing)
        thread.join()
        os.close(reading)


@contextmanager
def _pidfile(path: Path | None) -> Iterator[None]:
    """Hold a locked file with our process id in it.

    Raises:
        LockHeldError: another process holds it.
        ConfigError: it cannot be written.
    """
    if path is None:
        yield
        return
    try:
        file: IO[str] = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+")
    except OSError as error:
        raise ConfigError(f"the pidfile {path} cannot be opened: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LockHeldError(f"the pidfile {path} is held by process {file.read(20).strip()}") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _detached(config_file: Path | None, cwd: Path, pidfile: Path | None, *, debug: bool) -> int:
    """Start the daemon in the background and stay until it is ready, or has said why it cannot be."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        if answer == _READY:
            return 0
        code, _, message = answer.decode(errors="replace").partition(" ")
        click.echo(f"eemtcleanupd: error: {message or 'the daemon ended before it was ready'}", err=True)
        return int(code or 1)
    from daemon import DaemonContext

    os.close(reading)
    context = DaemonContext(
        pidfile=_pidfile(pidfile),
        umask=0o027,
        working_directory="/",
        files_preserve=[writing],
        stderr=sys.stderr if debug else None,
    )

    def ready() -> None:
        os.write(writing, _READY)
        os.close(writing)

    try:
        with context:
            _run_daemon(config_file, cwd, debug=debug, on_ready=ready)
    except CleanupError as error:
        os.write(writing, f"{error.exit_code} {error}".encode())
        os._exit(error.exit_code)
    os._exit(0)
