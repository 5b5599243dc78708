"""``doctor`` finds problems in a real job store, advises how to fix them, and changes nothing."""

from __future__ import annotations

import json
import os
import re
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
    assert "FAIL" not in done.stdout
    assert "OK    runs: " in done.stdout
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


def test_a_store_without_runs_is_no_problem(tmp_path: Path, run_cli: RunCli) -> None:
    store = JobStore(tmp_path / "new")
    done = run_cli("doctor", cwd=store.path)
    assert done.returncode == 0
    assert "WARN  runs: " in done.stdout
    assert "last run" not in done.stdout


@pytest.mark.parametrize("command", ["doctor", "check"])
def test_a_cluster_without_its_package_is_warned_of(store: JobStore, command: str) -> None:
    cluster = "{scheduler: 'tls://127.0.0.1:9', tls_ca_file: a, tls_cert_file: b, tls_key_file: c}"
    (store.path / "cleanup_config.yaml").write_text(f"performance: {{executor: dask, dask: {cluster}}}\n")
    hidden = "import sys; sys.modules['distributed'] = None; from eemtcleanupd.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hidden, command],
        cwd=store.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"WARN.* performance\.executor: dask .*distributed", done.stdout)


def test_fix_prepares_a_new_database_for_the_documented_sql(tmp_path: Path, run_cli: RunCli) -> None:
    store = JobStore(tmp_path / "new")
    store.job("a")
    before = json.loads(run_cli("doctor", "--json", cwd=store.path).stdout)
    assert any("--fix" in finding["advice"] for finding in before if finding["check"] == "database")
    assert not store.sql("SELECT name FROM sqlite_master WHERE name LIKE 'cleanup%'")
    for _ in range(2):
        done = run_cli("doctor", "--fix", "--json", cwd=store.path)
        assert (done.returncode, done.stderr) == (0, "")
        findings = json.loads(done.stdout)
        assert not any("--fix" in finding["advice"] for finding in findings)
    assert store.sql("SELECT data_cleaned_at, data_size_mb, cleanup_summary FROM jobs") == [(None, 0.0, None)]
    store.sql("DELETE FROM cleanup_log")
    log = (store.path / "logs/cleanup_audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["action"] for line in log] == ["database_prepared"]
    assert store.results("a").exists()
    assert run_cli("clean", cwd=store.path, env={"EEMT_CLEANUP_MIN_IDLE_MINUTES": "0"}).returncode == 0
    assert run_cli("audit", "verify", cwd=store.path).returncode == 0


def test_fix_adds_nothing_to_an_empty_table_beside_jobs(tmp_path: Path, run_cli: RunCli) -> None:
    store = JobStore(tmp_path / "new")
    store.job("a")
    store.sql("DELETE FROM jobs")
    assert run_cli("doctor", "--fix", cwd=store.path).returncode == 5
    assert store.sql("SELECT name FROM sqlite_master WHERE type = 'table'") == [("jobs",)]


def test_fix_without_a_job_table_adds_nothing(tmp_path: Path, run_cli: RunCli) -> None:
    store = JobStore(tmp_path / "new", schema="CREATE TABLE other (id TEXT)")
    assert run_cli("doctor", "--fix", cwd=store.path).returncode == 3
    assert store.sql("SELECT name FROM sqlite_master") == [("other",)]
    assert not (store.path / "logs").exists()


def test_a_missing_database_is_a_problem(tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("doctor", cwd=tmp_path)
    assert done.returncode == 1
    assert "FAIL  database: " in done.stdout


@pytest.mark.slow
def test_a_locked_database_is_reported_with_the_process_that_uses_it(store: JobStore, doctor: Doctor) -> None:
    with closing(sqlite3.connect(store.path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        (found,) = doctor("database")
    assert doctor.code == 1
    assert "locked" in found["message"]
    with closing(sqlite3.connect(store.path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        (found,) = doctor("database")
    assert "locked" in found["message"]
    assert f"[{os.getpid()}]" in found["advice"]


def test_both_time_zones_are_shown_and_a_contradiction_is_a_problem(store: JobStore, doctor: Doctor) -> None:
    finding = doctor("database")[-1]
    assert (finding["level"], doctor.code) == ("ok", 0)
    assert "unknown" in finding["message"]
    store.job("b", "failed", days=1)
    store.sql("UPDATE jobs SET created_at = '2026-01-20 12:00:00', started_at = '2026-01-20T12:07:00'")
    finding = doctor("database")[-1]
    assert (finding["level"], doctor.code) == ("ok", 0)
    assert finding["message"].count("UTC+00:00") == 2
    (store.path / "cleanup_config.yaml").write_text("database: {timezone: Asia/Tokyo}\n")
    finding = doctor("database")[-1]
    assert (finding["level"], doctor.code) == ("problem", 1)
    for part in ("Asia/Tokyo", "UTC+09:00", "UTC+00:00"):
        assert part in finding["message"]
    assert "database.timezone" in finding["advice"]


def test_a_damaged_database_is_a_problem(store: JobStore, doctor: Doctor) -> None:
    file = store.path / "jobs.db"
    data = bytearray(file.read_bytes())
    # A page of the table, not the first one: the file still opens.
    data[4096 + 8 : 4096 + 600] = b"\xff" * 592
    file.write_bytes(data)
    (found,) = doctor("database")
    assert (found["level"], doctor.code) == ("problem", 1)


def test_deleted_files_that_a_process_holds_open_are_reported(store: JobStore, doctor: Doctor) -> None:
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
    assert f"tail[{holder.pid}]" in found["message"]
    assert re.search(r"\b9\d\d(\.\d)? KB\b", found["message"])


def test_orphans_are_counted_with_what_the_key_would_delete(store: JobStore, doctor: Doctor) -> None:
    (found,) = doctor("orphans")
    assert found["level"] == "ok"
    (store.path / "uploads/forgotten.tif").write_bytes(b"x" * 100_000)
    (found,) = doctor("orphans")
    assert found["level"] == "warning"
    assert "1 orphan" in found["message"]
    assert "would delete 0 of them" in found["advice"]
    (store.path / "cleanup_config.yaml").write_text("orphans: {delete_after_hours: 0}\n")
    (found,) = doctor("orphans")
    assert found["level"] == "ok"
    assert "The next run deletes 1 of them" in found["message"]


def test_a_folder_that_was_replaced_is_a_problem(store: JobStore, doctor: Doctor) -> None:
    (store.path / "results").rename(store.path / "old")
    (store.path / "results").mkdir()
    (found,) = doctor("folders")
    assert found["level"] == "problem"
    assert str(store.path / "results") in found["message"]


def test_a_missing_daemon_and_dry_run_are_warnings(store: JobStore, doctor: Doctor) -> None:
    (store.path / "cleanup_config.yaml").write_text("dry_run: true\n")
    assert "dry_run" in doctor("configuration")[-1]["message"]
    assert [finding["level"] for finding in doctor("schedule")] == ["warning"]


def test_a_notifier_that_fails_is_a_problem(store: JobStore, run_cli: RunCli, doctor: Doctor) -> None:
    (store.path / "cleanup_config.yaml").write_text(
        "notifications: {ping: {enabled: true, url: 'http://127.0.0.1:9/x', timeout_seconds: 1}}\n"
    )
    run_cli("clean", cwd=store.path)
    (found,) = doctor("delivery")
    assert found["level"] == "problem"
    assert "ping" in found["message"]
    assert "notify-test ping" in found["advice"]


def test_a_backup_folder_that_others_can_write_is_a_problem(store: JobStore, doctor: Doctor) -> None:
    (store.path / "cleanup_config.yaml").write_text("backup: {enabled: true}\n")
    assert doctor("backup")[0]["level"] == "ok"
    (store.path / "backup").mkdir()
    (store.path / "backup").chmod(0o777)
    (found,) = doctor("backup")
    assert (found["level"], doctor.code) == ("problem", 1)


@pytest.mark.slow
@pytest.mark.root
def test_files_left_by_a_run_of_another_user_are_a_problem(store: JobStore) -> None:
    """Root without capabilities is an ordinary user, who does not own these files."""
    for place in ("results/.eemtcleanupd-trash", "logs", "logs/cleanup.log"):
        os.chown(store.path / place, 12345, 12345)
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "eemtcleanupd"]
    done = subprocess.run(
        [*command, "doctor"], cwd=store.path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    trash = store.path / "results/.eemtcleanupd-trash"
    assert f"`chown -Rh 0 {trash}`, then `chmod 700 {trash}`" in done.stdout
    assert f"`chown -h 0 {store.path}/logs`" in done.stdout
    assert f"`chown -h 0 {store.path}/logs/cleanup.log`" in done.stdout
    again = subprocess.run([*command, "clean"], cwd=store.path, capture_output=True, check=False, timeout=60)
    assert again.returncode != 0, "the reported files do prevent a run"
