"""``rerun`` submits a job again through the API of the web interface."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli

SCRIPT = Path(__file__).parents[2] / "scripts" / "rerun_job.py"
PARAMETERS = '{"step": 15.0, "linke_value": 3.0, "num_threads": 4, "start_year": 2018, "more": 1}'


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path / "store", now=datetime.now(UTC))
    store.job("a", dem="dem.tif", workflow="eemt")
    store.sql("UPDATE jobs SET parameters = ?", PARAMETERS)
    return store


@pytest.fixture
def interface(httpserver: HTTPServer) -> dict[str, object]:
    """The two endpoints of the web interface; the returned dictionary collects their input."""
    received: dict[str, object] = {}

    def upload(request: Request) -> Response:
        received["file"] = request.files["file"].read()
        return Response('{"filename": "new_dem.tif"}', content_type="application/json")

    def submit(request: Request) -> Response:
        received["form"] = request.form.to_dict()
        return Response('{"job_id": "b"}', content_type="application/json")

    httpserver.expect_request("/api/upload-file", method="POST").respond_with_handler(upload)
    httpserver.expect_request("/api/submit-job", method="POST").respond_with_handler(submit)
    return received


FORM = {
    "workflow_type": "eemt",
    "step": "15.0",
    "linke_value": "3.0",
    "num_threads": "4",
    "start_year": "2018",
}


def test_a_job_is_submitted_with_its_existing_upload(
    store: JobStore, run_cli: RunCli, httpserver: HTTPServer, interface: dict[str, object]
) -> None:
    store.upload("dem.tif")
    done = run_cli("rerun", "a", "--url", httpserver.url_for(""), cwd=store.path)
    assert done.returncode == 0, done.stderr
    assert interface == {"form": {**FORM, "uploaded_filename": "dem.tif"}}
    assert '"action": "rerun"' in (store.path / "logs" / "cleanup_audit.jsonl").read_text()


def test_the_given_elevation_model_is_uploaded_first(
    store: JobStore, run_cli: RunCli, httpserver: HTTPServer, interface: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "mine.tif").write_bytes(b"raster" * 100_000)
    url = httpserver.url_for("")
    done = run_cli("rerun", "a", "--dem", tmp_path / "mine.tif", "--url", url, cwd=store.path)
    assert done.returncode == 0, done.stderr
    assert interface["file"] == b"raster" * 100_000
    assert interface["form"] == {**FORM, "uploaded_filename": "new_dem.tif"}


@pytest.mark.slow
def test_the_script_rerun_job_does_the_same(
    store: JobStore, httpserver: HTTPServer, interface: dict[str, object]
) -> None:
    store.upload("dem.tif")
    command = [sys.executable, str(SCRIPT), "--job-id", "a", "--url", httpserver.url_for("")]
    subprocess.run(command, cwd=store.path, check=True)
    assert interface["form"] == {**FORM, "uploaded_filename": "dem.tif"}


def test_a_job_that_cannot_be_submitted_is_one_error(
    store: JobStore, run_cli: RunCli, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/api/submit-job").respond_with_data("bad step", status=422)
    httpserver.expect_request("/deep/api/submit-job").respond_with_data("[" * 100_000)
    missing_upload = run_cli("rerun", "a", "--url", httpserver.url_for(""), cwd=store.path)
    assert missing_upload.returncode == 1
    assert "dem.tif" in missing_upload.stderr
    assert "--dem" in missing_upload.stderr
    store.upload("dem.tif")
    for arguments, message in (
        (("nobody", "--url", httpserver.url_for("")), "nobody"),
        (("a", "--url", "http://127.0.0.1:9"), "ConnectionError"),
        (("a", "--url", httpserver.url_for("")), "422 bad step"),
        (("a", "--url", httpserver.url_for("/deep")), "JSON"),
    ):
        done = run_cli("rerun", *arguments, cwd=store.path)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_without_a_url_nothing_is_sent_anywhere(store: JobStore, run_cli: RunCli) -> None:
    store.upload("dem.tif")
    for options in ((), ("--dry-run",), ("--url", "localhost:5000"), ("--url", "http://ann:secret@host")):
        done = run_cli("rerun", "a", *options, cwd=store.path)
        assert done.returncode == 2, options
        assert "Traceback" not in done.stderr
        assert not (store.path / "logs/cleanup_audit.jsonl").exists()


def test_the_url_can_be_configured(
    store: JobStore, run_cli: RunCli, httpserver: HTTPServer, interface: dict[str, object]
) -> None:
    store.upload("dem.tif")
    config = store.path / "cleanup_config.yaml"
    config.write_text(f"web_interface: {{url: '{httpserver.url_for('/')}'}}\n")
    assert run_cli("rerun", "a", cwd=store.path).returncode == 0
    assert interface == {"form": {**FORM, "uploaded_filename": "dem.tif"}}


def test_a_dry_run_shows_the_requests_and_sends_none(
    store: JobStore, run_cli: RunCli, httpserver: HTTPServer, interface: dict[str, object], tmp_path: Path
) -> None:
    url = httpserver.url_for("").rstrip("/")
    store.upload("dem.tif")
    (tmp_path / "mine.tif").write_bytes(b"raster")
    submit = {"method": "POST", "url": f"{url}/api/submit-job"}
    upload: dict[str, object] = {
        "method": "POST",
        "url": f"{url}/api/upload-file",
        "file": str(tmp_path / "mine.tif"),
    }
    cases: list[tuple[tuple[str | Path, ...], list[dict[str, object]]]] = [
        ((), [{**submit, "form": {**FORM, "uploaded_filename": "dem.tif"}}]),
        (
            ("--dem", tmp_path / "mine.tif"),
            [upload, {**submit, "form": {**FORM, "uploaded_filename": None}}],
        ),
    ]
    for options, requests in cases:
        command = ("rerun", "a", "--url", url, "--dry-run", *options)
        done = run_cli(*command, "--json", cwd=store.path)
        assert json.loads(done.stdout) == {"job_id": "a", "dry_run": True, "requests": requests}
        shown = run_cli(*command, cwd=store.path).stdout
        assert all(str(request["url"]) in shown for request in requests)
    assert interface == {}
    assert not (store.path / "logs").exists()
