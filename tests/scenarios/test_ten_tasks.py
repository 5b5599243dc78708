"""Ten tasks of an operator who knows other command line tools but has read no document of this one.

Each task uses what ``--help`` shows, with abbreviated ids, and a test checks that the task is really done.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import requests
from pytest_httpserver import HTTPServer

from tests.commands import Commands
from tests.conftest import RunCli
from tests.ports import free_port
from tests.web.conftest import eventually

pytestmark = pytest.mark.slow

YOUNG = "status = 'completed' AND completed_at > datetime('now', '-5 days')"
OLD = "status = 'completed' AND completed_at BETWEEN '2000' AND datetime('now', '-9 days')"


@dataclass
class Operator:
    """An operator in the folder of a demo store."""

    store: Path
    run: RunCli

    def do(self, *args: str, code: int = 0) -> str:
        """Run a command; return what it prints."""
        done = self.run(*args, cwd=self.store)
        assert done.returncode == code, (args, done.stdout, done.stderr)
        return done.stdout

    def ask(self, *args: str) -> Any:
        """Run a command with ``--json``; return its document."""
        return json.loads(self.do(*args, "--json"))

    def configure(self, text: str) -> None:
        """Add lines to the configuration."""
        with (self.store / "cleanup_config.yaml").open("a") as file:
            file.write(f"\n{text}\n")

    def job(self, condition: str) -> str:
        """Return the id of a job that has results."""
        with closing(sqlite3.connect(self.store / "jobs.db")) as database:
            rows = database.execute(f"SELECT id FROM jobs WHERE id NOT LIKE '%/%' AND {condition}")
            return next(str(job) for (job,) in rows if self.results(job).is_dir())

    def results(self, job: str) -> Path:
        return self.store / "results" / job


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Path:
    """A demo store that no test changes."""
    folder = tmp_path_factory.mktemp("demo")
    done = commands.run(["demo", "store"], env={"HOME": str(folder)}, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "store"


@pytest.fixture
def operator(demo: Path, tmp_path: Path, run_cli: RunCli) -> Operator:
    store = tmp_path / "store"
    shutil.copytree(demo, store, symlinks=True)
    return Operator(store, run_cli)


def test_find_out_why_a_job_is_kept(operator: Operator) -> None:
    job = operator.job(YOUNG)
    answer = operator.ask("why", job[:8])
    assert (answer["job_id"], answer["would_clean"]) == (job, False)
    assert answer["kept_until"] is not None


def test_keep_a_job(operator: Operator) -> None:
    job = operator.job(OLD)
    operator.do("hold", job[:8], "--for", "4w", "--reason", "figures of the paper")
    assert operator.ask("why", job[:8])["hold"] is not None
    operator.do("clean", "--quiet")
    assert operator.results(job).is_dir()


def test_free_space_tonight(operator: Operator) -> None:
    operator.configure("trash: {grace_hours: 48}")
    planned = operator.ask("clean", "-n", "--success-retention", "2d")
    done = operator.ask("clean", "--success-retention", "2d")
    assert done["cleaned_jobs"] == planned["cleaned_jobs"]
    assert done["space_freed"]["bytes"] == 0
    waiting = done["space_trashed"]["bytes"]
    assert waiting > 0
    # Of a file with another link outside, nothing is freed.
    assert 0.9 * waiting < operator.ask("trash", "purge", "--yes")["space_freed"]["bytes"] <= waiting


def test_get_a_job_back(operator: Operator) -> None:
    operator.configure("trash: {grace_hours: 48}")
    job = operator.job(OLD)
    operator.do("clean", "--quiet")
    assert not operator.results(job).exists()
    assert job in {each["job_id"] for each in operator.ask("trash", "list")}
    operator.do("trash", "restore", job[:8])
    assert operator.results(job).is_dir()
    operator.do("clean", "--quiet")
    assert operator.results(job).is_dir()


def test_see_whether_last_night_worked(operator: Operator) -> None:
    run = operator.ask("clean")["run_id"]
    last = operator.ask("status")["last_run"]
    assert (last["run_id"], last["outcome"]) == (run, "success")
    assert operator.ask("history", run[:-2])["run_id"] == run


def test_find_out_what_72_hours_would_save(operator: Operator) -> None:
    operator.do("clean", "--quiet")  # a run measures the jobs that it keeps
    points = operator.ask("report", "--what-if")["successful"]["points"]
    kept = {point["retention_hours"]: point["kept"]["bytes"] for point in points}
    assert kept[72] < kept[168]


def test_silence_a_known_warning(operator: Operator) -> None:
    warned = {each["job_id"] for each in operator.ask("clean", "-n")["skipped"]}
    job = min(each for each in warned if "/" not in each)
    operator.do("acknowledge", job[:8], "--reason", "ran before the upgrade")
    after = operator.ask("clean", "-n")
    assert {each["job_id"] for each in after["skipped"]} == warned - {job}
    assert after["acknowledged"] == 1


def test_add_a_slack_channel_and_test_it(operator: Operator, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/hook", method="POST").respond_with_data("ok")
    operator.configure(
        f"notifications: {{slack: {{enabled: true, webhook_url: '{httpserver.url_for('/hook')}'}}}}"
    )
    operator.do("notify-test", "slack")
    ((request, _),) = httpserver.log
    assert "text" in request.get_json()


@pytest.fixture
def url(operator: Operator) -> str:
    address = f"127.0.0.1:{free_port()}"
    operator.configure(f"api: {{enabled: true, listen: '{address}', tokens_file: ./tokens.json}}")
    return f"http://{address}/api/cleanup"


def test_give_a_colleague_read_access(operator: Operator, url: str) -> None:
    token = operator.do("token", "add", "ann", "--scope", "read").split()[0]
    headers = {"Authorization": f"Bearer {token}"}
    with daemon(operator) as process:
        eventually(lambda: requests.get(f"{url}/status", headers=headers, timeout=60))
        assert requests.get(f"{url}/runs", headers=headers, timeout=60).status_code == HTTPStatus.OK
        refused = requests.post(url, headers=headers, timeout=60)
        assert refused.status_code == HTTPStatus.FORBIDDEN
        operator.do("stop")
        assert process.wait(60) == 0


def test_take_the_daemon_down_for_an_hour(operator: Operator) -> None:
    with daemon(operator) as process:
        eventually(lambda: operator.do("status", "--healthy"))
        operator.do("stop")
        assert process.wait(60) == 0
    operator.do("status", "--healthy", code=1)
    with daemon(operator) as process:
        eventually(lambda: operator.do("status", "--healthy"))
        operator.do("stop")
        assert process.wait(60) == 0


def daemon(operator: Operator) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "eemtcleanupd", "run"],
        cwd=operator.store,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
