"""``reset`` marks all jobs as not cleaned, after a copy of the database."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from eemtcleanupd.store.lock import run_lock
from eemtcleanupd.store.sqlite import SqliteDatabase
from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli
from tests.postgres import Server


@pytest.fixture
def store(tmp_path: Path, run_cli: RunCli) -> JobStore:
    store = JobStore(tmp_path / "store", now=datetime.now(UTC))
    (store.path / "cleanup_config.yaml").write_text("database: {timezone: UTC}\n")
    store.job("a")
    store.job("live", "running", days=None)
    assert run_cli("clean", cwd=store.path).returncode == 0
    return store


def test_reset_marks_jobs_clears_the_log_and_keeps_a_copy(store: JobStore, run_cli: RunCli) -> None:
    done = run_cli("reset", "--yes", "--json", cwd=store.path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["jobs"], answer["log_lines"]) == (1, 1)
    assert store.cleaned() == set()
    assert store.sql("SELECT count(*) FROM cleanup_log") == [(0,)]
    assert store.sql("SELECT count(*) FROM cleanup_runs") == [(1,)]
    with closing(sqlite3.connect(answer["copy"])) as copy:
        assert copy.execute("SELECT id FROM jobs WHERE data_cleaned_at IS NOT NULL").fetchall() == [("a",)]
        assert copy.execute("SELECT count(*) FROM cleanup_log").fetchone() == (1,)


def test_the_copy_has_the_permissions_of_the_database(store: JobStore, run_cli: RunCli) -> None:
    (store.path / "jobs.db").chmod(0o600)
    answer = json.loads(run_cli("reset", "--yes", "--json", cwd=store.path).stdout)
    assert Path(answer["copy"]).stat().st_mode & 0o777 == 0o600


def test_a_second_reset_of_the_same_second_keeps_the_first_copy(store: JobStore) -> None:
    database = store.open()
    copies = {database.snapshot_before_reset("id", store.now) for _ in range(2)}
    assert len(copies) == 2
    assert all(Path(copy).exists() for copy in copies)


def test_reset_on_a_server_copies_what_it_deletes_into_tables(
    tmp_path: Path, postgres: Server, run_cli: RunCli
) -> None:
    store = JobStore(tmp_path / "store", now=datetime.now(UTC), url=postgres.create())
    (store.path / "cleanup_config.yaml").write_text(
        f"database: {{timezone: UTC}}\npaths: {{database: '{store.url}'}}\n"
    )
    store.job("a")
    store.job("live", "running", days=None)
    for command in (["clean"], ["reset", "--yes"], ["reset", "--yes"]):
        done = run_cli(*command, cwd=store.path)
        assert done.returncode == 0, done.stderr
    assert store.cleaned() == set()
    assert store.sql("SELECT count(*) FROM cleanup_log") == [(0,)]
    copies = [str(name) for name in store.tables() if str(name).startswith("cleanup_before_reset_")]
    jobs = [name for name in copies if name.endswith("_jobs")]
    assert (len(copies), len(jobs)) == (4, 2)
    assert sorted(store.sql(f"SELECT id FROM {name}") for name in jobs) == [[], [("a",)]]


def test_reset_is_recorded_in_both_audit_trails(store: JobStore, run_cli: RunCli) -> None:
    run_cli("reset", "--yes", cwd=store.path)
    assert '"action": "reset"' in (store.path / "logs" / "cleanup_audit.jsonl").read_text()
    assert store.sql("SELECT count(*) FROM cleanup_audit WHERE action = 'reset'") == [(1,)]


def test_a_report_counts_no_data_that_was_cleaned_before_the_reset(store: JobStore, run_cli: RunCli) -> None:
    run_cli("reset", "--yes", cwd=store.path)
    usage = json.loads(run_cli("report", "--json", cwd=store.path).stdout)["usage"]
    assert (usage["jobs"], usage["bytes"], usage["measured_jobs"]) == (2, 0, 0)


@pytest.mark.slow
def test_the_next_run_cleans_the_same_jobs_again(store: JobStore, run_cli: RunCli) -> None:
    run_cli("reset", "--yes", cwd=store.path)
    assert run_cli("clean", cwd=store.path).returncode == 0
    assert store.cleaned() == {"a"}


def test_reset_without_yes_is_refused(store: JobStore, run_cli: RunCli) -> None:
    done = run_cli("reset", cwd=store.path)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert store.cleaned() == {"a"}


def test_reset_during_a_run_is_refused(store: JobStore, run_cli: RunCli) -> None:
    with run_lock(SqliteDatabase(store.path / "jobs.db", busy_timeout_seconds=1), "a-run", store.now):
        done = run_cli("reset", "--yes", cwd=store.path)
    assert done.returncode == 4
    assert store.cleaned() == {"a"}
    assert list(store.path.glob("*.before-reset-*")) == []
