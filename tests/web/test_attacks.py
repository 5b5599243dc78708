"""Malicious and malformed requests."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import requests

from eemtcleanupd.web.protocol import MAX_CONNECTIONS
from tests.web.conftest import RunningDaemon, create_store, start

pytestmark = pytest.mark.xdist_group("attacked")
_ADDRESSES = (f"203.0.113.{number}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon that trusts a proxy, so that each test can use its own client address."""
    store = create_store(tmp_path_factory.mktemp("attacked") / "store")
    daemon = start(store, "schedule: {enabled: false}\n", api="trusted_proxies: ['127.0.0.1']")
    yield daemon
    assert daemon.store.results("a").exists()
    daemon.stop()


@pytest.fixture
def address() -> str:
    return next(_ADDRESSES)


def bearer(daemon: RunningDaemon, scope: str = "clean") -> dict[str, str]:
    return {"Authorization": f"Bearer {daemon.tokens[scope]}"}


def raw(daemon: RunningDaemon, request: bytes) -> bytes:
    """Send bytes and return all that comes back until the connection is closed."""
    with socket.create_connection(("127.0.0.1", int(daemon.url.rpartition(":")[2])), timeout=30) as client:
        client.sendall(request)
        answer = b""
        try:
            while chunk := client.recv(65536):
                answer += chunk
        except ConnectionResetError:  # the server closed the connection before it had read everything
            pass
        return answer


@pytest.mark.slow
@pytest.mark.parametrize("query", ["dry_run=true", "dry_run", "success_retention_hours=9000"])
def test_run_options_in_the_query_string_are_refused(attacked: RunningDaemon, query: str) -> None:
    before = attacked.store.snapshot()
    answer = attacked.request("POST", f"/api/cleanup?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] in query or query == "dry_run"
    assert attacked.store.snapshot() == before


PATHS = [
    "%2e%2e",
    "..%2f..%2fjobs.db",
    "%00",
    "%ff%fe",
    "a%0d%0aX-Evil:%201",
    "%F0%9F%92%A9",
    "x" * 5000,
    "%",
]


@pytest.mark.parametrize("place", ["/api/cleanup/runs/", "/runs/", "/static/"])
def test_unusual_paths_are_not_found(attacked: RunningDaemon, place: str) -> None:
    for name in PATHS:
        head = f"GET {place}{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        token = f"Authorization: Bearer {attacked.tokens['read']}\r\n\r\n"
        answer = raw(attacked, (head + token).encode())
        assert answer.split(b" ")[1] in {b"404", b"422"}, (name, answer[:500])
        assert b"\nx-evil" not in answer.lower()


def test_bytes_that_are_not_http_get_400_or_no_answer(attacked: RunningDaemon) -> None:
    for request in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"POST /api/cleanup HTTP/1.1\r\nHost: localhost\r\nContent-Length: \xb2\r\n\r\n",
        b"POST /api/cleanup HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nA : b\r\n\r\n",
        b"\r\n" * 1000 + b"nonsense\r\n\r\n",
    ):
        assert raw(attacked, request)[9:12] in {b"400", b""}, request[:60]
    assert attacked.request("GET", "/healthz", token=None).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "CLEAN"])
def test_other_methods_are_not_allowed(attacked: RunningDaemon, method: str) -> None:
    assert attacked.request(method, "/api/cleanup").status_code == 405
    disguised = attacked.request("GET", "/api/cleanup/status", X_HTTP_Method_Override="POST")
    assert disguised.status_code == 200


def test_idle_connections_do_not_block_other_clients(attacked: RunningDaemon) -> None:
    port = int(attacked.url.rpartition(":")[2])
    descriptors = f"/proc/{attacked.process.pid}/fd"
    with ExitStack() as stack:
        for number in range(MAX_CONNECTIONS + 150):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            if number % 2:
                client.sendall(
                    b"POST /api/cleanup HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
                )
            else:
                client.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert attacked.request("GET", "/healthz", token=None).status_code == 200
        assert attacked.request("POST", "/api/cleanup", {"dry_run": True}).status_code == 200
        assert len(os.listdir(descriptors)) < MAX_CONNECTIONS + 50


def test_a_flood_of_refused_requests_does_not_fill_the_disk(attacked: RunningDaemon, address: str) -> None:
    with requests.Session() as flood:
        flood.headers.update({"X-Forwarded-For": address, "Host": "evil.example"})
        codes = [flood.get(f"{attacked.url}/healthz", timeout=30).status_code for _ in range(100)]
    assert codes[0] == 421
    assert codes[-1] == 429
    assert len([entry for entry in attacked.refusals() if entry["ip_address"] == address]) == 61


@pytest.mark.parametrize("path", ["/login", "/logout", "/api/cleanup", "/api/cleanup/holds"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_a_request_from_another_sites_page_is_refused(
    attacked: RunningDaemon, address: str, path: str, origin: str
) -> None:
    answer = requests.post(
        attacked.url + path,
        data={"token": attacked.tokens["clean"]},
        headers={**bearer(attacked), "Origin": origin, "X-Forwarded-For": address},
        allow_redirects=False,
        timeout=30,
    )
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers
    assert attacked.refusals()[-1]["ip_address"] == address


@pytest.mark.parametrize(
    ("scheme", "cookie"),
    [
        ("http", "eemtcleanupd=NEW; HttpOnly; Max-Age=43200; Path=/; SameSite=strict"),
        ("https", "__Host-eemtcleanupd=NEW; HttpOnly; Max-Age=43200; Path=/; SameSite=strict; Secure"),
    ],
)
def test_a_login_creates_a_new_session_with_a_strict_cookie(
    attacked: RunningDaemon, scheme: str, cookie: str
) -> None:
    name = cookie.partition("=")[0]
    headers = {"X-Forwarded-Proto": scheme, "Cookie": f"{name}=planted"}
    assert requests.get(attacked.url, headers=headers, timeout=30).status_code == 401
    answer = requests.post(
        f"{attacked.url}/login",
        data={"token": attacked.tokens["read"]},
        headers=headers,
        allow_redirects=False,
        timeout=30,
    )
    (session,) = re.findall(rf"{name}=([\w-]+)", answer.headers["Set-Cookie"])
    assert len(session) == 43
    assert answer.headers["Set-Cookie"].replace(session, "NEW") == cookie
    assert (
        requests.get(attacked.url, headers=headers, timeout=30).status_code == 401
    )  # the planted session is still invalid


def test_a_login_form_without_a_valid_token_is_refused(attacked: RunningDaemon, address: str) -> None:
    for data in ({}, {"token": ""}, {"token": "x" * 5000}):
        answer = requests.post(
            f"{attacked.url}/login", data=data, headers={"X-Forwarded-For": address}, timeout=30
        )
        assert answer.status_code == 403
        assert answer.headers["Content-Type"].startswith("text/html")


def test_an_invalid_forwarded_address_is_ignored(attacked: RunningDaemon) -> None:
    assert (
        attacked.request("GET", "/api/cleanup/status", token=None, X_Forwarded_For="<b>, evil").status_code
        == 401
    )
    assert attacked.refusals()[-1]["ip_address"] == "127.0.0.1"


def test_markup_in_names_is_escaped(attacked: RunningDaemon) -> None:
    markup = "<img src=x onerror=alert(1)>'\"&{{7*7}}\udc80"
    body = json.dumps({"job_id": markup, "reason": markup[:-1], "unknown_ok": True})
    headers = {**bearer(attacked), "Content-Type": "application/json"}
    held = requests.post(f"{attacked.url}/api/cleanup/holds", body, headers=headers, timeout=30)
    assert held.status_code == 201
    assert held.json()["job_id"] == markup
    page = attacked.request("GET", "/")
    assert page.status_code == 200
    assert "&lt;img src=x" in page.text
    assert "<img src=x" not in page.text
    assert "{{7*7}}" in page.text


@pytest.mark.parametrize("body", [{"job_id": "a\0b"}, {"job_id": ""}, {"job_id": "x" * 1001}, {"job_id": 7}])
def test_an_impossible_job_id_is_refused(attacked: RunningDaemon, body: dict[str, Any]) -> None:
    answer = attacked.request("POST", "/api/cleanup/holds", body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "job_id"


def test_a_token_file_that_others_can_write_is_not_used(attacked: RunningDaemon) -> None:
    file = attacked.store.path / "tokens.json"
    file.chmod(0o666)
    try:
        for path in ("/", "/api/cleanup/status"):
            answer = attacked.request("GET", path)
            assert answer.status_code == 503
            assert str(file) not in answer.text
        assert attacked.request("POST", "/api/cleanup").status_code == 503
        assert str(file) in (attacked.store.path / "daemon.log").read_text()
    finally:
        file.chmod(0o600)
    assert attacked.request("GET", "/api/cleanup/status").status_code == 200


def test_without_the_database_the_page_shows_an_error(attacked: RunningDaemon) -> None:
    database = attacked.store.path / "jobs.db"
    away = database.with_name("away.db")
    attacked.request("POST", "/api/cleanup/holds/release", {"job_id": "nobody"})
    attacked.request("POST", "/api/cleanup/holds", {"job_id": "a"})  # clears the cache
    database.rename(away)
    try:
        page = attacked.request("GET", "/")
    finally:
        away.rename(database)
    assert page.status_code == 503
    assert 'role="alert"' in page.text
    assert str(database) not in page.text
    assert "Traceback" not in (attacked.store.path / "daemon.log").read_text()


def test_an_event_stream_ends_when_its_token_is_revoked(attacked: RunningDaemon) -> None:
    token = attacked.add_token("listener", "read")
    with requests.get(
        f"{attacked.url}/api/cleanup/events",
        headers={"Authorization": f"Bearer {token}"},
        stream=True,
        timeout=30,
    ) as stream:
        lines = stream.iter_lines()
        assert next(lines) == b"event: idle"
        attacked.revoke("listener")
        assert list(lines) == [b"data: null", b""]
