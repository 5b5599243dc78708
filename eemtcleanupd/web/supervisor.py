"""Has the HTTP interface of a daemon answered: opens its address, and keeps a process that answers there.

It is a process of its own, so that whoever asks much takes no time from a run and cannot bring down the
daemon that deletes.  What it wants done it asks the daemon for.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

import eemtcleanupd
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.config import Loaded
from eemtcleanupd.config.schema import ApiConfig
from eemtcleanupd.daemon.messages import RunRequested
from eemtcleanupd.errors import CleanupError, ConfigError, LockHeldError
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Trigger
from eemtcleanupd.plugins import to_dict
from eemtcleanupd.web.api_run import IN_MEMORY_BYTES, ApiRun, Outcome
from eemtcleanupd.web.ipc import (
    ApiRunFinished,
    ApiRunStarted,
    DaemonChannel,
    DaemonMessage,
    Reply,
    Settings,
    State,
    StopWorker,
)
from eemtcleanupd.web.schemas import CleanupBody, storable
from eemtcleanupd.web.tokens import require_tokens

if TYPE_CHECKING:
    from eemtcleanupd.daemon.daemon import Daemon

log = logging.getLogger(__name__)
UNIX = "unix:"
STOP_SECONDS = 3
_NEEDED = ("fastapi", "python_multipart", "uvicorn", "jinja2")
_LONGEST_PAUSE_SECONDS = 60.0
_PATIENCE_SECONDS = 5.0
# All but two of them are refused as soon as the daemon's loop gets to them.
_MOST_RUNS_ASKED = 32
# It imports from where the daemon does, so that it has the same program and finds the same plugins.
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from eemtcleanupd.web.worker import main; main()"
)


class HttpInterface:
    """Where a daemon listens; a reload opens a new address before the old one is closed."""

    def __init__(self) -> None:
        self._answering: _WorkerProcess | None = None

    def prepare(self, daemon: Daemon, loaded: Loaded) -> Callable[[], None]:
        """Open what the configuration asks for; returns what puts it in force.

        Raises:
            ConfigError: it cannot be opened, or nobody could prove who they are.
        """
        api = loaded.config.api
        if not api.enabled:
            return lambda: self._replace(None)
        for name in _NEEDED:
            if importlib.util.find_spec(name) is None:
                raise ConfigError(
                    f"api.enabled needs {name}: install eemtcleanupd[web] (pip install 'eemtcleanupd[web]')"
                )
        if not api.listen.startswith(UNIX):
            require_tokens(loaded.config)
        tls_context(api)
        before = self._answering
        if before is None or before.api.listen != api.listen or _is_removed(api.listen):
            opened = open_address(api.listen, _mode(api))
        elif (before.api.tls_cert_file is None) == (api.tls_cert_file is None):
            return lambda: before.reload(loaded)
        else:
            # The address is ours already, and nobody who comes meanwhile is lost.
            opened = before.socket.dup()
        answering = _WorkerProcess(daemon, opened, loaded)
        return lambda: self._replace(answering)

    def _replace(self, answering: _WorkerProcess | None) -> None:
        before, self._answering = self._answering, answering
        if answering is not None:
            answering.start()
            log.info("The HTTP interface listens on %s", answering.api.listen)
        if before is not None:
            before.stop()
            where = before.api.listen
            if where.startswith(UNIX) and (answering is None or answering.api.listen != where):
                Path(where.removeprefix(UNIX)).unlink(missing_ok=True)

    def close(self) -> None:
        """Stop listening."""
        self._replace(None)


def tls_context(api: ApiConfig) -> ssl.SSLContext | None:
    """Return what TLS needs, None without it.

    Raises:
        ConfigError: the files cannot be used.
    """
    if api.tls_cert_file is None or api.tls_key_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(api.tls_cert_file, api.tls_key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"api.tls_cert_file and api.tls_key_file cannot be used: {error}") from error
    return context


def open_address(listen: str, mode: int) -> socket.socket:
    """Open the address to listen on, ``host:port`` or ``unix:/path`` with a mode.

    Raises:
        ConfigError: it cannot be opened.
    """
    try:
        if listen.startswith(UNIX):
            return _open_unix(Path(listen.removeprefix(UNIX)), mode)
        host, _, port = listen.rpartition(":")
        bare = host.strip("[]")
        family = socket.AF_INET6 if ":" in bare else socket.AF_INET
        # With the protocol named, asyncio sends small answers at once (TCP_NODELAY), not after 40 ms.
        opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((bare, int(port)))
            opened.listen(128)
        except OSError:
            opened.close()
            raise
    except OSError as error:
        raise ConfigError(f"api.listen: {listen} cannot be opened: {error.strerror or error}") from error
    return opened


def _open_unix(path: Path, mode: int) -> socket.socket:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(0, "there is something else in its place")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink()  # a crash left it
            else:
                raise OSError(0, "another process listens there")
    opened = socket.socket(socket.AF_UNIX)
    try:
        opened.bind(str(path))
        path.chmod(mode)  # before it listens, so that nobody gets in who may not
        opened.listen(128)
    except OSError:
        opened.close()
        raise
    return opened


def _is_removed(listen: str) -> bool:
    return listen.startswith(UNIX) and not Path(listen.removeprefix(UNIX)).exists()


def _mode(api: ApiConfig) -> int:
    return int(api.socket_mode, 8)


class _WorkerProcess:
    """A process that answers at an address; one that ends unasked is started again."""

    def __init__(self, daemon: Daemon, opened: socket.socket, loaded: Loaded) -> None:
        self._daemon = daemon
        self.socket = opened
        self._loaded = loaded
        self._stopping, self._settled = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._places = threading.Semaphore(_MOST_RUNS_ASKED)
        self._running: tuple[subprocess.Popen[bytes], DaemonChannel] | None = None
        self._thread = threading.Thread(target=self._keep, name="http", daemon=True)

    @property
    def api(self) -> ApiConfig:
        """What is in force of the configuration."""
        return self._loaded.config.api

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def reload(self, loaded: Loaded) -> None:
        """Put another configuration in force; a certificate that was renewed comes with it."""
        if self.api.listen.startswith(UNIX):
            Path(self.api.listen.removeprefix(UNIX)).chmod(_mode(loaded.config.api))
        with self._lock:
            self._loaded = loaded
            self._settled.clear()
            if self._running is None:
                return
            _pass_on(self._running[1], _settings(loaded))
        self._settled.wait(_PATIENCE_SECONDS)  # who asked for the reload may count on it

    def stop(self) -> None:
        """Answer what is under way, for a short while, and stop."""
        self._stopping.set()
        with self._lock:
            running = self._running
        if running is not None:
            process, line = running
            _pass_on(line, StopWorker())
            try:
                process.wait(2 * STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            line.shutdown()  # another that it has started may hold its end
        self._thread.join()
        self.socket.close()

    # -- in a thread of its own ------------------------------------------------------------------------

    def _keep(self) -> None:
        pause = 1.0
        while not self._stopping.is_set():
            began = monotonic_seconds()
            try:
                self._answer()
            except OSError as error:
                log.error("The process of the HTTP interface cannot be started: %s", error)  # noqa: TRY400
            if self._stopping.is_set():
                return
            lived = monotonic_seconds() - began
            pause = 1.0 if lived > _LONGEST_PAUSE_SECONDS else min(2 * pause, _LONGEST_PAUSE_SECONDS)
            log.error("The HTTP interface is started again in %g seconds", pause)
            self._stopping.wait(pause)

    def _answer(self) -> None:
        """Start the process, and answer it until it ends."""
        ours, theirs = Pipe()
        line = DaemonChannel(ours)
        try:
            with self._lock:  # so that a stop comes before or after
                with theirs:
                    if self._stopping.is_set():
                        return
                    process = self._start(theirs.fileno())
                self._running = (process, line)
                _pass_on(line, _settings(self._loaded))
            self._listen(process, line)
        finally:
            with self._lock:
                self._running = None
            self._settled.set()
            line.close()
        code = process.wait()
        if not self._stopping.is_set():
            log.error("The process of the HTTP interface ended with code %d", code)

    def _start(self, line: int) -> subprocess.Popen[bytes]:
        inherited = [line, self.socket.fileno()]
        paths = json.dumps([*map(str, sys.path)])
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _CODE, paths, *map(str, inherited)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=inherited,
            process_group=0,  # so that a terminal's signals are not its own
        )

    def _listen(self, process: subprocess.Popen[bytes], line: DaemonChannel) -> None:
        try:
            while True:
                self._act(line, line.receive())
        except (EOFError, OSError):
            pass  # it is gone, or about to
        except Exception:  # whatever it says, another can be started
            log.exception("The process of the HTTP interface does not speak as it should")
        process.kill()

    def _act(self, line: DaemonChannel, heard: dict[str, Any]) -> None:
        """Do what the process asks.

        Raises:
            ValueError: it asks for what there is not.
        """
        match heard:
            case {"log": {"logger": str(name), "level": int(level), "text": str(text), "trace": str(trace)}}:
                _relay_log(name, level, text, trace)
            case {"settled": True}:
                self._settled.set()
            case {"ask": "state", "number": int(number)}:
                line.send(Reply(number, State(self._daemon.status(), self._daemon.seconds_since_heartbeat())))
            case {"ask": "metrics", "number": int(number)}:
                plugin = self._daemon.plugins.plugin("prometheus")
                line.send(Reply(number, b"" if plugin is None else plugin.exposition()))
            case {"ask": "run", "number": int(number), "user": user, "body": body}:
                self._want(line, number, storable(user), CleanupBody.model_validate(body))
            case _:
                raise ValueError("there is no such question")

    def _want(self, line: DaemonChannel, number: int, user: str, body: CleanupBody) -> None:
        if not self._places.acquire(blocking=False):
            line.send(ApiRunFinished(number, LockHeldError("too many runs are asked for; try again later")))
            return

        def over(outcome: Outcome) -> None:
            self._places.release()
            _pass_outcome(line, number, outcome)

        asked = ApiRun(
            user,
            (body.success_retention_hours, body.failed_retention_hours),
            body.force,
            lambda run_id: _pass_on(line, ApiRunStarted(number, run_id)),
            over,
        )
        self._daemon.inbox.put(RunRequested(Trigger.API, asked.user, asked.callbacks()))


def _relay_log(name: str, level: int, text: str, trace: str) -> None:
    """Write what the process says into the log; no line of it may look as if it were the daemon's own."""
    if not logging.NOTSET <= level <= logging.CRITICAL:
        raise ValueError("there is no such level")
    ours = logging.getLogger(eemtcleanupd.__name__)
    if ours.isEnabledFor(level):
        words, tail = (
            "\n".join(f"    {printable(line)}" for line in part.splitlines()) for part in (text, trace)
        )
        record = ours.makeRecord(printable(name), level, __file__, 0, words.lstrip(" "), (), None)
        record.exc_text = tail or None
        ours.handle(record)


def _settings(loaded: Loaded) -> Settings:
    return Settings(to_dict(loaded), logging.getLogger(eemtcleanupd.__name__).getEffectiveLevel())


def _pass_on(line: DaemonChannel, told: DaemonMessage, file: int | None = None) -> None:
    with suppress(OSError):  # the process hangs or is gone; whoever hears it sees to that
        line.send(told, file)


def _pass_outcome(line: DaemonChannel, number: int, outcome: Outcome) -> None:
    if outcome is None or isinstance(outcome, CleanupError):
        _pass_on(line, ApiRunFinished(number, outcome))
        return
    with outcome as file:
        start = file.read(IN_MEMORY_BYTES + 1)
        if isinstance(start, str) and len(start) <= IN_MEMORY_BYTES:
            _pass_on(line, ApiRunFinished(number, None, start))
            return
        file.seek(0)
        _pass_on(line, ApiRunFinished(number, None, is_in_file=True), file.fileno())
