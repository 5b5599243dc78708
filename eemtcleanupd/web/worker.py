"""The HTTP worker process: serves FastAPI on the daemon's socket and asks the daemon over IPC."""

from __future__ import annotations

import logging
import os
import signal
import socket
import ssl
import sys
import threading
from contextlib import suppress
from typing import NoReturn

import uvicorn
from starlette.types import ASGIApp

from eemtcleanupd.errors import CleanupError
from eemtcleanupd.plugins import from_dict
from eemtcleanupd.web.app import create_app
from eemtcleanupd.web.auth import Authenticator
from eemtcleanupd.web.backend import DaemonBackend
from eemtcleanupd.web.ipc import Settings, StopWorker, WorkerChannel
from eemtcleanupd.web.protocol import BoundedH11Protocol
from eemtcleanupd.web.refusals import Refusals
from eemtcleanupd.web.supervisor import STOP_SECONDS, UNIX, tls_context

log = logging.getLogger(__name__)

# Under load the cleanup run gets twice as much CPU time as the HTTP interface.
_NICE_INCREMENT = 3
_MAX_LOG_TEXT = 1 << 16


def main() -> None:
    """Serve until the daemon stops this process or exits.

    The arguments are the descriptors of the IPC socket and of the listening socket.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon handles them and tells this process to stop
    descriptors = [int(argument) for argument in sys.argv[1:]]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    channel, listening = WorkerChannel(descriptors[0]), socket.socket(fileno=descriptors[1])
    with suppress(OSError):
        os.nice(_NICE_INCREMENT)
    code = 1
    try:
        _serve(channel, listening)
    except (EOFError, OSError):
        code = 0  # the daemon has exited
    except CleanupError as error:
        log.error("The HTTP worker cannot use the configuration: %s", error)  # noqa: TRY400
    except Exception:
        log.exception("The HTTP worker failed")
    os._exit(code)  # frees the address at once, whatever other threads do


def _serve(channel: WorkerChannel, listening: socket.socket) -> NoReturn:
    settings, _ = channel.receive()
    if not isinstance(settings, Settings):
        raise TypeError("The daemon's first message must be the settings.")
    package_log = logging.getLogger("eemtcleanupd")
    package_log.addHandler(_DaemonLogHandler(channel))
    package_log.setLevel(settings.log_level)
    loaded = from_dict(settings.config)
    backend, api = DaemonBackend(channel, loaded), loaded.config.api
    tls = tls_context(api)
    authenticator = Authenticator(backend, open_to_all=api.listen.startswith(UNIX))
    app = create_app(backend, authenticator)
    server = HttpServer(app, listening, tls)
    server.start()
    while True:
        message, file = channel.receive()
        match message:
            case Settings():
                package_log.setLevel(message.log_level)
                try:
                    backend.apply(from_dict(message.config))
                    if tls is not None:
                        api = backend.config.api
                        tls.load_cert_chain(str(api.tls_cert_file), api.tls_key_file)
                except (CleanupError, OSError) as error:  # the daemon accepted it a moment ago
                    log.error("The HTTP interface keeps the previous configuration: %s", error)  # noqa: TRY400
                channel.send({"reloaded": True})
            case StopWorker():
                backend.is_stopping = True
                # This thread keeps receiving what the open requests wait for.
                threading.Thread(target=_stop, args=(server, authenticator.refusals), name="stop").start()
            case _:
                backend.receive(message, file)


def _stop(server: HttpServer, refusals: Refusals) -> None:
    server.stop()
    refusals.write_summary()
    os._exit(0)


class HttpServer:
    """Uvicorn with :class:`BoundedH11Protocol` on a listening socket, in its own thread."""

    def __init__(self, app: ASGIApp, listening: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        self.socket = listening
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="error",  # invalid requests must not fill the log
            access_log=False,
            http=BoundedH11Protocol,
            ws="none",
            proxy_headers=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=STOP_SECONDS,
            ssl_context_factory=None if tls is None else (lambda _config, _default: tls),
        )
        self.uvicorn: uvicorn.Server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Start to serve."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self.uvicorn.run(sockets=[self.socket])
        except Exception:
            log.exception("The HTTP server failed")
            os._exit(1)

    def stop(self) -> None:
        """Finish open requests within :data:`STOP_SECONDS` and stop."""
        self.uvicorn.should_exit = True
        self._thread.join(2 * STOP_SECONDS)


class _DaemonLogHandler(logging.Handler):
    """Sends log records to the daemon, which writes them into its own log."""

    def __init__(self, channel: WorkerChannel) -> None:
        super().__init__()
        self._channel = channel
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        traceback = self._formatter.formatException(record.exc_info) if record.exc_info else ""
        document = {
            "logger": record.name,
            "level": min(record.levelno, logging.CRITICAL),
            "text": record.getMessage()[:_MAX_LOG_TEXT],
            "trace": traceback[:_MAX_LOG_TEXT],
        }
        with suppress(OSError):
            self._channel.send({"log": document})
