"""The job database in use: what a run reports of it, when its table is refused, and where to look instead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eemtcleanupd.cleanup.other_databases import other_databases
from eemtcleanupd.errors import BreakerError, NoDatabaseError
from eemtcleanupd.events import DatabaseSummary, RunStarted
from eemtcleanupd.model import Trigger
from tests.cleanup.conftest import SCHEMA, JobStore
from tests.conftest import RunCli
from tests.requirements import needs


@pytest.fixture
def wrong(store: JobStore) -> JobStore:
    """A store whose database is empty, beside the results of a job; a subfolder has the right one."""
    store.job("a")
    (store.path / "db").mkdir()
    (store.path / "jobs.db").rename(store.path / "db/jobs.db")
    store.sql(SCHEMA)
    return store


@contextmanager
def process(script: str, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script that prints a line when it is ready, and end it afterwards."""
    command = [sys.executable, "-c", f"{script}\nprint(flush=True); input()"]
    with subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == b"\n"
            yield running
        finally:
            running.kill()


# -- the database in use ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_run_reports_its_database(store: JobStore, dry_run: bool) -> None:
    store.job("a", days=3)
    store.job("b", days=2.5)
    store.job("c", "running", days=None)
    store.job("d", days=5)
    store.sql("UPDATE jobs SET completed_at = replace(completed_at, 'T', ' ') WHERE id = 'b'")
    store.sql("UPDATE jobs SET completed_at = 'yesterday' WHERE id = 'd'")
    store.run(dry_run=dry_run)
    (started,) = store.of(RunStarted)
    assert isinstance(started, RunStarted)
    ended = store.now - timedelta(days=2.5)
    assert started.database == DatabaseSummary(str(store.path / "jobs.db"), 4, ended)


@pytest.mark.slow
def test_json_and_check_have_the_same_values(store: JobStore, run_cli: RunCli) -> None:
    store.job("a")
    options = ("--json", "--db-path", store.path / "jobs.db")
    cleaned = json.loads(run_cli("clean", "--dry-run", *options, cwd=store.path).stdout)["database"]
    assert cleaned["path"] == str(store.path / "jobs.db")
    assert (cleaned["jobs"], cleaned["last_job_ended_at"][:4]) == (1, "2026")
    assert run_cli("clean", *options, cwd=store.path).returncode == 0
    environment = {"EEMT_BASE_DIR": str(store.path)}
    checked = json.loads(run_cli("check", "--json", env=environment).stdout)["database"]
    assert checked == {**cleaned, "error": None}


# -- a table without jobs --------------------------------------------------------------------------------


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_empty_table_beside_the_results_of_jobs_stops_the_run(wrong: JobStore, dry_run: bool) -> None:
    before = wrong.snapshot()
    with pytest.raises(BreakerError) as error:
        wrong.run(dry_run=dry_run, force=True)
    assert str(wrong.path / "db/jobs.db") in str(error.value)
    assert str(wrong.path / "jobs.db") in str(error.value)
    assert wrong.snapshot() == before


def test_a_database_of_any_time_is_named(wrong: JobStore) -> None:
    os.utime(wrong.path / "db/jobs.db", (1e12, 1e12))
    with pytest.raises(BreakerError, match=str(wrong.path / "db/jobs.db")):
        wrong.run()


def test_an_archive_of_results_is_enough(store: JobStore) -> None:
    (store.path / "results/a_results.zip").touch()
    with pytest.raises(BreakerError):
        store.run()


def test_a_new_store_without_jobs_is_cleaned(store: JobStore) -> None:
    for name in ("lost+found", ".snapshots", "logs"):
        (store.path / "results" / name).mkdir()
    (store.path / "results/README").touch()
    store.upload("left by a deleted job.tif")
    store.run(paths__logs=str(store.path / "results/logs"))
    (started,) = store.of(RunStarted)
    assert isinstance(started, RunStarted)
    assert started.database == DatabaseSummary(str(store.path / "jobs.db"), 0, None)


def test_results_that_appear_beside_a_table_that_stays_empty_stop_the_next_run(store: JobStore) -> None:
    store.run()
    (store.path / "results/a").mkdir()
    with pytest.raises(BreakerError):
        store.run()
    store.request(Trigger.TRASH)
    with pytest.raises(BreakerError):
        store.run()


@pytest.mark.slow
def test_an_operator_can_accept_an_empty_table_until_it_has_jobs(store: JobStore, run_cli: RunCli) -> None:
    (store.path / "results/somebodys").mkdir()
    with pytest.raises(BreakerError):
        store.run()
    assert run_cli("roots", "--accept", cwd=store.path).returncode == 0
    store.run()
    store.run()
    store.job("a", days=1)
    store.run()
    store.sql("DELETE FROM jobs")
    with pytest.raises(BreakerError):
        store.run()


@pytest.mark.parametrize(
    ("command", "code"), [("clean", 5), ("clean --dry-run", 5), ("check", 5), ("doctor", 1)]
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_each_command_names_the_places(
    wrong: JobStore, run_cli: RunCli, command: str, code: int, more: list[str]
) -> None:
    done = run_cli(*command.split(), *more, cwd=wrong.path)
    assert done.returncode == code
    assert str(wrong.path / "db/jobs.db") in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if more:
        json.loads(done.stdout)


# -- where to look ---------------------------------------------------------------------------------------


def test_a_missing_database_is_an_error_with_the_places(wrong: JobStore, run_cli: RunCli) -> None:
    (wrong.path / "jobs.db").unlink()
    with pytest.raises(NoDatabaseError, match=str(wrong.path / "db/jobs.db")):
        wrong.run()
    checked = run_cli("check", "--json", cwd=wrong.path)
    assert checked.returncode == 0
    assert str(wrong.path / "db/jobs.db") in json.loads(checked.stdout)["database"]["error"]


@pytest.mark.parametrize("content", ["", "VACUUM", "CREATE TABLE other (id)"])
def test_a_database_without_a_job_table_is_an_error_with_the_places(
    wrong: JobStore, run_cli: RunCli, content: str
) -> None:
    """The repository of the web interface contains such a file."""
    (wrong.path / "jobs.db").write_bytes(b"")
    if content:
        wrong.sql(content)
    with pytest.raises(NoDatabaseError, match=str(wrong.path / "db/jobs.db")):
        wrong.run()
    checked = run_cli("check", "--json", cwd=wrong.path)
    assert checked.returncode == 3
    assert str(wrong.path / "db/jobs.db") in json.loads(checked.stdout)["database"]["error"]
    findings = json.loads(run_cli("doctor", "--json", cwd=wrong.path).stdout)
    (problem,) = [each for each in findings if each["level"] == "problem"]
    assert str(wrong.path / "db/jobs.db") in problem["message"]


def test_the_newest_of_the_usual_places_is_named_once_and_no_empty_file(store: JobStore) -> None:
    for name, days in (("db", 3), ("web-interface", 1), ("data", 2)):
        (store.path / name).mkdir()
        file = store.path / name / "jobs.db"
        file.write_bytes(b"x" if name != "data" else b"")
        moment = datetime.now(UTC).timestamp() - 86400 * days
        os.utime(file, (moment, moment))
    with process(f"open({str(store.path / 'web-interface/jobs.db')!r}).fileno()", store.path):
        found = [
            each.path for each in other_databases(store.config()) if store.path in Path(each.path).parents
        ]
    assert found == [str(store.path / "web-interface/jobs.db")]


def test_the_database_that_a_process_has_open_is_named_with_it(store: JobStore, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere/jobs.db"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(b"x")
    (store.path / "link").symlink_to(store.path / "jobs.db")
    with process(f"files = [open({str(elsewhere)!r}), open('link')]", store.path) as running:
        found = {each.path: each for each in other_databases(store.config())}
    assert f"[{running.pid}]" in str(found[str(elsewhere)].process)
    assert found[str(elsewhere)].is_of_store
    assert str(store.path / "jobs.db") not in found


@pytest.fixture
def private(wrong: JobStore) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a script in the store, in a mount namespace with a ``/tmp`` that has a database."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a mount namespace")
    store = Path("/mnt/store")

    def run(script: str) -> subprocess.CompletedProcess[str]:
        whole = f"""
            set -e; trap 'kill $(jobs -p) 2>/dev/null || :' EXIT
            mount -t tmpfs none /mnt; cp -rp '{wrong.path}' {store}; cd {store}
            mkdir /mnt/program; mount --bind '{PROGRAM}' /mnt/program
            mount -t tmpfs none /tmp; cp db/jobs.db /tmp/; rm -r db
            mkdir -p '{PROGRAM}'; mount --bind /mnt/program '{PROGRAM}'  # it can lie in /tmp
            {script}
        """
        command = ["unshare", "-m", "bash", "-c", whole]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run


CLI = f"'{sys.executable}' -m eemtcleanupd"
PROGRAM = Path(__file__).parents[2]


@pytest.mark.slow
@needs("unshare")
@pytest.mark.root
def test_the_database_in_tmp_is_named(private: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    done = private(f"{CLI} clean")
    assert done.returncode == 5
    assert "/tmp/jobs.db" in done.stderr
    # Even root, as the owner of this store, does not open a file where everybody can write.
    done = private(f"chmod 1777 /tmp; {CLI} doctor --json --db-path /tmp/jobs.db")
    assert json.loads(done.stdout)[2]["level"] == "problem"


@needs("unshare")
@pytest.mark.root
def test_a_database_in_the_tmp_of_a_service_or_container_is_named(
    private: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    """The application has a /tmp of its own, and its working folder contains our results."""
    done = private(
        f"""
        mkfifo ready
        unshare -m bash -c 'mount -t tmpfs none /tmp; cp jobs.db /tmp/jobs.db; echo >ready; exec sleep 60' &
        read <ready; rm ready /tmp/jobs.db
        until [ "$(cat /proc/$!/comm)" = sleep ]; do :; done
        {CLI} doctor --json
        """
    )
    (jobs,) = [each for each in json.loads(done.stdout) if each["check"] == "jobs"]
    assert jobs["level"] == "problem"
    assert "/tmp/jobs.db" in jobs["message"]
    assert "sleep[" in jobs["message"]


@needs("unshare")
@pytest.mark.root
def test_doctor_warns_of_another_database_of_the_web_interface(
    private: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    done = private(
        f"""
        mv /tmp/jobs.db .; mkfifo ready
        unshare -m bash -c 'mount -t tmpfs none /tmp; cp jobs.db /tmp/jobs.db; echo >ready; exec sleep 60' &
        read <ready; rm ready
        {CLI} doctor --json
        """
    )
    levels = [each["level"] for each in json.loads(done.stdout) if each["check"] == "jobs"]
    assert levels == ["ok", "warning"]


@needs("unshare")
@pytest.mark.root
def test_a_link_in_tmp_moves_the_database_of_the_web_interface(
    private: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    insert = "INSERT INTO jobs (id, workflow_type, status) VALUES ('b', 'sol', 'pending')"
    page = (Path(__file__).parents[2] / "docs/how-to/web-interface-database.md").read_text()
    commands = page.split("```sh\n")[1].split("```")[0].replace("/srv/eemt", "/mnt/store")
    done = private(
        f"""
        {commands}
        '{sys.executable}' -c "import sqlite3
with sqlite3.connect('/tmp/jobs.db') as c: c.execute(\\"{insert}\\"); import os; print(os.listdir())"
        echo /tmp/jobs.db*
        {CLI} check --json
        """
    )
    assert done.returncode == 0, done.stderr
    listed, in_tmp, checked = done.stdout.split("\n", 2)
    assert "jobs.db-journal" in listed
    assert in_tmp == "/tmp/jobs.db"
    assert json.loads(checked)["database"]["jobs"] == 2
