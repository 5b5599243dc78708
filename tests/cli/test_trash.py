"""``trash`` and ``holds`` as their user has them."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli


@pytest.fixture
def store(tmp_path: Path, run_cli: RunCli) -> JobStore:
    store = JobStore(tmp_path / "store", now=datetime.now(UTC))
    (store.path / "cleanup_config.yaml").write_text("trash: {grace_hours: 24}\ndatabase: {timezone: UTC}\n")
    store.job("a")
    store.job("b", "failed")
    assert run_cli("clean", cwd=store.path).returncode == 0
    return store


def test_it_lists_what_waits_and_until_when(store: JobStore, run_cli: RunCli) -> None:
    assert "a (completed, " in run_cli("trash", "list", cwd=store.path).stdout
    listed = json.loads(run_cli("trash", "list", "--json", cwd=store.path).stdout)
    assert {each["job_id"] for each in listed} == {"a", "b"}
    assert all(each["bytes"] > 0 and each["purge_after"] and each["artifacts"] for each in listed)


def test_it_restores_a_job_holds_it_and_says_so(store: JobStore, run_cli: RunCli) -> None:
    done = run_cli("trash", "restore", "a", cwd=store.path)
    assert done.returncode == 0, done.stderr
    assert "Restored results/a/\nJob a is held until " in done.stdout
    assert store.results("a").exists()
    assert "a until" in run_cli("holds", cwd=store.path).stdout
    assert run_cli("clean", cwd=store.path).returncode == 0
    assert store.results("a").exists()
    (held,) = json.loads(run_cli("holds", "--json", cwd=store.path).stdout)
    assert (held["job_id"], held["reason"]) == ("a", "restored from the trash")
    log = (store.path / "logs" / "cleanup_audit.jsonl").read_text()
    assert '"action": "restoring"' in log
    assert '"action": "restored"' in log


def test_restoring_nothing_is_an_error_in_a_line(store: JobStore, run_cli: RunCli) -> None:
    done = run_cli("trash", "restore", "nobody", cwd=store.path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "eemtcleanupd: error: nothing of job nobody is in the trash\n"


def test_it_purges_at_once_and_then_is_empty(store: JobStore, run_cli: RunCli) -> None:
    assert json.loads(run_cli("trash", "purge", "--older-than", "1", "--json", cwd=store.path).stdout) == {
        "purged": 0,
        "bytes_freed": 0,
        "errors": 0,
    }
    done = run_cli("trash", "purge", cwd=store.path)
    assert done.returncode == 0
    assert done.stdout.startswith("Purged 2 items, ")
    assert run_cli("trash", "list", cwd=store.path).stdout == "The trash is empty.\n"


def test_on_a_terminal_it_asks_before_it_purges(store: JobStore) -> None:
    import os
    import pty

    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "eemtcleanupd", "trash", "purge"],
        cwd=store.path,
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.write(leader, b"n\n")
    out, _ = process.communicate(timeout=60)
    os.close(leader)
    os.close(follower)
    assert b"Purge the trash?" in out
    assert process.returncode != 0
    assert len(store.trash()) == 2


def test_a_purge_where_dry_run_is_set_deletes_nothing(store: JobStore, run_cli: RunCli) -> None:
    (store.path / "cleanup_config.yaml").write_text("dry_run: true\n")
    before = store.snapshot()
    done = run_cli("trash", "purge", "--yes", cwd=store.path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[DRY RUN] Would purge 2 items (")
    assert store.snapshot() == before


@pytest.mark.parametrize(
    ("job", "warning"),
    [
        ("typo", "there is no job typo in the database"),
        ("a", "job a is in the trash, and stays there while it is held: trash restore brings it back"),
        ("gone", "the data of job gone has been cleaned already"),
        ("begun", "a run had begun to clean job begun"),
        ("young", None),
    ],
)
def test_a_hold_that_comes_too_late_says_so(
    store: JobStore, run_cli: RunCli, job: str, warning: str | None
) -> None:
    for name in ("gone", "begun", "young"):
        store.job(name, days=1)
    store.sql("UPDATE jobs SET data_cleaned_at = '2026-06-01T00:00:00' WHERE id = 'gone'")
    store.sql(
        "INSERT INTO cleanup_intents (id, run_id, kind, state, job_id, artifacts, created_at)"
        " VALUES ('x.1', 'x', 'job', 'open', 'begun', '[]', '2026-06-01 00:00:00')"
    )
    done = run_cli("hold", job, cwd=store.path)
    assert done.returncode == 0
    assert done.stdout == f"Job {job} is held for ever\n"
    assert (warning in done.stderr) if warning else (done.stderr == "")
