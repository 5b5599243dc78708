"""The EEMT web interface with the routes of docs/how-to/http-api.md, in pinned and newest versions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from playwright.sync_api import expect, sync_playwright

from tests.cleanup.conftest import JobStore
from tests.ports import free_port
from tests.requirements import find_program, needs
from tests.web.conftest import create_store, eventually
from tests.web.test_docs_api import examples

expect.set_options(timeout=60_000)  # of a busy machine
PROJECT = Path(__file__).parents[2]
PINS = [
    "fastapi==0.104.1",
    "uvicorn[standard]==0.24.0",
    "jinja2==3.1.2",
    "python-multipart==0.0.6",
    "aiosqlite==0.19.0",
    "docker==6.1.3",
]
"""The requirements of the EEMT web interface."""

# The template call of the web interface works with its pins only.
PROGRAM = """
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates

app = FastAPI(title="EEMT Local Workflow Service")
templates = Jinja2Templates(directory="templates")

@app.get("/", response_class=HTMLResponse)
async def home(request: Request):
    return templates.TemplateResponse("index.html", {"request": request})

@app.get("/monitor", response_class=HTMLResponse)
async def monitor():
    return open("templates/index.html").read()

@app.post("/api/cleanup")
async def trigger_cleanup(dry_run: bool = False):
    open("own-cleanup-ran", "w").close()

"""
TOKEN = "a secret of the operators"
OPERATOR = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class WebInterface:
    store: JobStore
    url: str

    def get(self, path: str, **headers: str) -> requests.Response:
        return requests.get(self.url + path, headers=headers, timeout=60)

    def refusals(self) -> list[dict[str, str]]:
        log = self.store.path / "logs" / "cleanup_audit.jsonl"
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        return [entry["details"] for entry in entries if entry["action"] == "http_refused"]

    def clean(self, body: object = None, **headers: str) -> requests.Response:
        return requests.post(f"{self.url}/api/cleanup", json=body, headers=headers, timeout=60)


@contextmanager
def web_interface(python: Path, store: JobStore) -> Iterator[WebInterface]:
    """Run a program with routes and the template call of the web interface, and the example's lines."""
    config = store.path / "cleanup_config.yaml"
    config.write_text("database: {timezone: UTC}\n")
    (lines,) = [text for text in examples("python") if "install(app" in text]
    assert lines.count("/etc/eemtcleanupd/cleanup_config.yaml") == 1
    program = PROGRAM + lines.replace("/etc/eemtcleanupd/cleanup_config.yaml", str(config))
    (store.path / "app.py").write_text(program)
    (store.path / "templates").mkdir()
    (snippet,) = examples("html")
    (store.path / "templates/index.html").write_text(f"<title>EEMT</title>{snippet}")
    port = free_port()
    process = subprocess.Popen(
        [python, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"],
        cwd=store.path,
        env={**os.environ, "CLEANUP_TOKEN": TOKEN},
    )
    try:
        found = WebInterface(store, f"http://127.0.0.1:{port}")

        def connect() -> None:
            if process.poll() is not None:
                pytest.fail("the program ended")
            found.get("/openapi.json")

        eventually(connect)
        yield found
    finally:
        process.terminate()
        process.wait(60)


def check(web: WebInterface) -> None:
    """Check the routes of the program and ours."""
    assert web.get("/monitor").status_code == 200
    assert web.clean({"dry_run": True}).status_code == 401
    dry = web.clean({"dry_run": True}, **OPERATOR).json()
    assert (dry["dry_run"], dry["cleaned_jobs"]) == (True, {"successful": 1, "failed": 1})
    assert web.clean({"success_retention_hours": -1}, **OPERATOR).status_code == 422
    assert web.get("/api/cleanup/plan").status_code == 401
    assert web.get("/api/cleanup/plan", **OPERATOR).json()["cleaned_jobs"] == dry["cleaned_jobs"]
    for host in ("x/api/cleanup/jobs/?", "["):  # Starlette 0.27 makes the URL of the request from it
        assert web.get("/api/cleanup/plan", Host=host).status_code == 401
        assert web.refusals()[-1]["request"] == "GET /api/cleanup/plan"
    assert web.get("/api/cleanup/runs?limit=0", **OPERATOR).status_code == 422
    assert "event: idle" in web.get("/api/cleanup/events?once=true", **OPERATOR).text
    assert web.get("/api/cleanup/jobs/a").json()["cleaned"] is False
    assert web.clean(**OPERATOR, Origin="https://evil.example").status_code == 403
    assert web.clean("x" * 70_000, **OPERATOR).status_code == 413
    assert web.store.results("a").exists()
    run = web.clean(**OPERATOR).json()
    assert run["cleaned_jobs"] == dry["cleaned_jobs"]
    assert web.store.cleaned() == {"a", "b"}
    assert web.get(f"/api/cleanup/runs/{run['run_id']}", **OPERATOR).json()["run_id"] == run["run_id"]
    assert web.get("/api/cleanup/jobs/a").json()["cleaned"] is True
    assert web.get("/api/cleanup/jobs/nobody").status_code == 404
    paths = web.get("/openapi.json").json()["paths"]
    assert paths["/api/cleanup"]["post"]["summary"] == "Cleanup"
    assert {"/", "/api/cleanup/jobs/{job_id}"} <= set(paths)
    assert not (web.store.path / "own-cleanup-ran").exists()


def freeze(python: Path) -> set[str]:
    command = [str(python), "-m", "pip", "freeze"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_with_the_pins_of_the_web_interface(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(PROJECT, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "tests", "docs"))
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*install, *PINS], check=True)
    before = freeze(python)
    subprocess.run([*install, f"{source}[router]"], check=True)
    assert before - freeze(python) == set()  # no version has moved
    with web_interface(python, create_store(tmp_path / "store")) as web:
        assert web.get("/").status_code == 200
        check(web)
        assert web.get("/").status_code == 200


@pytest.mark.slow
def test_with_the_newest_versions(store: JobStore) -> None:
    with web_interface(Path(sys.executable), store) as web:
        check(web)


@pytest.mark.slow
@needs("chromium")
def test_the_snippet_shows_a_user_where_the_data_is(store: JobStore) -> None:
    with web_interface(Path(sys.executable), store) as web, sync_playwright() as playwright:
        chromium = find_program("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{web.url}/monitor")
        note = page.locator("#cleanup")

        def shown(job_id: str) -> str:
            page.evaluate("id => showCleanup(id)", job_id)
            return note.inner_text()

        expect(note).to_be_hidden()
        assert "until" in shown("young")
        assert "next" in shown("a")
        assert "running" in shown("live")
        held = {"job_id": "young", "reason": "<b>paper</b>"}
        requests.post(f"{web.url}/api/cleanup/holds", json=held, headers=OPERATOR, timeout=60)
        assert "operator" in shown("young")
        assert "<b>paper</b>" in shown("young")
        config = web.store.path / "cleanup_config.yaml"
        config.write_text(f"{config.read_text()}trash: {{grace_hours: 24}}\n")
        web.clean(**OPERATOR)
        assert "trash" in shown("a")
        web.store.sql("UPDATE cleanup_intents SET purge_after = '2020-01-01 00:00:00'")
        web.clean(**OPERATOR)
        assert "deleted" in shown("a")
        page.evaluate("id => showCleanup(id)", "nobody")
        expect(note).to_be_hidden()
        browser.close()
