"""A job store, the daemon's runs and people, against a few lines of truth."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from eemtcleanupd.cleanup.context import NullHooks
from eemtcleanupd.cleanup.restore import RestoreRequest, restore
from eemtcleanupd.errors import TrashError
from tests.cleanup.conftest import JobStore
from tests.cleanup.test_recovery import run_and_die

RETENTION = {"completed": timedelta(hours=168), "failed": timedelta(hours=12)}
THERE, TRASH, GONE = "there", "trash", "gone"
JOBS = st.integers(min_value=0, max_value=30)


@dataclass
class Truth:
    """What must be so: ``needs_upload`` where the job's upload must be in its place."""

    status: str
    ended: datetime | None
    dem: str | None
    state: str = THERE
    trashed_at: datetime | None = None
    held: bool = False
    needs_upload: bool = True

    def may_go(self, now: datetime) -> bool:
        return (
            self.state == THERE
            and not self.held
            and self.ended is not None
            and self.status in RETENTION
            and now - self.ended >= RETENTION[self.status]
        )


class Store(RuleBasedStateMachine):
    """``grace`` is the same for the life of a store."""

    @initialize(grace=st.sampled_from([0, 24]))
    def begin(self, grace: int) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = JobStore(self.folder / "store")
        self.grace = grace
        self.truth: dict[str, Truth] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def pick(self, number: int) -> str:
        return list(self.truth)[number % len(self.truth)]

    # -- the web interface -------------------------------------------------------------------------

    @rule(
        status=st.sampled_from(["completed", "failed", "running", "pending", "strange"]),
        hours=st.integers(min_value=0, max_value=400),
        dem=st.sampled_from([None, "shared.tif", "other.tif"]),
    )
    def submit(self, status: str, hours: int, dem: str | None) -> None:
        name = f"job{len(self.truth)}"
        live = status in {"running", "pending"}
        if dem is not None:
            self.store.upload(dem)
        self.store.job(name, status, days=None if live else hours / 24, dem=dem)
        ended = None if live else self.store.now - timedelta(hours=hours)
        self.truth[name] = Truth(status, ended, dem)

    @precondition(lambda self: self.truth)
    @rule(number=JOBS)
    def end(self, number: int) -> None:
        truth = self.truth[name := self.pick(number)]
        if truth.ended is None:
            truth.status, truth.ended = "completed", self.store.now
            moment = self.store.now.replace(tzinfo=None).isoformat()
            self.store.sql(
                "UPDATE jobs SET status = 'completed', completed_at = ? WHERE id = ?", moment, name
            )

    @precondition(lambda self: self.truth)
    @rule(number=JOBS)
    def run_again(self, number: int) -> None:
        truth = self.truth[name := self.pick(number)]
        if truth.state == THERE:
            truth.status, truth.ended = "running", None
            self.store.sql("UPDATE jobs SET status = 'running', completed_at = NULL WHERE id = ?", name)

    @rule(hours=st.integers(min_value=1, max_value=60))
    def pass_time(self, hours: int) -> None:
        self.store.now += timedelta(hours=hours)

    # -- people ------------------------------------------------------------------------------------

    @precondition(lambda self: self.truth)
    @rule(number=JOBS)
    def hold(self, number: int) -> None:
        name = self.pick(number)
        if self.has_ledger():
            self.truth[name].held = True
            self.store.sql(
                "INSERT OR REPLACE INTO cleanup_holds (job_id, reason, owner, created_at)"
                " VALUES (?, 'wanted', 'ann', '2026-01-01 00:00:00')",
                name,
            )

    @precondition(lambda self: self.truth)
    @rule(number=JOBS)
    def release(self, number: int) -> None:
        name = self.pick(number)
        if self.has_ledger():
            self.truth[name].held = False
            self.store.sql("DELETE FROM cleanup_holds WHERE job_id = ?", name)

    @precondition(lambda self: self.truth)
    @rule(number=JOBS)
    def take_out_of_the_trash(self, number: int) -> None:
        truth = self.truth[name := self.pick(number)]
        if not self.has_ledger():
            return
        config = self.store.config(trash__grace_hours=self.grace)
        request = RestoreRequest(config, name, (), False, "ann", NullHooks(), lambda: self.store.now)
        try:
            restored = restore(request)
        except TrashError:
            # Only where nothing of it is there, or there is a new upload.
            assert truth.state != TRASH or truth.dem is not None
            return
        assert truth.state == TRASH
        truth.state = THERE
        labels = [found.label for found in restored.artifacts]
        truth.needs_upload = f"uploads/{truth.dem}" in labels or self.is_there(truth.dem)

    def has_ledger(self) -> bool:
        return bool(self.store.sql("SELECT 1 FROM sqlite_master WHERE name = 'cleanup_holds'"))

    def waiting(self) -> dict[str, str]:
        """Return the jobs that have something in the trash, each with what it is."""
        return {
            str(job): str(what)
            for job, what in self.store.sql("SELECT job_id, artifacts FROM cleanup_intents")
        }

    def is_there(self, dem: str | None) -> bool:
        return dem is not None and (self.store.path / "uploads" / dem).exists()

    # -- the daemon --------------------------------------------------------------------------------

    @rule()
    def clean(self) -> None:
        report = self.store.run(trash__grace_hours=self.grace)
        assert report.outcome == "success"
        self.expect_cleaned()

    @rule(at=st.integers(min_value=1, max_value=60))
    def clean_killed_and_clean_again(self, at: int) -> None:
        run_and_die(self.store, at, self.grace)
        self.clean()

    @precondition(lambda self: not any(truth.held for truth in self.truth.values()))
    @rule()
    def reset_and_clean(self) -> None:
        """What is in the trash, or leaves it in this run, does not count again."""
        if not self.has_ledger():
            return
        in_trash = {name for name, truth in self.truth.items() if truth.state == TRASH and truth.dem is None}
        before = self.times_cleaned(in_trash)
        self.store.sql("UPDATE jobs SET data_cleaned_at = NULL, cleanup_summary = NULL")
        self.clean()
        assert self.times_cleaned(in_trash) == before

    def times_cleaned(self, names: set[str]) -> list[tuple[object, ...]]:
        counts = self.store.sql(
            "SELECT job_id, count(*) FROM cleanup_log WHERE action IN ('cleaned', 'trashed') GROUP BY job_id"
        )
        return [row for row in counts if row[0] in names]

    @rule()
    def look(self) -> None:
        before = self.store.snapshot()
        self.store.run(dry_run=True, trash__grace_hours=self.grace)
        assert self.store.snapshot() == before

    def expect_cleaned(self) -> None:
        now = self.store.now
        needed = {truth.dem for truth in self.truth.values() if truth.state == THERE or truth.held}
        for name, truth in self.truth.items():
            in_trash = truth.state == TRASH and truth.trashed_at is not None and not truth.held
            if in_trash and now - truth.trashed_at >= timedelta(hours=self.grace):  # type: ignore[operator]
                # With the upload of a job that stays, it stays too; also if that name was uploaded again.
                has_upload = f'["uploads", "{truth.dem}", false' in self.waiting().get(name, "")
                truth.state = TRASH if has_upload and truth.dem in needed else GONE
            if truth.may_go(now):
                truth.state = TRASH if self.grace else GONE
                truth.trashed_at = now

    # -- what must be so ---------------------------------------------------------------------------

    @invariant()
    def what_must_stay_is_there_and_nothing_is_a_lie(self) -> None:
        if not hasattr(self, "truth"):
            return
        recorded = self.store.cleaned() if self.has_ledger() else set()
        for name, truth in self.truth.items():
            there = (self.store.results(name) / "global" / "day_1.tif").exists()
            assert there is (truth.state == THERE), name
            assert (name in recorded) is (truth.state != THERE), name
            if truth.state == THERE and truth.needs_upload and truth.dem is not None:
                assert self.is_there(truth.dem), name

    @invariant()
    def the_trash_holds_what_it_should_and_no_more(self) -> None:
        if not hasattr(self, "truth") or not self.has_ledger():
            return
        waiting = self.waiting().keys()
        assert waiting == {name for name, truth in self.truth.items() if truth.state == TRASH}
        if not waiting:
            assert self.store.trash() == []


TestStore = Store.TestCase
TestStore.pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # type: ignore[attr-defined]
TestStore.settings = settings(
    max_examples=int(os.environ.get("STRESS_EXAMPLES", "25")),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
