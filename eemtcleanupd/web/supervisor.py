"""Start and supervise the HTTP worker process, and answer its requests.

This module also opens the address that the worker listens on.  The worker is a separate process, so that
HTTP clients cannot slow down a cleanup run or crash the daemon.  It asks the daemon for runs, status and
metrics.  It holds, releases and restores single jobs itself.
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
from typing import TYPE_CHECKING, Any, Final

import eemtcleanupd
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.config import Config, Loaded
from eemtcleanupd.config.schema import ApiConfig
from eemtcleanupd.daemon.messages import RunRequested, RunStopRequested
from eemtcleanupd.errors import CleanupError, ConfigError, LockHeldError
from eemtcleanupd.files import set_socket_mode
from eemtcleanupd.formatting import printable
from eemtcleanupd.installation import add_extra
from eemtcleanupd.plugins import to_dict
from eemtcleanupd.web.api_run import IN_MEMORY_BYTES, ApiRun, Outcome
from eemtcleanupd.web.ipc import (
    ApiRunFinished,
    ApiRunStarted,
    DaemonChannel,
    DaemonMessage,
    MetricsReply,
    Settings,
    StateReply,
    StopWorker,
)
from eemtcleanupd.web.schemas import CleanupBody, PurgeBody, storable
from eemtcleanupd.web.tokens import require_tokens

if TYPE_CHECKING:
    from eemtcleanupd.daemon.daemon import Daemon

log = logging.getLogger(__name__)
UNIX: Final = "unix:"
STOP_SECONDS: Final = 3
_REQUIRED_MODULES = ("fastapi", "python_multipart", "uvicorn", "jinja2")
_MAX_PAUSE_SECONDS = 60.0
_RELOAD_TIMEOUT_SECONDS = 5.0
# The daemon runs one requested run, queues one, and refuses the others when its loop reads them.
_MAX_REQUESTED_RUNS = 32
WORKER_CODE: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from eemtcleanupd.web.worker import main; main()"
)
"""What the worker process executes: with the daemon's import path, so that it finds the same plugins."""


class HttpInterface:
    """The HTTP interface of a daemon.  A reload opens a new address before it closes the old one."""

    def __init__(self, worker_code: str = WORKER_CODE) -> None:
        self._worker_code = worker_code
        self._worker: _WorkerProcess | None = None

    def prepare(self, daemon: Daemon, loaded: Loaded) -> Callable[[], None]:
        """Open the configured address; return a function that applies the configuration.

        Raises:
            ConfigError: the address cannot be opened, or no client could be authenticated.
        """
        api = loaded.config.api
        if not api.enabled:
            return lambda: self._replace(None)
        require_usable(loaded.config)
        previous = self._worker
        path = _unix_path(api.listen)
        is_removed = path is not None and not path.exists()
        if previous is None or previous.api.listen != api.listen or is_removed:
            listening = open_address(api.listen, int(api.socket_mode, 8))
        elif (previous.api.tls_cert_file is None) == (api.tls_cert_file is None):
            return lambda: previous.reload(loaded)
        else:
            # The same socket, so that no connection is refused during the change.
            listening = previous.socket.dup()
        worker = _WorkerProcess(daemon, listening, loaded, self._worker_code)
        return lambda: self._replace(worker)

    def _replace(self, worker: _WorkerProcess | None) -> None:
        previous, self._worker = self._worker, worker
        if worker is not None:
            worker.start()
            log.info("The HTTP interface listens on %s", worker.api.listen)
        if previous is not None:
            previous.stop()
            path = _unix_path(previous.api.listen)
            if path is not None and (worker is None or worker.api.listen != previous.api.listen):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop listening."""
        self._replace(None)


def require_usable(config: Config) -> None:
    """Check what the HTTP interface needs, except the address, which a running daemon occupies.

    Raises:
        ConfigError: a module is missing, no client could be authenticated, or the certificate is unusable.
    """
    api = config.api
    if not api.enabled:
        return
    for name in _REQUIRED_MODULES:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"api.enabled needs the module {name}, which is missing. {add_extra('web')}")
    if not api.listen.startswith(UNIX):
        require_tokens(config)
    tls_context(api)


def tls_context(api: ApiConfig) -> ssl.SSLContext | None:
    """Return the TLS context, None without TLS.

    Raises:
        ConfigError: the certificate or the key is unusable.
    """
    if api.tls_cert_file is None or api.tls_key_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(api.tls_cert_file, api.tls_key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"Cannot use api.tls_cert_file and api.tls_key_file: {error}.") from error
    return context


def open_address(listen: str, mode: int) -> socket.socket:
    """Return a listening socket at ``host:port``, or at ``unix:/path`` with a file mode.

    Raises:
        ConfigError: the address cannot be opened.
    """
    try:
        if (path := _unix_path(listen)) is not None:
            return _open_unix(path, mode)
        host, _, port = listen.rpartition(":")
        bare = host.strip("[]")
        family = socket.AF_INET6 if ":" in bare else socket.AF_INET
        # asyncio sets TCP_NODELAY only if the protocol is named; without it, small answers take 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((bare, int(port)))
            listening.listen(128)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise ConfigError(f"Cannot listen on {listen} (api.listen): {error.strerror or error}.") from error
    return listening


def _open_unix(path: Path, mode: int) -> socket.socket:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(0, "the path exists and is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink()  # left by a crash
            else:
                raise OSError(0, "another process listens there")
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(str(path))
        set_socket_mode(path, mode)  # before listen(), so that no unauthorized client can connect
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    return listening


def _unix_path(listen: str) -> Path | None:
    return Path(listen.removeprefix(UNIX)) if listen.startswith(UNIX) else None


class _WorkerProcess:
    """A worker process at an address; it is restarted if it exits without being stopped."""

    def __init__(self, daemon: Daemon, listening: socket.socket, loaded: Loaded, code: str) -> None:
        self._daemon = daemon
        self.socket = listening
        self._loaded = loaded
        self._code = code
        self._stopping, self._reloaded = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._run_slots = threading.Semaphore(_MAX_REQUESTED_RUNS)
        self._running: tuple[subprocess.Popen[bytes], DaemonChannel] | None = None
        self._thread = threading.Thread(target=self._supervise, name="http", daemon=True)

    @property
    def api(self) -> ApiConfig:
        return self._loaded.config.api

    def start(self) -> None:
        self._thread.start()

    def reload(self, loaded: Loaded) -> None:
        """Put another configuration in force, with a renewed certificate if there is one."""
        if (path := _unix_path(self.api.listen)) is not None:
            try:
                set_socket_mode(path, int(loaded.config.api.socket_mode, 8))
            except OSError as error:
                log.warning("Cannot change the mode of %s: %s", path, error.strerror)
        with self._lock:
            self._loaded = loaded
            self._reloaded.clear()
            if self._running is None:
                return
            _send(self._running[1], _settings(loaded))
        self._reloaded.wait(_RELOAD_TIMEOUT_SECONDS)  # the caller can rely on the new configuration

    def stop(self) -> None:
        """Let the process finish open requests within :data:`STOP_SECONDS`, and stop it."""
        self._stopping.set()
        with self._lock:
            running = self._running
        if running is not None:
            process, channel = running
            _send(channel, StopWorker())
            try:
                process.wait(2 * STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            channel.shutdown()  # a child of the worker might hold its end
        self._thread.join()
        self.socket.close()

    # -- in its own thread -----------------------------------------------------------------------------

    def _supervise(self) -> None:
        pause = 1.0
        while not self._stopping.is_set():
            started_at = monotonic_seconds()
            try:
                self._run_once()
            except OSError as error:
                log.error("Cannot start the HTTP worker: %s", error)  # noqa: TRY400
            if self._stopping.is_set():
                return
            lifetime = monotonic_seconds() - started_at
            pause = 1.0 if lifetime > _MAX_PAUSE_SECONDS else min(2 * pause, _MAX_PAUSE_SECONDS)
            log.error("Restarting the HTTP worker in %g seconds", pause)
            self._stopping.wait(pause)

    def _run_once(self) -> None:
        own_end, worker_end = Pipe()
        channel = DaemonChannel(own_end)
        try:
            with self._lock:  # so that stop() runs before or after
                with worker_end:
                    if self._stopping.is_set():
                        return
                    process = self._start_process(worker_end.fileno())
                self._running = (process, channel)
                _send(channel, _settings(self._loaded))
            self._answer_requests(process, channel)
        finally:
            with self._lock:
                self._running = None
            self._reloaded.set()
            channel.close()
        code = process.wait()
        if not self._stopping.is_set():
            log.error("The HTTP worker exited with code %d", code)

    def _start_process(self, channel_descriptor: int) -> subprocess.Popen[bytes]:
        inherited = [channel_descriptor, self.socket.fileno()]
        paths = json.dumps([*map(str, sys.path)])
        return subprocess.Popen(
            [sys.executable, "-P", "-c", self._code, paths, *map(str, inherited)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=inherited,
            process_group=0,  # so that signals of the terminal do not reach it
        )

    def _answer_requests(self, process: subprocess.Popen[bytes], channel: DaemonChannel) -> None:
        try:
            while True:
                self._handle(channel, channel.receive())
        except (EOFError, OSError):
            pass  # the worker has exited, or is about to
        except Exception:  # whatever it sent, a new worker can be started
            log.exception("Invalid message from the HTTP worker")
        process.kill()

    def _handle(self, channel: DaemonChannel, message: dict[str, Any]) -> None:
        """Do what a message of the worker requests, or raise ValueError if it is invalid."""
        match message:
            case {"log": {"logger": str(name), "level": int(level), "text": str(text), "trace": str(trace)}}:
                _relay_log(name, level, text, trace)
            case {"reloaded": True}:
                self._reloaded.set()
            case {"request": "state", "number": int(number)}:
                age = self._daemon.seconds_since_heartbeat()
                channel.send(StateReply(number, self._daemon.status(), age))
            case {"request": "metrics", "number": int(number)}:
                # In a thread: a database that does not answer must not delay the answers about the state.
                threading.Thread(
                    target=lambda: _send(channel, MetricsReply(number, self._daemon.metrics().decode())),
                    name="metrics",
                    daemon=True,
                ).start()
            case {"request": "run", "number": int(number), "user": user, "body": body}:
                self._request_run(channel, number, storable(user), CleanupBody.model_validate(body))
            case {"request": "purge", "number": int(number), "user": user, "body": body}:
                self._request_run(channel, number, storable(user), PurgeBody.model_validate(body))
            case {"request": "stop run", "user": user, "run_id": str() | None as run_id}:
                self._daemon.inbox.put(RunStopRequested(storable(user), run_id))
            case _:
                raise ValueError("The type of the message is unknown.")

    def _request_run(
        self, channel: DaemonChannel, number: int, user: str, body: CleanupBody | PurgeBody
    ) -> None:
        if not self._run_slots.acquire(blocking=False):
            error = LockHeldError("Too many runs are requested. Try again later.")
            channel.send(ApiRunFinished(number, error))
            return

        def on_finished(outcome: Outcome) -> None:
            self._run_slots.release()
            send_outcome(channel, number, outcome)

        run = ApiRun(user, body, lambda run_id: _send(channel, ApiRunStarted(number, run_id)), on_finished)
        self._daemon.inbox.put(RunRequested(run.trigger, user, run.callbacks()))


def _relay_log(name: str, level: int, text: str, trace: str) -> None:
    """Write a worker's log record into the daemon's log, indented so that no line looks like the daemon's."""
    if not logging.NOTSET <= level <= logging.CRITICAL:
        raise ValueError(f"The log level {level} does not exist.")
    package_log = logging.getLogger(eemtcleanupd.__name__)
    if package_log.isEnabledFor(level):
        message, traceback = (
            "\n".join(f"    {printable(line)}" for line in part.splitlines()) for part in (text, trace)
        )
        record = package_log.makeRecord(printable(name), level, __file__, 0, message.lstrip(" "), (), None)
        record.exc_text = traceback or None
        package_log.handle(record)


def _settings(loaded: Loaded) -> Settings:
    return Settings(to_dict(loaded), logging.getLogger(eemtcleanupd.__name__).getEffectiveLevel())


def _send(channel: DaemonChannel, message: DaemonMessage, file: int | None = None) -> None:
    with suppress(OSError):  # the worker hangs or has exited; _answer_requests handles that
        channel.send(message, file)


def send_outcome(channel: DaemonChannel, number: int, outcome: Outcome) -> None:
    """Send the outcome of a requested run: a short document in the message, a long one as an open file."""
    if outcome is None or isinstance(outcome, CleanupError):
        _send(channel, ApiRunFinished(number, outcome))
        return
    with outcome as file:
        start = file.read(IN_MEMORY_BYTES + 1)
        if isinstance(start, str) and len(start) <= IN_MEMORY_BYTES:
            _send(channel, ApiRunFinished(number, None, start))
            return
        file.seek(0)
        _send(channel, ApiRunFinished(number, None, is_in_file=True), file.fileno())
