"""Sessions of browsers and the token file."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi import HTTPException, Request

from eemtcleanupd.web.auth import Authenticator
from eemtcleanupd.web.backend import LocalBackend
from eemtcleanupd.web.tokens import TokenFile
from tests.cleanup.conftest import JobStore


def request(session: str = "") -> Request:
    return Request(
        {
            "type": "http",
            "method": "GET",
            "path": "/",
            "scheme": "http",
            "server": ("localhost", 80),
            "client": ("203.0.113.1", 1),
            "query_string": b"",
            "headers": [(b"cookie", f"eemtcleanupd={session}".encode())],
        }
    )


@pytest.fixture
def tokens(store: JobStore) -> TokenFile:
    (store.path / "cleanup_config.yaml").write_text("api: {tokens_file: tokens.json}\n")
    return TokenFile(store.path / "tokens.json")


@pytest.fixture
def authenticator(store: JobStore, tokens: TokenFile) -> Authenticator:
    return Authenticator(LocalBackend(store.path / "cleanup_config.yaml", {}))


def test_logins_with_one_token_end_no_session_of_another(
    authenticator: Authenticator, tokens: TokenFile
) -> None:
    person, other = (tokens.add(name, "read", datetime.now(UTC)) for name in ("person", "other"))
    sessions = [authenticator.log_in(person, request()) for _ in range(3)]
    last = [authenticator.log_in(other, request()) for _ in range(1100)][-1]
    for session in (*sessions, last):
        assert authenticator.may_read(request(session))


@pytest.mark.parametrize("text", ["nonsense", "[" * 100_000], ids=["text", "deep"])
def test_requests_fill_no_log_while_the_token_file_is_unusable(
    authenticator: Authenticator, tokens: TokenFile, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    Path(tokens.path).write_text(text)
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            with pytest.raises(HTTPException):
                authenticator.check(request(), "read", None)
    assert len(caplog.records) == 1
