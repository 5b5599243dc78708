"""Answers of HTTP receivers that break off, cannot be decoded, or have a strange header."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from pydantic import SecretStr

from eemtcleanupd.hookspecs import RetryLater
from eemtcleanupd.notifiers.http import RefusedError, post

Answer = Callable[[bytes], SecretStr]
UNREADABLE = (
    b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",  # not gzip
    b"Content-Length: 500\r\n\r\nhello",  # cut off
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello",
)


@pytest.fixture
def answer() -> Iterator[Answer]:
    """Let a server give this answer, byte for byte, to one request; return its URL."""
    with ExitStack() as stack:

        def start(response: bytes) -> SecretStr:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def serve() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(response)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            stack.callback(thread.join)
            return SecretStr(f"http://127.0.0.1:{server.getsockname()[1]}/secret")

        yield start


@pytest.mark.parametrize("rest", UNREADABLE)
def test_the_status_counts_when_the_text_is_not_readable(answer: Answer, rest: bytes) -> None:
    url = answer(b"HTTP/1.1 200 OK\r\n" + rest)
    assert post(url, b"{}", timeout_seconds=5) == "200 OK"
    with pytest.raises(RetryLater):
        post(answer(b"HTTP/1.1 503 Busy\r\n" + rest), b"{}", timeout_seconds=5)
    with pytest.raises(RefusedError):
        post(answer(b"HTTP/1.1 404 No\r\n" + rest), b"{}", timeout_seconds=5)


@pytest.mark.parametrize("rest", UNREADABLE)
def test_a_text_that_decides_but_is_not_readable_is_asked_for_again(answer: Answer, rest: bytes) -> None:
    with pytest.raises(RetryLater):
        post(answer(b"HTTP/1.1 200 OK\r\n" + rest), b"{}", timeout_seconds=5, success_text="ok")


@pytest.mark.parametrize("value", [b"\xb2", b"soon", b"Fri, 31 Dec 9999 23:59:59 -0000", b"9" * 400])
def test_a_strange_retry_after_is_no_error(answer: Answer, value: bytes) -> None:
    response = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: " + value + b"\r\n\r\n"
    with pytest.raises(RetryLater):
        post(answer(response), b"{}", timeout_seconds=5)
