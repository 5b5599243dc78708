"""Why a run failed or did not begin is shown once, and is still known after a restart."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eemtcleanupd.errors import BreakerError, LockHeldError
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.lock import run_lock
from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli
from tests.daemon.conftest import DaemonHarness


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path / "store")
    store.run()
    return store


def test_a_clock_that_leapt_is_refused_again_although_the_refusal_is_recorded(store: JobStore) -> None:
    ledger = Ledger(store.open())
    before = (ledger.last_run_at(), ledger.last_cleanup_at())
    store.now += timedelta(days=200)
    for _ in range(2):
        with pytest.raises(BreakerError) as refused:
            store.run()
    newest, *others = ledger.runs(5)
    assert (newest.outcome, newest.error) == ("refused", str(refused.value))
    assert [run.outcome for run in others] == ["refused", "success"]
    assert (ledger.last_run_at(), ledger.last_cleanup_at()) == before


def test_a_dry_run_and_a_run_beside_another_one_leave_no_record(store: JobStore) -> None:
    before = store.content()
    with run_lock(store.open(), "other", store.now), pytest.raises(LockHeldError):
        store.run()
    store.now += timedelta(days=200)
    with pytest.raises(BreakerError):
        store.run(dry_run=True)
    assert store.content() == before


def test_a_refused_first_run_creates_no_ledger(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "new")
    before = store.content()
    shutil.rmtree(store.path / "temp")
    (store.path / "temp").write_text("no folder")
    with pytest.raises(Exception, match="temp"):
        store.run()
    assert store.content() == before


def test_status_shows_the_reason_once_without_a_daemon(tmp_path: Path, run_cli: RunCli) -> None:
    store = JobStore(tmp_path / "real", now=datetime.now(UTC))
    (store.path / "cleanup_config.yaml").write_text("database: {timezone: UTC}\n")
    assert run_cli("clean", cwd=store.path).returncode == 0
    shutil.rmtree(store.path / "results")
    refused = run_cli("clean", cwd=store.path)
    assert refused.returncode == 3
    status = json.loads(run_cli("status", "--json", cwd=store.path).stdout)
    assert status["last_run"]["outcome"] == "refused"
    assert status["last_refusal"] == status["last_run"]["error"] != ""
    assert status["last_refusal"] in refused.stderr
    assert run_cli("status", cwd=store.path).stdout.count(status["last_refusal"]) == 1
    (run, _) = json.loads(run_cli("history", "--json", cwd=store.path).stdout)
    assert (run["outcome"], run["error"]) == ("refused", status["last_refusal"])


def test_a_daemon_knows_after_its_start_why_the_last_run_did_not_begin(store: JobStore) -> None:
    store.now += timedelta(days=200)
    with pytest.raises(BreakerError) as refused:
        store.run()
    with ExitStack() as stack:
        daemon = DaemonHarness(store, stack).start("schedule: {enabled: false}")
        assert daemon.status().last_error == str(refused.value)
