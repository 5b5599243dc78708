"""Serves the HTTP interface of a daemon, in a thread of its own."""

from __future__ import annotations

import logging
import socket
import ssl
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from eemtcleanupd.config import Config
from eemtcleanupd.errors import ConfigError

if TYPE_CHECKING:
    import uvicorn

    from eemtcleanupd.daemon.lifecycle import Daemon

log = logging.getLogger(__name__)
_UNIX = "unix:"
_STOP_SECONDS = 3


class HttpInterface:
    """Where a daemon listens; a reload opens a new address before the old one is closed."""

    def __init__(self) -> None:
        self._serving: _Serving | None = None

    def prepare(self, daemon: Daemon, config: Config) -> Callable[[], None]:
        """Open what the configuration asks for; returns what puts it in force.

        Raises:
            ConfigError: it cannot be opened, or nobody could prove who they are.
        """
        api = config.api
        if not api.enabled:
            return lambda: self._replace(None)
        try:
            from eemtcleanupd.web.access import insist_on_tokens  # noqa: PLC0415  (late: only where it serves)
            from eemtcleanupd.web.app import build  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                f"api.enabled needs {error.name}: install eemtcleanupd[web] (pip install 'eemtcleanupd[web]')"
            ) from error
        if not api.listen.startswith(_UNIX):
            insist_on_tokens(config)
        tls = _tls(api.tls_cert_file, api.tls_key_file)
        mode, before = int(api.socket_mode, 8), self._serving
        if before is None or before.where != api.listen:
            opened = _open(api.listen, mode)
        elif before.is_tls == (tls is not None):
            return lambda: before.renew(mode, api.tls_cert_file, api.tls_key_file)
        else:
            opened = (
                before.socket.dup()
            )  # the address is ours already, and nobody who comes meanwhile is lost
        app = build(daemon, open_to_all=api.listen.startswith(_UNIX))
        serving = _Serving(app, opened, api.listen, tls)
        return lambda: self._replace(serving)

    def _replace(self, serving: _Serving | None) -> None:
        before, self._serving = self._serving, serving
        if serving is not None:
            serving.start()
            log.info("The HTTP interface listens on %s", serving.where)
        if before is not None:
            before.stop()
            if before.where.startswith(_UNIX) and (serving is None or serving.where != before.where):
                Path(before.where.removeprefix(_UNIX)).unlink(missing_ok=True)

    def close(self) -> None:
        """Stop listening."""
        self._replace(None)


def _tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"api.tls_cert_file and api.tls_key_file cannot be used: {error}") from error
    return context


def _open(listen: str, mode: int) -> socket.socket:
    """Open the address; uvicorn would end the process where it cannot."""
    try:
        if listen.startswith(_UNIX):
            return _open_unix(Path(listen.removeprefix(_UNIX)), mode)
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


class _Serving:
    def __init__(self, app: object, opened: socket.socket, where: str, tls: ssl.SSLContext | None) -> None:
        import uvicorn  # noqa: PLC0415

        from eemtcleanupd.web.connection import Connection  # noqa: PLC0415

        self.where = where
        self.socket = opened
        self._tls = tls
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            log_config=None,
            log_level="error",  # whoever sends rubbish must not fill the log
            access_log=False,
            http=Connection,
            ws="none",
            proxy_headers=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=_STOP_SECONDS,
            ssl_context_factory=None if tls is None else (lambda _config, _default: tls),
        )
        self._server: uvicorn.Server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    @property
    def is_tls(self) -> bool:
        """Whether it speaks TLS."""
        return self._tls is not None

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self.socket])
        except Exception:
            log.exception("The HTTP interface broke")

    def renew(self, mode: int, certificate: Path | None, key: Path | None) -> None:
        """Take another mode, or a certificate that was renewed, for whoever comes from now on."""
        if self.where.startswith(_UNIX):
            Path(self.where.removeprefix(_UNIX)).chmod(mode)
        if self._tls is not None and certificate is not None:
            self._tls.load_cert_chain(certificate, key)

    def stop(self) -> None:
        """Answer what is under way, for a short while, and stop."""
        self._server.should_exit = True
        self._thread.join(2 * _STOP_SECONDS)
        self.socket.close()
