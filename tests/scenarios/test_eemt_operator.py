"""An operator of EEMT's web interface installs the cleanup, and goes through what the documents show."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
import requests
from pytest_httpserver import HTTPServer

from tests.conftest import settle
from tests.notifiers.conftest import PASSWORD, StartMail, start_mail
from tests.ports import free_port
from tests.scenarios.eemt_application import ADMIN
from tests.web.conftest import eventually

__all__ = ["start_mail"]

ROOT = Path(__file__).parents[2]
APPLICATION = Path(__file__).with_name("eemt_application.py")
METRICS = ROOT / "tests/data/document_metrics.txt"
BODY = {"success_retention_hours": 168, "failed_retention_hours": 12}


@dataclass
class Site:
    """The checkout of the application, with its programs, and the folder that is its ``/tmp``."""

    folder: Path
    tmp: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def start(self, *options: str | Path) -> None:
        """Start the application again, with more options."""
        self.stop()
        command = [sys.executable, APPLICATION, "--tmp", self.tmp, "--port", str(self.port), *options]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, cwd=self.folder, env=environ)
        eventually(lambda: requests.get(f"{self.url}/api/jobs", timeout=5))

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)

    def shell(self, command: str, *, code: int = 0, **environ: str) -> str:
        """Run a command as it is documented, in the folder of the application; return what it prints."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOME": str(self.folder.parent),
                **{name: os.environ[name] for name in ("TZ",) if name in os.environ},
                **environ,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == code, (command, done.stdout, done.stderr)
        return done.stdout

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.tmp / "jobs.db")) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def upload(self, name: str) -> str:
        files = {"file": (name, b"dem" * 1000)}
        return str(requests.post(f"{self.url}/api/upload-file", files=files, timeout=30).json()["filename"])

    def submit(self, upload: str, workflow: str = "sol", *, days: float = 0) -> str:
        """Submit a job that ended some days ago; return its id."""
        form = {"workflow_type": workflow, "uploaded_filename": upload, "step": "12.5"}
        answer = requests.post(f"{self.url}/api/submit-job", data=form, timeout=30).json()
        job_id = str(answer["job_id"])
        past = timedelta(days=days)
        ((created, started, completed),) = self.sql(
            "SELECT created_at, started_at, completed_at FROM jobs WHERE id = ?", job_id
        )
        self.sql(
            "UPDATE jobs SET created_at = ?, started_at = ?, completed_at = ? WHERE id = ?",
            str(datetime.fromisoformat(created) - past),
            (datetime.fromisoformat(started) - past).isoformat(),
            completed and (datetime.fromisoformat(completed) - past).isoformat(),
            job_id,
        )
        self.settle(job_id)
        return job_id

    def downloads(self, job_id: str) -> int:
        """Return the status of a request for the results of a job, as if it was made a day ago.

        It writes their zip, and a job whose results changed within an hour is not cleaned.
        """
        status = requests.get(f"{self.url}/api/jobs/{job_id}/results", timeout=30).status_code
        self.settle(job_id)
        return status

    def settle(self, job_id: str) -> None:
        """Make the files of a job look as if nothing wrote there for a day."""
        for place in (self.folder / "results", self.folder / "temp"):
            for path in place.glob(f"{job_id}*"):
                settle(path, datetime.now(UTC) - timedelta(days=1))

    def cleaned(self) -> set[str]:
        rows = self.sql("SELECT id FROM jobs WHERE data_cleaned_at IS NOT NULL")
        return {job_id for (job_id,) in rows}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "eemt/web-interface"
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    with closing(sqlite3.connect(folder / "jobs.db")) as connection:  # as the repository ships it
        connection.execute("VACUUM")
    (tmp_path / "tmp").mkdir()
    site = Site(folder, tmp_path / "tmp")
    site.start()
    yield site
    site.stop()


@dataclass
class Jobs:
    """The jobs of the site."""

    shared: str
    old: str
    twin: str
    young: str
    failed: str
    running: str

    @property
    def expired(self) -> set[str]:
        return {self.old, self.twin, self.failed}


@pytest.fixture
def jobs(site: Site) -> Jobs:
    shared = site.upload("mcn_10m.tif")
    other = site.upload("topo.tif")
    return Jobs(
        shared,
        old=site.submit(shared, days=9),
        twin=site.submit(shared, days=8),
        young=site.submit(other, days=2),
        failed=site.submit(other, "fail", days=1),
        running=site.submit(other, "long", days=20),
    )


def configuration(site: Site, more: str = "") -> Path:
    file = site.folder / "cleanup_config.yaml"
    file.write_text(f"paths: {{database: {site.tmp}/jobs.db}}\n{more}")
    return file


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_from_the_installation_to_the_first_run(site: Site, jobs: Jobs) -> None:
    assert re.match(r"eemtcleanupd\b.* \d+\.\d+", site.shell("eemtcleanupd --version"))

    # The database that the repository ships is not the one that the application uses.
    empty = (site.folder / "jobs.db").read_bytes()
    site.shell("python scripts/cleanup_jobs.py --verbose", code=3)
    assert (site.folder / "jobs.db").read_bytes() == empty
    assert site.downloads(jobs.old) == 200

    configuration(site)
    checked = json.loads(site.shell("eemtcleanupd check --json"))
    values = {setting["key"]: setting["value"] for setting in checked["settings"]}
    assert values["paths.database"] == str(site.tmp / "jobs.db")

    # The documented SQL and metrics work before the first run.
    findings = json.loads(site.shell("eemtcleanupd doctor --fix --json"))
    assert "problem" not in {finding["level"] for finding in findings}
    metrics = site.shell(f"cd {site.tmp} && python -W ignore {METRICS}")
    assert "  Jobs cleaned: 0" in metrics.splitlines()
    assert "  completed: 3 jobs, 0.0 GB" in metrics.splitlines()

    preview = site.shell("python scripts/cleanup_jobs.py --dry-run --verbose")
    for job_id in jobs.expired:
        status = "failed" if job_id == jobs.failed else "completed"
        assert re.search(rf"^\[DRY RUN\] Would clean job {job_id} \(status: {status}, age: ", preview, re.M)
    assert f"[DRY RUN] Would delete: uploads/{jobs.shared} (4 KB)" in preview
    assert re.search(r"^\[DRY RUN\] Summary: Would clean 3 jobs, freeing ~\d+ KB$", preview, re.M)
    debug = site.shell("python scripts/cleanup_jobs.py --dry-run --verbose --debug 2>&1")
    assert "[DEBUG] Peak memory: " in debug
    assert site.cleaned() == set()

    output = site.shell("python scripts/cleanup_jobs.py --verbose")
    assert "[INFO] Cleanup completed successfully" in output
    assert site.cleaned() == jobs.expired
    assert site.downloads(jobs.old) == 404
    assert site.downloads(jobs.young) == 200
    left = {path.name for path in (site.folder / "uploads").iterdir()}
    assert jobs.shared not in left
    assert (site.folder / "temp" / jobs.running / "work.tif").exists()
    assert len(requests.get(f"{site.url}/api/jobs", timeout=30).json()) == 5
    assert "  Jobs cleaned: 3" in site.shell(f"cd {site.tmp} && python -W ignore {METRICS}")
    site.shell("eemtcleanupd report --plot storage_trend.png")
    assert (site.folder / "storage_trend.png").stat().st_size
    site.shell("eemtcleanupd history")
    site.shell("eemtcleanupd audit verify")


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_slack_and_email_receive_the_documented_report(
    site: Site, jobs: Jobs, httpserver: HTTPServer, start_mail: StartMail
) -> None:
    httpserver.expect_request("/services/T/B/X").respond_with_data("ok")
    mail = start_mail()
    configuration(
        site,
        f"""notifications:
  slack: {{enabled: true, webhook_url: '{httpserver.url_for("/services/T/B/X")}'}}
  audit_log: {{text_copy: true}}
  email:
    enabled: true
    smtp_server: localhost
    smtp_port: {mail.port}
    security: starttls
    ca_file: {mail.ca_file}
    username: eemt
    password: {PASSWORD}
    sender: eemt@example.com
    recipients: [admin@example.com]
""",
    )
    assert site.shell("eemtcleanupd notify-test").count(": ok: ") == 4
    site.shell("eemtcleanupd clean")
    sent = httpserver.log[-1][0].get_json()
    fields = {entry["title"]: entry["value"] for entry in sent["attachments"][0]["fields"]}
    assert (sent["text"], sent["attachments"][0]["color"]) == ("EEMT Cleanup Report", "good")
    assert (fields["Jobs Cleaned"], fields["Status"]) == ("3", "Success")
    message = message_from_bytes(mail.received[-1][2], policy=policy.default)
    body = next(part for part in message.walk() if part.get_content_type() == "text/plain")
    lines = str(body.get_content()).splitlines()
    assert "Jobs Cleaned: 3" in lines
    for title in ("Space Freed", "Current Storage Usage", "Available Space"):
        assert any(line.startswith(f"{title}: ") for line in lines)
    copied = (site.folder / "logs/cleanup_audit.log").read_text().splitlines()
    actions = {json.loads(line.split(" - ", 2)[2])["action"] for line in copied}
    assert {"run_started", "cleaning", "cleaned", "run_finished"} <= actions


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_application_answers_the_documented_requests_with_our_routes(site: Site, jobs: Jobs) -> None:
    site.start("--cleanup", configuration(site))
    post: Callable[..., requests.Response] = requests.post
    refused = post(f"{site.url}/api/cleanup", json={"dry_run": True}, timeout=60)
    assert refused.status_code == 403
    token = f'-H "Authorization: Bearer {ADMIN}"'
    previews = [
        site.shell(
            f"curl -sS -X POST http://localhost:{site.port}/api/cleanup {token}"
            f" -H 'Content-Type: application/json' -d '{body}'"
        )
        for body in (
            '{"dry_run": true}',
            '{"dry_run": true, "success_retention_hours": 24, "failed_retention_hours": 6}',
        )
    ]
    counts = [json.loads(preview)["cleaned_jobs"] for preview in previews]
    assert counts == [{"successful": 2, "failed": 1}, {"successful": 3, "failed": 1}]
    assert len(site.sql("SELECT id FROM jobs")) == 5
    assert site.downloads(jobs.old) == 200

    answer = json.loads(site.shell(f"curl -sS -X POST http://localhost:{site.port}/api/cleanup {token}"))
    assert (answer["success"], answer["cleaned_jobs"]) == (True, {"successful": 2, "failed": 1})
    assert set(answer["space_freed"]) == {"bytes", "human_readable"}
    assert {entry["job_id"] for entry in answer["details"]} == jobs.expired
    assert {"job_id", "status", "age_days", "space_freed"} <= answer["details"][0].keys()
    assert site.cleaned() == jobs.expired
    assert site.downloads(jobs.old) == 404
    states = [
        requests.get(
            f"{site.url}/api/cleanup/jobs/{job_id}", headers={"Authorization": f"Bearer {ADMIN}"}, timeout=60
        ).json()
        for job_id in (jobs.old, jobs.young)
    ]
    assert [state["cleaned"] for state in states] == [True, False]
    assert len(site.sql("SELECT id FROM jobs")) == 5
    assert site.downloads(jobs.young) == 200


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_jobs_are_held_restored_and_submitted_again(site: Site, jobs: Jobs) -> None:
    configuration(site, "trash: {grace_hours: 24}\n")
    site.shell(f"eemtcleanupd hold {jobs.twin} --reason 'for a paper'")
    assert jobs.twin in site.shell("eemtcleanupd holds --json")
    site.shell("eemtcleanupd clean")
    assert site.cleaned() == {jobs.old, jobs.failed}
    assert site.downloads(jobs.twin) == 200
    assert (site.folder / "uploads" / jobs.shared).exists()
    site.shell(f"eemtcleanupd release {jobs.twin}")

    # Cleaned data waits in the trash, and comes back.
    assert site.downloads(jobs.old) == 404
    assert jobs.old in site.shell("eemtcleanupd trash list --json")
    site.shell(f"eemtcleanupd trash restore {jobs.old}")
    assert site.downloads(jobs.old) == 200
    assert site.cleaned() == {jobs.failed}

    # A job is submitted again with its own parameters, while its upload is still there and afterwards.
    done = json.loads(site.shell(f"eemtcleanupd rerun {jobs.twin} --url {site.url} --json"))
    ((parameters,),) = site.sql("SELECT parameters FROM jobs WHERE id = ?", done["new_job_id"])
    assert json.loads(parameters) == {"step": 12.5}
    dem = site.folder.parent / "dem.tif"
    dem.write_bytes(b"dem")
    site.shell(f"python scripts/rerun_job.py --job-id {jobs.old} --dem {dem} --url {site.url}")
    assert len(site.sql("SELECT id FROM jobs")) == 7

    site.shell("eemtcleanupd trash purge --yes")
    assert json.loads(site.shell("eemtcleanupd trash list --json")) == []


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_documented_sql_works_after_a_run(site: Site, jobs: Jobs) -> None:
    configuration(site)
    site.sql(
        "CREATE TABLE cleanup_audit (id INTEGER PRIMARY KEY, timestamp DATETIME DEFAULT CURRENT_TIMESTAMP,"
        " job_id TEXT, action TEXT, space_freed_mb INTEGER, user TEXT)"
    )
    site.shell("eemtcleanupd clean")
    assert site.sql("SELECT count(*) FROM cleanup_audit") != [(0,)]
    # docs/how-to/migrate-from-eemt-scripts.md translates the column of the document.
    (found,) = site.sql("SELECT * FROM jobs WHERE id = ?", jobs.old)
    assert found[0] == jobs.old
    site.sql(
        "INSERT INTO cleanup_audit (job_id, action, space_freed_mb, user)"
        " VALUES ('job-123', 'deleted_results', 15360, 'auto_cleanup')"
    )
    site.sql("UPDATE jobs SET data_cleaned_at = NULL WHERE data_cleaned_at IS NOT NULL")
    site.sql("DELETE FROM cleanup_log")
    site.sql("VACUUM")
    assert site.sql("PRAGMA integrity_check") == [("ok",)]
    assert site.cleaned() == set()
    site.shell("eemtcleanupd clean")
    assert site.cleaned() == jobs.expired
    site.shell("eemtcleanupd reset --yes")
    assert site.cleaned() == set()
    assert site.downloads(jobs.young) == 200
    assert (site.folder / "temp" / jobs.running / "work.tif").exists()
