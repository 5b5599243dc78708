"""What others do to a job in the very moments of its cleaning."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime

import pytest
from sqlalchemy import Connection, exc

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.cleanup.context import NullHooks
from eemtcleanupd.errors import LockHeldError, StoreError
from eemtcleanupd.events import AuditEntry, RunReport
from eemtcleanupd.model import ArtifactPath, Job
from eemtcleanupd.store.ledger import Ledger
from tests.cleanup.conftest import JobStore


class At(NullHooks):
    """Does something once, when a run comes to a moment."""

    def __init__(self, moment: str, act: Callable[[], object]) -> None:
        self._moment = moment
        self._act = act
        self._done = False

    def _reach(self, moment: str) -> None:
        if moment == self._moment and not self._done:
            self._done = True
            self._act()

    def before_stage(self, job: Job, artifacts: Sequence[ArtifactPath]) -> str | None:
        self._reach("backup")
        return None

    def audit(self, entries: Sequence[AuditEntry]) -> None:
        for entry in entries:
            self._reach(entry.action)


def run(store: JobStore, guards: NullHooks, *, stop: StopFlag | None = None, **options: object) -> RunReport:
    return clean(
        store.config(**options),
        RunRequest(user="tester"),
        emit=store.events.append,
        stop=stop,
        clock=lambda: store.now,
        hooks=guards,
    )


@pytest.mark.parametrize("grace_hours", [0, 24])
@pytest.mark.parametrize("moment", ["backup", "cleaning"])
def test_a_marker_that_comes_up_until_the_job_is_staged_keeps_it(
    store: JobStore, moment: str, grace_hours: int
) -> None:
    store.job("a", dem="dem.tif")
    store.upload("dem.tif")
    marker = store.results("a") / ".eemt-keep"
    report = run(store, At(moment, marker.touch), trash__grace_hours=grace_hours)
    assert (store.results("a") / "global/day_1.tif").exists()
    assert (store.path / "uploads/dem.tif").exists()
    assert store.cleaned() == set()
    assert (report.successful.jobs, report.skipped, report.errors) == (0, 1, 0)


def test_a_job_that_is_run_again_while_it_is_deleted_does_not_count_as_cleaned(store: JobStore) -> None:
    store.job("a")

    def run_again() -> None:
        store.sql("UPDATE jobs SET status = 'running', completed_at = NULL WHERE id = 'a'")
        store.results("a").mkdir()
        (store.results("a") / "new.tif").write_text("new")

    report = run(store, At("cleaned", run_again))
    assert (store.results("a") / "new.tif").exists()
    assert store.cleaned() == set()
    assert (report.successful.jobs, report.skipped) == (0, 1)
    assert report.bytes_freed > 0, "the report counts what was deleted"
    assert store.sql("SELECT * FROM cleanup_intents") == []


def test_a_job_that_is_run_again_while_it_is_trashed_gets_everything_back(store: JobStore) -> None:
    store.job("a")
    run_again = "UPDATE jobs SET status = 'running', completed_at = NULL WHERE id = 'a'"
    report = run(store, At("trashed", lambda: store.sql(run_again)), trash__grace_hours=24)
    assert (store.results("a") / "global/day_1.tif").exists()
    assert store.cleaned() == set()
    assert (report.successful.jobs, report.skipped) == (0, 1)
    assert store.trash() == []
    assert store.sql("SELECT * FROM cleanup_intents") == []


def test_a_job_that_is_run_again_gets_everything_back_though_the_record_needs_a_second_attempt(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.job("a")
    run_again = "UPDATE jobs SET status = 'running', completed_at = NULL WHERE id = 'a'"
    forget = Ledger.forget_measured
    locked = [exc.OperationalError("COMMIT", None, sqlite3.OperationalError("database is locked"))]

    def fail_once(self: Ledger, connection: Connection, job_ids: Sequence[str]) -> None:
        forget(self, connection, job_ids)
        if locked:
            raise locked.pop()

    monkeypatch.setattr(Ledger, "forget_measured", fail_once)
    run(store, At("trashed", lambda: store.sql(run_again)), trash__grace_hours=24)
    assert not locked
    assert (store.results("a") / "global/day_1.tif").exists()
    assert store.cleaned() == set()
    assert store.sql("SELECT * FROM cleanup_intents") == []


def test_a_stop_while_a_job_is_measured_keeps_it_from_being_recorded_too_small(store: JobStore) -> None:
    for number in range(3):
        store.job(f"job-{number}")
    stop = StopFlag()
    report = run(store, At("cleaning", stop.set), stop=stop, trash__grace_hours=24)
    assert report.outcome == "interrupted"
    assert (store.cleaned(), store.trash()) == (set(), [])
    assert store.sql("SELECT * FROM cleanup_intents") == []
    run(store, NullHooks(), trash__grace_hours=24)
    assert len(store.cleaned()) == 3
    assert store.sql("SELECT count(*) FROM jobs WHERE data_size_mb > 0") == [(3,)]


def test_what_was_staged_when_the_database_is_lost_is_put_back_at_once(store: JobStore) -> None:
    store.job("a")
    copy = store.path / "copy.db"
    shutil.copy(store.path / "jobs.db", copy)
    with pytest.raises(StoreError, match=r"jobs\.db"):
        run(store, At("cleaning", lambda: copy.replace(store.path / "jobs.db")))
    assert (store.results("a") / "global/day_1.tif").exists()


def test_a_run_that_reaches_the_same_folders_by_a_copy_of_the_database_is_refused(store: JobStore) -> None:
    """As from a container into which the database's file alone is mounted: there the lock is another file."""
    store.job("a")
    copy = store.path / "copy.db"
    refused = []

    def run_with_copy() -> None:
        shutil.copy(store.path / "jobs.db", copy)
        with pytest.raises(LockHeldError, match=r"results|uploads|temp"):
            run(store, NullHooks(), paths__database=str(copy))
        refused.append(True)

    report = run(store, At("cleaning", run_with_copy))
    assert refused
    assert report.outcome == "success"


@pytest.mark.parametrize("grace_hours", [0, 24])
def test_a_job_that_somebody_copies_back_in_this_moment_does_not_count_as_cleaned(
    store: JobStore, grace_hours: int
) -> None:
    store.job("a")

    def clock() -> datetime:
        store.results("a").mkdir(exist_ok=True)  # the run looks at the clock when it has staged its jobs
        return store.now

    request = RunRequest(user="tester")
    report = clean(
        store.config(trash__grace_hours=grace_hours), request, emit=store.events.append, clock=clock
    )
    assert store.results("a").exists()
    assert store.cleaned() == set()
    assert (report.outcome, report.successful.jobs, report.skipped) == ("success", 0, 1)
    assert store.run().outcome == "success"
    assert not store.results("a").exists()
    assert store.cleaned() == {"a"}
