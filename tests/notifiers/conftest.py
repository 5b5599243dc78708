"""Servers for notifiers: real sockets, all on this machine."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from eemtcleanupd.config import Config
from eemtcleanupd.plugins import Plugins, load
from tests.cleanup.conftest import JobStore
from tests.ports import free_port

PASSWORD = "very-secret-password"


@dataclass
class MailServer:
    """An SMTP server with STARTTLS and a login; ``answer`` is its reply to a message."""

    port: int
    ca_file: Path
    received: list[tuple[str, list[str], bytes]] = field(default_factory=list)
    answer: str = "250 OK"
    rejected: dict[str, str] = field(default_factory=dict)
    farewell: str = "221 Bye"
    encrypted: list[bool] = field(default_factory=list)

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.rejected:
            return self.rejected[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.encrypted.append(session.ssl is not None)
        if self.answer.startswith("250"):
            assert isinstance(envelope.content, bytes)
            self.received.append((str(envelope.mail_from), list(envelope.rcpt_tos), envelope.content))
        return self.answer

    async def handle_QUIT(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        return self.farewell


def _login(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object) -> AuthResult:
    good = isinstance(data, LoginPassword) and data.password == PASSWORD.encode()
    return AuthResult(success=good, handled=good)


StartMail = Callable[..., MailServer]


@pytest.fixture
def start_mail(tmp_path: Path) -> Iterator[StartMail]:
    with ExitStack() as stack:

        def start(*, port: int | None = None, login: bool = True, names: str = "localhost") -> MailServer:
            authority = trustme.CA()
            ca_file = tmp_path / "ca.pem"
            authority.cert_pem.write_to_path(ca_file)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert(names).configure_cert(context)
            server = MailServer(port or free_port(), ca_file)
            controller = Controller(
                server,
                hostname="localhost",
                port=server.port,
                tls_context=context,
                require_starttls=True,
                authenticator=_login,
                auth_required=login,
                ready_timeout=60,
            )
            controller.start()
            stack.callback(controller.stop)
            return server

        yield start


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.fixture
def rude_port() -> Iterator[int]:
    """A port that closes each connection after the first bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "store")


Configure = Callable[[str], Config]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Load a configuration from text; all other keys have their defaults."""

    def load_text(text: str) -> Config:
        file = tmp_path / "cleanup_config.yaml"
        file.write_text(text, encoding="utf-8")
        return load(file, environ={}, cwd=tmp_path).config

    return load_text


@pytest.fixture
def plugins(configure: Configure) -> Callable[[str], Plugins]:
    return lambda text: Plugins(configure(text))
