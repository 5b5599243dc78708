"""The limits on connections, against a server in the test's own process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from eemtcleanupd.web import protocol
from eemtcleanupd.web.supervisor import open_address
from eemtcleanupd.web.worker import HttpServer
from tests.web.conftest import eventually

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK"
TIMEOUT = 0.1


async def slow(scope: object, receive: Callable[[], object], send: Callable[[object], object]) -> None:
    """Answer after more time than a request has to arrive; later requests have time."""
    while (await receive()).get("more_body"):  # type: ignore[misc]
        pass
    await asyncio.sleep(3 * TIMEOUT)
    protocol.REQUEST_TIMEOUT_SECONDS = 60
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})  # type: ignore[misc]
    await send({"type": "http.response.body", "body": b"ok"})  # type: ignore[misc]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    monkeypatch.setattr(protocol, "REQUEST_TIMEOUT_SECONDS", TIMEOUT)
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 5)
    server = HttpServer(slow, open_address("127.0.0.1:0", 0))  # type: ignore[arg-type]
    server.start()
    yield server
    server.stop()


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(server.socket.getsockname(), timeout=30)


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize(
    "start", [b"", b"GET / HTTP/1.1\r\nHost: lo", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"]
)
def test_a_connection_without_a_complete_request_is_closed_after_the_timeout(
    server: HttpServer, start: bytes
) -> None:
    with connect(server) as client, suppress(ConnectionResetError, BrokenPipeError):
        client.sendall(start)
        assert client.recv(100) == b""


def test_a_slow_answer_does_not_time_out_and_the_connection_can_be_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "REQUEST_TIMEOUT_SECONDS", TIMEOUT)
    server = HttpServer(slow, open_address("127.0.0.1:0", 0))  # type: ignore[arg-type]
    with connect(server) as client:
        client.sendall(REQUEST)  # before its time begins
        server.start()
        try:
            assert read_answer(client).startswith(ANSWER)
            client.sendall(REQUEST)
            assert read_answer(client).startswith(ANSWER)
        finally:
            server.stop()


def read_answer(client: socket.socket) -> bytes:
    answer = b""
    while not answer.endswith(b"ok"):
        part = client.recv(1000)
        assert part, f"the connection was closed after {answer!r}"
        answer += part
    return answer


def test_above_the_limit_the_longest_idle_connections_are_closed(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "REQUEST_TIMEOUT_SECONDS", 30.0)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(12)]
        for client in clients[:7]:
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
        for client in clients[7:]:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)


def test_small_answers_are_sent_without_delay(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio sets TCP_NODELAY only if the socket names its protocol."""
    monkeypatch.setattr(protocol, "REQUEST_TIMEOUT_SECONDS", 60)
    with connect(server) as client:
        client.sendall(REQUEST)
        client.recv(1)
        (connection,) = server.uvicorn.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def large(scope: object, receive: object, send: Callable[[object], object]) -> None:
    """Answer with more than the buffers of the kernel hold."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})  # type: ignore[misc]
    await send({"type": "http.response.body", "body": b"x" * 50_000_000})  # type: ignore[misc]


@pytest.mark.slow
def test_a_client_that_does_not_read_is_closed_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "REQUEST_TIMEOUT_SECONDS", 0.3)
    server = HttpServer(large, open_address("127.0.0.1:0", 0))  # type: ignore[arg-type]
    try:
        with connect(server) as client:
            client.sendall(REQUEST)  # before its time begins
            server.start()
            assert client.recv(1) == b"H"

            def check_closed() -> None:
                assert not server.uvicorn.server_state.connections

            eventually(check_closed)
        monkeypatch.setattr(protocol, "REQUEST_TIMEOUT_SECONDS", 60)
        with connect(server) as client:
            client.sendall(REQUEST)
            received = 0
            while chunk := client.recv(1 << 20):
                received += len(chunk)
            assert received > 50_000_000, "a client that reads gets all"
    finally:
        server.stop()


@pytest.mark.slow
def test_clients_that_do_not_read_leave_places_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 5)
    server = HttpServer(large, open_address("127.0.0.1:0", 0))  # type: ignore[arg-type]
    server.start()
    try:
        with ExitStack() as stack:
            for _ in range(8):
                client = stack.enter_context(connect(server))
                client.sendall(REQUEST)
                assert client.recv(1) == b"H"
            for _ in range(3):
                with connect(server) as person:
                    person.sendall(REQUEST)
                    assert person.recv(1) == b"H"
    finally:
        server.stop()


def test_above_the_limit_the_client_with_most_connections_loses_one(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "REQUEST_TIMEOUT_SECONDS", 30.0)
    monkeypatch.setattr(protocol, "client_group", lambda address: address)
    with ExitStack() as stack:
        person = stack.enter_context(connect(server))
        address = server.socket.getsockname()
        others = [
            stack.enter_context(
                socket.create_connection(address, timeout=30, source_address=("127.0.0.2", 0))
            )
            for _ in range(20)
        ]
        for other in others[:16]:
            with suppress(ConnectionResetError):
                assert other.recv(1) == b""
        for client in (person, *others[16:]):
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
