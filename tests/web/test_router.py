"""The routes inside another FastAPI application, as docs/api.md shows it, without a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI, Header, HTTPException
from fastapi.testclient import TestClient

from eemtcleanupd.errors import ConfigError
from eemtcleanupd.web import cleanup_router
from tests.cleanup.conftest import JobStore
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
