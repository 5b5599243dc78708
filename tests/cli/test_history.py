"""``history``, ``hold``, ``release`` and ``roots`` on the command line."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from eemtcleanupd.store.lock import run_lock
from tests.cleanup.conftest import JobStore
from tests.cleanup.test_recovery import run_and_die
from tests.conftest import Aged, RunCli, disk_bytes, in_kb


def test_a_limit_that_no_database_can_hold_is_bad_usage(sample_store: Path, run_cli: RunCli) -> None:
    assert run_cli("history", "--limit", "9" * 20, cwd=sample_store).returncode == 2


def test_history_lists_runs_and_shows_one(sample_store: Path, aged: Aged, run_cli: RunCli) -> None:
    store = aged(sample_store, 10)
    assert run_cli("history", cwd=store).stdout.count("\n") == 1
    assert json.loads(run_cli("history", "--json", cwd=store).stdout) == []
    job = "ab1034c4-ce51-4d3a-9b8c-a89a7af0a326"
    size = disk_bytes(store / "results" / job)
    run_cli("clean", cwd=store)
    run_cli("clean", cwd=store)
    listed = json.loads(run_cli("history", "--json", cwd=store).stdout)
    assert [(run["outcome"], run["successful"], run["failed"]) for run in listed] == [
        ("success", 0, 0),
        ("success", 3, 3),
    ]
    assert "manual" in run_cli("history", cwd=store).stdout
    run_id = listed[1]["run_id"]
    shown = run_cli("history", run_id, cwd=store).stdout
    assert run_id in shown
    assert "3 successful and 3 failed" in shown
    assert f"results/{job}/ ({in_kb(size)})" in shown
    jobs = json.loads(run_cli("history", run_id, "--json", cwd=store).stdout)["jobs"]
    assert len(jobs) == 6
    unknown = run_cli("history", "nonsense", cwd=store)
    assert unknown.returncode == 1
    assert "nonsense" in unknown.stderr


def test_a_run_that_was_killed_is_not_in_progress(tmp_path: Path, run_cli: RunCli) -> None:
    store = JobStore(tmp_path / "store")
    store.job("a")
    assert run_and_die(store, lambda: any(store.path.glob("results/.eemtcleanupd-trash/*.deleting")))

    def shown() -> list[object]:
        documents = [
            json.loads(run_cli(name, "--json", cwd=store.path).stdout) for name in ("history", "status")
        ]
        return [documents[0][0]["outcome"], documents[1]["last_run"]["outcome"]]

    assert shown() == ["killed", "killed"]
    with closing(store.open()) as database, run_lock(database, "another-run", store.now):
        assert shown() == [None, None]  # it could be this one
    store.run()
    assert store.sql("SELECT outcome FROM cleanup_runs ORDER BY number") == [("killed",), ("success",)]


def test_a_held_job_is_kept_until_it_is_released(sample_store: Path, aged: Aged, run_cli: RunCli) -> None:
    store = aged(sample_store, 10)
    job = "ab1034c4-ce51-4d3a-9b8c-a89a7af0a326"
    assert run_cli("hold", job, "--reason", "paper in review", cwd=store).returncode == 0
    run_cli("clean", cwd=store)
    assert (store / "results" / job).is_dir()
    assert (store / f"results/{job}_results.zip").exists()
    assert run_cli("release", job, cwd=store).returncode == 0
    assert run_cli("release", job, cwd=store).returncode == 1
    run_cli("clean", cwd=store)
    assert not (store / "results" / job).exists()


def test_the_end_of_a_hold_must_be_in_the_future(sample_store: Path, run_cli: RunCli) -> None:
    for when in ("soon", "2020-01-01"):
        done = run_cli("hold", "job", "--until", when, cwd=sample_store)
        assert done.returncode == 2
        assert when in done.stderr
    assert json.loads(run_cli("holds", "--json", cwd=sample_store).stdout) == []


def test_a_replaced_folder_can_be_accepted(sample_store: Path, aged: Aged, run_cli: RunCli) -> None:
    store = aged(sample_store, 10)
    run_cli("clean", cwd=store)
    (store / "results").rename(store / "old-results")
    (store / "results").mkdir()
    refused = run_cli("clean", cwd=store)
    assert refused.returncode == 3
    assert "`eemtcleanupd roots --accept`" in refused.stderr
    assert run_cli("roots", "--accept", cwd=store).returncode == 0
    assert run_cli("clean", cwd=store).returncode == 0
