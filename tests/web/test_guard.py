"""The checks of all routes: where a request comes from, its body, and how many are open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import Cookie, FastAPI, HTTPException
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from eemtcleanupd.web import cleanup_router
from eemtcleanupd.web.app import build_routes
from eemtcleanupd.web.auth import Authenticator
from eemtcleanupd.web.backend import LocalBackend
from eemtcleanupd.web.cache import ResponseCache
from eemtcleanupd.web.context import ApiContext
from eemtcleanupd.web.guard import MAX_STREAMS, MAX_STREAMS_PER_CALLER, Places
from eemtcleanupd.web.pages import Pages
from eemtcleanupd.web.tokens import TokenFile
from tests.cleanup.conftest import JobStore

HOST = "web.example.org"


def authorize(session: str = Cookie("")) -> str:
    if session != "secret":
        raise HTTPException(401, "log in")
    return "ann"


@pytest.fixture
def browser(store: JobStore) -> Iterator[TestClient]:
    """A browser that is logged in to an application with the router."""
    (store.path / "cleanup_config.yaml").write_text("api: {allowed_hosts: [public.example.org]}\n")
    app = FastAPI()
    app.include_router(cleanup_router(store.path / "cleanup_config.yaml", authorize=authorize, environ={}))
    with TestClient(app, base_url=f"http://{HOST}", cookies={"session": "secret"}) as client:
        yield client


def refusals(store: JobStore) -> list[dict[str, Any]]:
    file = store.path / "logs" / "cleanup_audit.jsonl"
    entries = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [entry for entry in entries if entry["action"] == "http_refused"]


ALLOWED = [
    {},
    {"Origin": f"http://{HOST}"},
    {"Origin": f"https://{HOST}"},
    {"Origin": "https://public.example.org"},
    {"Origin": "https://proxied.example.org", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Content-Type": "application/json; charset=utf-8"},
]
REFUSED = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": f"http://{HOST}:8080"},
    {"Origin": f"http://{HOST}.evil.example"},
    {"Origin": f"file://{HOST}"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": f"http://{HOST}"},
    {"Sec-Fetch-Site": "", "Origin": f"http://{HOST}"},
]


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize("headers", ALLOWED)
def test_the_applications_own_page_and_other_clients_can_make_changes(
    browser: TestClient, headers: dict[str, str]
) -> None:
    assert browser.post("/api/cleanup/holds", json={"job_id": "a"}, headers=headers).status_code == 201


@pytest.mark.parametrize("headers", REFUSED)
def test_a_page_of_another_site_changes_nothing(
    browser: TestClient, store: JobStore, headers: dict[str, str]
) -> None:
    for path, body in (("/api/cleanup", None), ("/api/cleanup/holds", {"job_id": "a"})):
        assert browser.post(path, json=body, headers=headers).status_code == 403
    assert store.results("a").exists()
    assert len(refusals(store)) == 2
    assert browser.get("/api/cleanup/holds", headers=headers).json()["holds"] == []


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"]
)
def test_a_form_starts_no_run(browser: TestClient, store: JobStore, kind: str) -> None:
    for body in ("", "{}", "dry_run=false", "--x--\r\n"):
        answer = browser.post("/api/cleanup", content=body, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "body")
    assert store.results("a").exists()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused(browser: TestClient, store: JobStore, *, chunked: bool) -> None:
    chunks = [b" " * 40_000] * 2
    body = iter(chunks) if chunked else b"".join(chunks)
    answer = browser.post("/api/cleanup", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert store.results("a").exists()
    assert len(refusals(store)) == 1


def test_refusals_of_the_application_are_audited_and_throttled(browser: TestClient, store: JobStore) -> None:
    browser.cookies.clear()
    codes = [browser.post("/api/cleanup").status_code for _ in range(65)]
    assert codes == [401] * 60 + [429] * 5
    assert len(refusals(store)) == 61


def all_routes(store: JobStore) -> FastAPI:
    (store.path / "cleanup_config.yaml").write_text("api: {tokens_file: tokens.json}\n")
    backend = LocalBackend(store.path / "cleanup_config.yaml", {})
    authenticator = Authenticator(backend)
    read, clean = authenticator.requires("read"), authenticator.requires("clean")
    context = ApiContext.create(backend, ResponseCache(), authenticator.refusals, read, clean)
    return build_routes(Pages(context, authenticator))


def test_every_route_has_the_guard(store: JobStore) -> None:
    app = all_routes(store)

    def find_routes(owner: Any) -> Iterator[APIRoute]:
        for route in owner.routes:
            if isinstance(route, APIRoute):
                yield route
            elif hasattr(inner := getattr(route, "original_router", None), "routes"):
                yield from find_routes(inner)

    routes = list(find_routes(app))
    assert {"/", "/login", "/healthz", "/metrics", "/api/cleanup"} <= {route.path for route in routes}
    assert {type(route).__name__ for route in routes} == {"GuardedRoute"}


def test_a_daemon_that_does_not_answer_after_a_page_is_no_error(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def progress(_: LocalBackend) -> None:
        raise TimeoutError

    monkeypatch.setattr(LocalBackend, "progress", progress)
    app, token = all_routes(store), TokenFile(store.path / "tokens.json").add("a", "read", datetime.now(UTC))
    with TestClient(app, headers={"Authorization": f"Bearer {token}"}) as client:
        assert client.get("/").status_code == 200


def test_places_are_limited_in_all_and_for_each_caller() -> None:
    places = Places(MAX_STREAMS, MAX_STREAMS_PER_CALLER)

    def open_all(caller: str) -> list[Any]:
        contexts = [places.hold(caller) for _ in range(MAX_STREAMS_PER_CALLER + 1)]
        assert [context.__enter__() for context in contexts] == [True] * MAX_STREAMS_PER_CALLER + [False]
        return contexts

    held = [open_all(name) for name in "abcd"]
    with places.hold("e") as is_held:
        assert not is_held
    for context in held[0]:
        context.__exit__(None, None, None)
    with places.hold("e") as is_held:
        assert is_held


def test_a_stream_that_never_starts_gives_its_place_back(store: JobStore) -> None:
    """A client can leave before its first event."""
    (store.path / "cleanup_config.yaml").write_text("")
    app = FastAPI()
    app.include_router(
        cleanup_router(store.path / "cleanup_config.yaml", authorize=lambda: "ann", environ={})
    )

    async def request(*, leaves: bool) -> int:
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"} if leaves else await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(message: dict[str, Any]) -> None:
            statuses.append(message.get("status", 0))
            if leaves:
                raise OSError

        scope: dict[str, Any] = {
            "type": "http", "method": "GET", "path": "/api/cleanup/events", "raw_path": b"", "root_path": "",
            "query_string": b"once=true", "headers": [], "client": ("203.0.113.1", 1), "server": ("x", 80),
            "scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        with suppress(OSError, ExceptionGroup):
            await app(scope, receive, send)  # type: ignore[arg-type]
        return statuses[0] if statuses else 0

    async def leave_and_return() -> int:
        for _ in range(3 * MAX_STREAMS):
            await request(leaves=True)
        return await request(leaves=False)

    assert asyncio.run(leave_and_return()) == 200
