"""The process that answers HTTP for a daemon: FastAPI at the daemon's address, the daemon at a line."""

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
from eemtcleanupd.web.supervisor import STOP_SECONDS, UNIX, tls_context

log = logging.getLogger(__name__)

# Whoever asks much must not slow a run down: where there is work for both, the run gets twice as much.
_NICER_BY = 3
_LONGEST_TEXT = 1 << 16


def main() -> None:
    """Answer until the daemon says to stop, or is gone.

    The arguments are the descriptors of the line and of the socket that listens.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are the daemon's, which says what comes of them
    descriptors = [int(each) for each in sys.argv[1:]]
    for each in descriptors:
        os.set_inheritable(each, False)
    line, opened = WorkerChannel(descriptors[0]), socket.socket(fileno=descriptors[1])
    with suppress(OSError):
        os.nice(_NICER_BY)
    code = 1
    try:
        _answer(line, opened)
    except (EOFError, OSError):
        code = 0  # nobody is left to answer for
    except CleanupError as error:
        log.error("The HTTP interface cannot work with the configuration: %s", error)  # noqa: TRY400
    except Exception:
        log.exception("The HTTP interface broke")
    os._exit(code)  # the address is free at once, whatever is still under way


def _answer(line: WorkerChannel, opened: socket.socket) -> NoReturn:
    settings, _ = line.receive()
    ours = logging.getLogger("eemtcleanupd")
    ours.addHandler(_DaemonLogHandler(line))
    ours.setLevel(settings.log_level)
    loaded = from_dict(settings.loaded)
    engine, api = DaemonBackend(line, loaded), loaded.config.api
    tls = tls_context(api)
    app = create_app(engine, Authenticator(engine, open_to_all=api.listen.startswith(UNIX)))
    server = HttpServer(app, opened, tls)
    server.start()
    while True:
        told, file = line.receive()
        match told:
            case Settings():
                ours.setLevel(told.log_level)
                try:
                    engine.use(from_dict(told.loaded))
                    if tls is not None:
                        api = engine.config.api
                        tls.load_cert_chain(str(api.tls_cert_file), api.tls_key_file)
                except (CleanupError, OSError) as error:  # the daemon could, a moment ago
                    log.error("The HTTP interface works with the configuration before: %s", error)  # noqa: TRY400
                line.send({"settled": True})
            case StopWorker():
                engine.end()
                # Meanwhile this thread hears what those wait for who are still answered.
                threading.Thread(target=_end, args=(server,), name="end").start()
            case _:
                engine.receive(told, file)


def _end(server: HttpServer) -> None:
    server.stop()
    os._exit(0)


class HttpServer:
    """Uvicorn, within bounds, in a thread of its own.

    Args:
        app: what answers.
        opened: the socket that listens.
        tls: what TLS needs, None without it.
    """

    def __init__(self, app: ASGIApp, opened: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        self.socket = opened
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="error",  # whoever sends rubbish must not fill the log
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
        """Begin to answer."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self.uvicorn.run(sockets=[self.socket])
        except Exception:
            log.exception("The HTTP interface broke")
            os._exit(1)

    def stop(self) -> None:
        """Answer what is under way, for a short while, and stop."""
        self.uvicorn.should_exit = True
        self._thread.join(2 * STOP_SECONDS)


class _DaemonLogHandler(logging.Handler):
    """Gives the log to the daemon, which writes it where its own goes."""

    def __init__(self, line: WorkerChannel) -> None:
        super().__init__()
        self._line = line
        self._form = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Give a record, with its traceback where it has one."""
        told = {
            "logger": record.name,
            "level": min(record.levelno, logging.CRITICAL),
            "text": record.getMessage()[:_LONGEST_TEXT],
            "trace": self._form.formatException(record.exc_info)[:_LONGEST_TEXT] if record.exc_info else "",
        }
        with suppress(OSError):
            self._line.send({"log": told})
