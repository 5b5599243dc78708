"""Why a run failed or did not begin is shown once, and is still known after a restart of the daemon."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from eemtcleanupd.daemon.messages import RunRequested
from eemtcleanupd.daemon.status_document import overview
from eemtcleanupd.errors import BreakerError
from eemtcleanupd.model import Trigger
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.lock import find_daemon
from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli
from tests.daemon.conftest import DaemonHarness

_NO_SCHEDULE = "schedule: {enabled: false}\nsafety: {min_idle_minutes: 0}"


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path / "store")
    store.run()
    return store


def refused(daemon: DaemonHarness) -> str:
    """Let a run of the daemon be refused, and return why."""
    daemon.put(RunRequested(Trigger.SIGNAL, "tester"))
    daemon.settle()
    error = daemon.daemon.status().last_error
    assert error
    return error


def test_a_daemon_knows_after_a_restart_why_the_last_run_did_not_begin(store: JobStore) -> None:
    with ExitStack() as stack:
        daemon = DaemonHarness(store, stack)
        daemon.start(_NO_SCHEDULE)
        shutil.move(store.path / "results", store.path / "moved")
        error = refused(daemon)
        shutil.move(store.path / "moved", store.path / "results")
    (newest, first) = Ledger(store.open()).runs(5)
    assert (newest.outcome, newest.error, first.outcome) == ("refused", error, "success")
    with ExitStack() as stack:
        assert DaemonHarness(store, stack).start(_NO_SCHEDULE).status().last_error == error


def test_the_clock_of_a_refused_run_is_not_believed_at_the_next_one(store: JobStore) -> None:
    ledger = Ledger(store.open())
    before = (ledger.last_run_at(), ledger.last_cleanup_at())
    with ExitStack() as stack:
        daemon = DaemonHarness(store, stack)
        daemon.start(_NO_SCHEDULE)
        daemon.now += timedelta(days=200)
        assert refused(daemon)
        assert refused(daemon)
    assert [run.outcome for run in ledger.runs(5)] == ["refused", "refused", "success"]
    assert (ledger.last_run_at(), ledger.last_cleanup_at()) == before


def test_a_refused_command_changes_nothing(store: JobStore) -> None:
    before = store.content()
    store.now += timedelta(days=200)
    with pytest.raises(BreakerError):
        store.run()
    assert store.content() == before


def test_a_later_run_without_the_daemon_ends_the_failure(store: JobStore) -> None:
    with ExitStack() as stack:
        daemon = DaemonHarness(store, stack)
        daemon.start(_NO_SCHEDULE)
        shutil.move(store.path / "results", store.path / "moved")
        error = refused(daemon)
        assert overview(daemon.config, None, daemon.status())["last_refusal"] == error
        shutil.move(store.path / "moved", store.path / "results")
        store.now += timedelta(minutes=1)
        store.run()
        document = overview(daemon.config, None, daemon.status())
    assert (document["last_run"]["outcome"], document["last_refusal"]) == ("success", None)


def test_every_time_in_the_status_is_in_iso_8601(store: JobStore) -> None:
    with ExitStack() as stack:
        daemon = DaemonHarness(store, stack)
        daemon.start(_NO_SCHEDULE)
        holder = find_daemon(StoreAddress.of(daemon.config))
        document = overview(daemon.config, holder, daemon.status())
    for since in (document["active"]["since"], document["started_at"]):
        assert datetime.fromisoformat(since).utcoffset() == timedelta()


def test_status_shows_the_reason_once(store: JobStore, run_cli: RunCli) -> None:
    with ExitStack() as stack:
        daemon = DaemonHarness(store, stack)
        daemon.start(_NO_SCHEDULE)
        daemon.now += timedelta(days=200)
        error = refused(daemon)
    status = json.loads(run_cli("status", "--json", cwd=store.path).stdout)
    assert status["last_run"]["outcome"] == "refused"
    assert status["last_refusal"] == status["last_run"]["error"] == error
    assert run_cli("status", cwd=store.path).stdout.count(error) == 1
    run = json.loads(run_cli("history", "--json", cwd=store.path).stdout)[0]
    assert (run["outcome"], run["error"]) == ("refused", error)
