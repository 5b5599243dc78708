"""``doctor`` sees what is wrong in a real job store, says what to do, and changes nothing."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli


@pytest.fixture
def store(tmp_path: Path, run_cli: RunCli) -> JobStore:
    store = JobStore(tmp_path / "store", now=datetime.now(UTC))
    (store.path / "cleanup_config.yaml").write_text("database: {timezone: UTC}\n")
    store.job("a")
    assert run_cli("clean", cwd=store.path).returncode == 0
    return store


class Doctor:
    def __init__(self, store: JobStore, run_cli: RunCli) -> None:
        self._store = store
        self._run_cli = run_cli
        self.code = 0

    def __call__(self, check: str) -> list[dict[str, Any]]:
        done = self._run_cli("doctor", "--json", cwd=self._store.path)
        self.code = done.returncode
        assert done.stderr == ""
        return [each for each in json.loads(done.stdout) if each["check"] == check]


@pytest.fixture
def doctor(store: JobStore, run_cli: RunCli) -> Doctor:
    return Doctor(store, run_cli)


def test_a_healthy_store_has_no_problem_and_is_not_changed(store: JobStore, run_cli: RunCli) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    done = run_cli("doctor", cwd=store.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "WRONG" not in done.stdout
    assert "ok     runs: the last run was " in done.stdout
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


def test_before_the_first_run_it_says_so(tmp_path: Path, run_cli: RunCli) -> None:
    store = JobStore(tmp_path / "new")
    done = run_cli("doctor", cwd=store.path)
    assert done.returncode == 0
    assert "there has been no run yet" in done.stdout


def test_a_missing_database_is_a_problem(tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("doctor", cwd=tmp_path)
    assert done.returncode == 1
    assert "WRONG  database: " in done.stdout


def test_a_locked_database_names_who_has_it(store: JobStore, doctor: Doctor) -> None:
    with closing(sqlite3.connect(store.path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        (found,) = doctor("database")
    assert doctor.code == 1
    assert "locked" in found["words"]
    with closing(sqlite3.connect(store.path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        (found,) = doctor("database")
    assert "locked" in found["words"]
    assert f"[{os.getpid()}]" in found["advice"]


def test_a_damaged_database_is_a_problem(store: JobStore, doctor: Doctor) -> None:
    file = store.path / "jobs.db"
    data = bytearray(file.read_bytes())
    # A page of the table, not the first one: the file still opens.
    data[4096 + 8 : 4096 + 600] = b"\xff" * 592
    file.write_bytes(data)
    found = doctor("database")
    assert doctor.code == 1
    assert "damaged" in found[0]["words"] or "malformed" in found[0]["words"]


def test_deleted_files_that_are_open_are_found_with_their_holder(store: JobStore, doctor: Doctor) -> None:
    file = store.path / "results" / "big.tif"
    file.write_bytes(b"x" * 1_000_000)
    with subprocess.Popen(["tail", "-f", file], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.read(1)  # it has the file open
            assert [each["level"] for each in doctor("open files")] == ["ok"]
            file.unlink()
            (found,) = doctor("open files")
        finally:
            holder.kill()
    assert found["level"] == "warning"
    assert f"tail[{holder.pid}]" in found["words"]
    assert "1 deleted files of 9" in found["words"]


def test_a_folder_that_was_replaced_is_a_problem(store: JobStore, doctor: Doctor) -> None:
    (store.path / "results").rename(store.path / "old")
    (store.path / "results").mkdir()
    (found,) = doctor("folders")
    assert found["level"] == "problem"
    assert "is not the folder of the last run" in found["words"]


def test_a_schedule_that_is_off_and_a_dry_run_are_told(store: JobStore, doctor: Doctor) -> None:
    (store.path / "cleanup_config.yaml").write_text("dry_run: true\n")
    assert "nothing is ever deleted" in doctor("configuration")[-1]["words"]
    assert "no daemon is running" in doctor("schedule")[0]["words"]


def test_a_notifier_that_does_not_get_through_is_a_problem(
    store: JobStore, run_cli: RunCli, doctor: Doctor
) -> None:
    (store.path / "cleanup_config.yaml").write_text(
        "notifications: {ping: {enabled: true, url: 'http://127.0.0.1:9/x', timeout_seconds: 1}}\n"
    )
    run_cli("clean", cwd=store.path)
    (found,) = doctor("delivery")
    assert found["level"] == "problem"
    assert found["words"].startswith("ping does not get through (")
    assert found["advice"].endswith("notify-test ping")


def test_a_backup_folder_that_is_open_to_others_is_a_problem(store: JobStore, doctor: Doctor) -> None:
    (store.path / "cleanup_config.yaml").write_text("backup: {enabled: true}\n")
    assert doctor("backup")[0]["level"] == "ok"
    (store.path / "backup").mkdir()
    (store.path / "backup").chmod(0o777)
    (found,) = doctor("backup")
    assert (found["level"], doctor.code) == ("problem", 1)


@pytest.mark.root
def test_what_an_earlier_run_as_another_user_left_is_a_problem(store: JobStore) -> None:
    """Root without its rights is an ordinary user, whose files these are not."""
    for place in ("results/.eemtcleanupd-trash", "logs", "logs/cleanup.log"):
        os.chown(store.path / place, 12345, 12345)
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "eemtcleanupd"]
    done = subprocess.run(
        [*command, "doctor"], cwd=store.path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    trash = store.path / "results/.eemtcleanupd-trash"
    assert f"-> chown -R 0 {trash}; chmod 700 {trash}" in done.stdout
    assert f"-> chown 0 {store.path}/logs\n" in done.stdout
    assert f"-> chown 0 {store.path}/logs/cleanup.log\n" in done.stdout
    again = subprocess.run([*command, "clean"], cwd=store.path, capture_output=True, check=False, timeout=60)
    assert again.returncode != 0, "it is in the way indeed"
