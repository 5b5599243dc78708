"""``eemtcleanupd run``: run the daemon in the foreground or in the background."""

from __future__ import annotations

import gc
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from eemtcleanupd.cli.common import (
    caller,
    config_file,
    config_option,
    config_reader,
    echo_line,
    examples,
    give_up_root,
    json_option,
    print_json,
    working_folder,
)
from eemtcleanupd.errors import CleanupError, ConfigError, LockHeldError
from eemtcleanupd.model import Trigger

if TYPE_CHECKING:
    from eemtcleanupd.config import Loaded
    from eemtcleanupd.daemon.messages import Message

_READY = b"ready "


@click.command(epilog=examples("run", "run --detach --pidfile /run/eemtcleanupd/eemtcleanupd.pid"))
@config_option
@click.option("--detach", is_flag=True, help="Move to the background once the daemon has started.")
@click.option(
    "--pidfile",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the process id to this file and lock it; a file left by a crash is reused.",
)
@click.option("--debug", is_flag=True, help="Log every SQL statement and file operation with its duration.")
@json_option
def run(detach: bool, pidfile: Path | None, debug: bool, as_json: bool) -> int:
    """Run the daemon: clean on schedule until SIGTERM.

    SIGHUP reloads the configuration, SIGUSR1 starts a run, and SIGUSR2 logs the stack of every thread.
    With --json, the command prints the process id once the daemon has started.
    The first SIGTERM or SIGINT stops the daemon gracefully, a second one at once.
    """
    read, file = config_reader(), pidfile and working_folder() / pidfile
    if not detach:
        with _no_exit(), _signals() as inbox, _pidfile(file):
            _run_daemon(
                read,
                inbox,
                debug=debug,
                on_ready=lambda: _started(os.getpid(), as_json=as_json, detached=False),
            )
        return 0
    _started(_run_detached(read, file, debug=debug), as_json=as_json, detached=True)
    return 0


def _started(pid: int, *, as_json: bool, detached: bool) -> None:
    if as_json:
        print_json({"running": True, "pid": pid, "detached": detached})
    elif detached:
        from eemtcleanupd.remedies import program_with

        status, stop = (program_with(config_file(), command) for command in ("status", "stop"))
        echo_line(f"The daemon runs in the background as process {pid}.")
        echo_line(f"`{status}` shows it, and `{stop}` stops it.")


def _run_daemon(
    read: Callable[[], Loaded],
    inbox: queue.SimpleQueue[Message],
    *,
    debug: bool,
    on_ready: Callable[[], None],
) -> None:
    from eemtcleanupd.clock import system_clock
    from eemtcleanupd.daemon.config_reload import ConfigManager
    from eemtcleanupd.daemon.daemon import Daemon
    from eemtcleanupd.daemon.systemd import SystemdNotifier
    from eemtcleanupd.logs import log_to_stderr, write_event
    from eemtcleanupd.web.supervisor import HttpInterface

    configuration = ConfigManager(read, system_clock)
    give_up_root(configuration.loaded.config)
    handler = log_to_stderr(os.environ)
    if debug:
        logging.getLogger("eemtcleanupd").setLevel(logging.DEBUG)
    try:
        service = SystemdNotifier(os.environ)
        daemon = Daemon(
            configuration, emit=write_event, systemd=service, interface=HttpInterface(), inbox=inbox
        )
        gc.collect()
        gc.freeze()
        gc.enable()
        with _signal_wakeup(inbox):
            daemon.run_forever(on_ready)
        service.close()
    finally:
        logging.getLogger("eemtcleanupd").removeHandler(handler)


@contextmanager
def _no_exit() -> Iterator[None]:
    """Turn a plugin's ``sys.exit(0)`` and its like into an error.

    Service managers take exit code 0 for a requested stop, and do not restart the daemon.
    """
    try:
        yield
    except (SystemExit, click.exceptions.Exit) as error:
        raise RuntimeError("Code in the daemon requested the exit of the process.") from error


@contextmanager
def _signals() -> Iterator[queue.SimpleQueue[Message]]:
    """Turn signals into messages and nothing else; restore the previous handlers at the end.

    The daemon handles messages once it has started.  It publishes its process id only inside this context, so
    no command can send a signal earlier.
    """
    from eemtcleanupd.daemon.messages import Notice, ReloadRequested, RunRequested, StopRequested

    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    put = inbox.put

    def request_stop(number: int, _frame: FrameType | None) -> None:
        put(StopRequested(signal.Signals(number).name))
        for stop_signal in (signal.SIGINT, signal.SIGTERM):  # a second one ends the process at once
            signal.signal(stop_signal, signal.SIG_DFL)

    handlers = {
        signal.SIGTERM: request_stop,
        signal.SIGINT: request_stop,
        signal.SIGHUP: lambda *_: put(ReloadRequested("SIGHUP")),
        signal.SIGUSR1: lambda *_: put(RunRequested(Trigger.SIGNAL, caller())),
        signal.SIGUSR2: lambda *_: put(Notice.DUMP_THREADS),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield inbox
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _signal_wakeup(inbox: queue.SimpleQueue[Message]) -> Iterator[None]:
    """Put a message into the inbox, from a thread, as soon as a signal arrives.

    Python runs signal handlers in the main thread between two bytecodes.  A signal that arrives just before
    the main thread waits for a message does not interrupt the wait, so its handler would run late.
    """
    from eemtcleanupd.daemon.messages import Notice

    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writing, False)

    def watch() -> None:
        while os.read(reading, 64):
            inbox.put(Notice.WAKEUP)

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
    """Hold a locked file that contains the process id."""
    if path is None:
        yield
        return
    from eemtcleanupd.files import locked, open_folder

    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(locked(path))
            folder = stack.enter_context(open_folder(path.parent))
            os.ftruncate(descriptor, os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0))
        except BlockingIOError as error:
            raise LockHeldError(f"Cannot use pidfile {path}: {error.strerror}.") from error
        except OSError as error:
            raise ConfigError(f"Cannot use pidfile {path}: {error.strerror}.") from error
        try:
            yield
        finally:
            # PermissionError: root made it, and this process has become another user.
            with suppress(FileNotFoundError, PermissionError):
                os.unlink(path.name, dir_fd=folder)


def _run_detached(read: Callable[[], Loaded], pidfile: Path | None, *, debug: bool) -> int:
    """Start the daemon in the background; return its process id once it is ready.

    Raises:
        CleanupError: it did not start; the error has its exit code.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        if answer.startswith(_READY):
            return int(answer.removeprefix(_READY))
        code, _, message = answer.decode(errors="replace").partition(" ")
        error = CleanupError(message or "The daemon exited during start-up. See its log.")
        error.exit_code = int(code or 1)
        raise error
    from daemon import DaemonContext

    os.close(reading)
    context = DaemonContext(
        umask=0o027,
        working_directory="/",
        files_preserve=[writing],
        gid=os.getegid(),  # its default is the real group, which hides a process of root from its new user
        stderr=sys.stderr if debug else None,
    )

    def ready() -> None:
        os.write(writing, b"%b%d" % (_READY, os.getpid()))
        os.close(writing)

    try:
        with _no_exit(), context, _signals() as inbox, _pidfile(pidfile):
            _run_daemon(read, inbox, debug=debug, on_ready=ready)
    except CleanupError as error:
        os.write(writing, f"{error.exit_code} {error}".encode())
        os._exit(error.exit_code)
    os._exit(0)
