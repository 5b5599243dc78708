"""The routes inside another FastAPI application, as docs/how-to/http-api.md shows it, without a daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI, Header, HTTPException
from fastapi.testclient import TestClient

from eemtcleanupd.errors import ConfigError, NoDatabaseError
from eemtcleanupd.web import cleanup_router, install
from tests.cleanup.conftest import JobStore
from tests.postgres import ROLE, Server
from tests.web.conftest import eemtcleanupd

CONFIG = "database: {timezone: UTC}\n"


def authorize(x_admin: str = Header("")) -> str:
    if x_admin != "yes":
        raise HTTPException(403, "admins only")
    return "admin"


@pytest.fixture
def client(store: JobStore) -> Iterator[TestClient]:
    (store.path / "cleanup_config.yaml").write_text(CONFIG)
    app = FastAPI()
    app.include_router(cleanup_router(store.path / "cleanup_config.yaml", authorize=authorize, environ={}))
    with TestClient(app) as client:
        yield client


def test_a_run_needs_no_daemon(client: TestClient, store: JobStore) -> None:
    assert client.post("/api/cleanup").status_code == 403
    dry = client.post("/api/cleanup", json={"dry_run": True}, headers={"X-Admin": "yes"}).json()
    result = client.post("/api/cleanup", headers={"X-Admin": "yes"}).json()
    assert result["cleaned_jobs"] == dry["cleaned_jobs"] == {"successful": 1, "failed": 1}
    assert store.cleaned() == {"a", "b"}
    assert '"user": "admin"' in (store.path / "logs" / "cleanup_audit.jsonl").read_text()


def test_without_authorize_clients_need_a_token(store: JobStore) -> None:
    (store.path / "cleanup_config.yaml").write_text(CONFIG + "api: {tokens_file: t.json}\n")
    token = eemtcleanupd(store, "token", "add", "me", "--scope", "clean").split()[-1]
    app = FastAPI()
    app.include_router(cleanup_router(store.path / "cleanup_config.yaml", environ={}))
    with TestClient(app) as client:
        assert client.get("/api/cleanup/plan").status_code == 401
        headers = {"Authorization": f"Bearer {token}"}
        assert client.get("/api/cleanup/plan", headers=headers).json()["cleaned_jobs"]["successful"] == 1
        answer = client.post("/api/cleanup", headers=headers, json={"success_retention_hours": -1})
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


def test_a_router_without_authorization_is_refused(store: JobStore) -> None:
    (store.path / "cleanup_config.yaml").write_text(CONFIG)
    with pytest.raises(ConfigError):
        cleanup_router(Path(store.path / "cleanup_config.yaml"), environ={})


def program(store: JobStore, calls: list[str]) -> FastAPI:
    """Return an application with a cleanup of its own, as a route, in a router and behind a pattern."""
    (store.path / "cleanup_config.yaml").write_text(CONFIG)
    app = FastAPI()

    @app.post("/api/cleanup")
    def own_cleanup(dry_run: bool = False) -> None:
        calls.append("cleanup")

    @app.get("/api/cleanup")
    def own_page() -> str:
        return "page"

    inner = APIRouter(prefix="/cleanup")

    @inner.get("/runs/{number}")
    def own_run(number: str) -> None:
        calls.append("run")

    api = APIRouter(prefix="/api")
    api.include_router(inner)
    app.include_router(api)

    @app.api_route("/{path:path}", methods=["GET", "POST"], include_in_schema=False)
    def everything(path: str) -> str:
        return path

    return app


ADMIN = {"X-Admin": "yes"}


def test_install_replaces_the_routes_of_the_application_and_names_them(
    store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []
    app = program(store, calls)
    replaced = install(app, store.path / "cleanup_config.yaml", authorize=authorize, environ={})
    assert replaced == ("POST /api/cleanup", "GET /api/cleanup/runs/{}")
    assert all(operation in caplog.text for operation in replaced)

    @app.post("/api/cleanup")
    def added_later() -> None:
        calls.append("later")

    with TestClient(app) as client:
        assert client.post("/api/cleanup", json={"dry_run": True}).status_code == 403
        dry = client.post("/api/cleanup", json={"dry_run": True}, headers=ADMIN).json()
        assert (dry["dry_run"], dry["cleaned_jobs"]) == (True, {"successful": 1, "failed": 1})
        assert client.post("/api/cleanup?dry_run=true", headers=ADMIN).status_code == 422
        assert store.results("a").exists()
        assert client.get("/api/cleanup/runs/x", headers=ADMIN).status_code == 404
        assert client.post("/api/cleanup", headers=ADMIN).json()["cleaned_jobs"] == dry["cleaned_jobs"]
        assert client.get("/api/cleanup").json() == "page"
        assert client.get("/elsewhere").json() == "elsewhere"
    assert calls == []
    assert store.cleaned() == {"a", "b"}


def test_install_keeps_replaced_routes_out_of_the_documentation(store: JobStore) -> None:
    app = program(store, [])
    install(app, store.path / "cleanup_config.yaml", authorize=authorize, environ={})
    paths = app.openapi()["paths"]
    assert "/api/cleanup/runs/{number}" not in paths
    assert "get" in paths["/api/cleanup"]
    body = paths["/api/cleanup"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "CleanupBody" in str(body)


def test_install_without_authorization_changes_nothing(store: JobStore) -> None:
    calls: list[str] = []
    app = program(store, calls)
    with pytest.raises(ConfigError):
        install(app, store.path / "cleanup_config.yaml", environ={})
    with TestClient(app) as client:
        client.post("/api/cleanup")
    assert calls == ["cleanup"]


def test_a_job_has_a_route(client: TestClient, store: JobStore) -> None:
    assert client.get("/api/cleanup/jobs/a").status_code == 403
    hold = {"job_id": "young", "reason": "paper", "hours": 1000}
    assert client.post("/api/cleanup/holds", json=hold, headers=ADMIN).status_code == 201
    client.post("/api/cleanup", headers=ADMIN)
    young, cleaned = (
        client.get(f"/api/cleanup/jobs/{name}", headers=ADMIN).json() for name in ("young", "a")
    )
    assert (young["hold"]["owner"], young["hold"]["reason"]) == ("admin", "paper")
    assert young["kept_until"] == young["hold"]["until"]
    assert (young["cleaned"], young["cleaned_at"], young["size"]["bytes"] > 0) == (False, None, True)
    assert (cleaned["cleaned"], cleaned["kept_until"], cleaned["hold"]) == (True, None, None)
    assert set(cleaned["size"]) == {"bytes", "human_readable"}
    assert datetime.fromisoformat(cleaned["cleaned_at"]).tzinfo is not None
    missing = client.get("/api/cleanup/jobs/nobody", headers=ADMIN)
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("is_missing", [True, False])
def test_an_error_names_no_other_database_of_the_machine(
    client: TestClient, store: JobStore, is_missing: bool
) -> None:
    other = store.path / "db/jobs.db"
    other.parent.mkdir()
    (store.path / "jobs.db").rename(other)
    if not is_missing:
        (store.path / "jobs.db").touch()
    with pytest.raises(NoDatabaseError, match=str(other)):
        store.run()
    for path in ("jobs/a", "plan"):
        answer = client.get(f"/api/cleanup/{path}", headers={"X-Admin": "yes"})
        assert answer.status_code == 503
        assert str(other) not in answer.text
    answer = client.post("/api/cleanup", headers={"X-Admin": "yes"})
    assert answer.status_code == 503
    assert str(other) not in answer.text


def damage_database(store: JobStore) -> None:
    (store.path / "jobs.db").write_bytes(b"no database" * 1000)


def remove_results(store: JobStore) -> None:
    (store.path / "results").rename(store.path / "elsewhere")


def empty_job_table(store: JobStore) -> None:
    store.sql("DELETE FROM jobs")


def block_audit_log(store: JobStore) -> None:
    (store.path / "logs").write_text("no folder")


@pytest.mark.parametrize(
    ("damage", "method", "status"),
    [
        (damage_database, "GET", 503),
        (remove_results, "GET", 503),
        (empty_job_table, "GET", 409),
        (block_audit_log, "POST", 503),
    ],
)
def test_only_the_log_names_paths(
    client: TestClient,
    store: JobStore,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[JobStore], None],
    method: str,
    status: int,
) -> None:
    damage(store)
    path = "/api/cleanup/plan" if method == "GET" else "/api/cleanup"
    answer = client.request(method, path, headers=ADMIN)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert str(store.path) not in answer.text
    assert answer.json()["detail"]
    assert str(store.path) in caplog.text


def test_an_error_names_neither_host_nor_user_of_a_server(store: JobStore, postgres: Server) -> None:
    file = store.path / "cleanup_config.yaml"
    file.write_text(f"{CONFIG}paths: {{database: '{postgres.url('nowhere')}'}}\n")
    app = FastAPI()
    app.include_router(cleanup_router(file, authorize=authorize, environ={}))
    with TestClient(app) as client:
        answer = client.get("/api/cleanup/plan", headers=ADMIN)
    assert answer.status_code == 503
    for part in ("127.0.0.1", str(postgres.port), ROLE, "nowhere"):
        assert part not in answer.text.replace("eemtcleanupd", "")
