"""What is reported of one job: kept until when and why, cleaned when, in the trash, held by whom."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from eemtcleanupd.cleanup.context import NullHooks
from eemtcleanupd.errors import RootError
from eemtcleanupd.events import JobPlanned
from eemtcleanupd.model import KEEP_NAME, Hold, Job
from eemtcleanupd.report.job_state import JobState, job_state
from eemtcleanupd.store.ledger import Ledger
from tests.cleanup.conftest import NOW, JobStore


class Vetoes(NullHooks):
    def veto(self, job: Job) -> str | None:
        return "the paper needs it"


def state(store: JobStore, job_id: str, hooks: NullHooks | None = None, **options: Any) -> JobState:
    found = job_state(store.config(**options), job_id, hooks or NullHooks(), store.now)
    assert found is not None
    return found


def test_a_job_within_its_retention_is_kept_until_its_end(store: JobStore) -> None:
    store.job("young", days=3)
    before = store.content()
    young = state(store, "young")
    assert (young.status, young.cleaned, young.cleaned_at) == ("completed", False, None)
    assert young.kept_until == NOW + timedelta(days=4)
    assert (young.size_bytes, young.purge_after, young.hold) == (None, None, None)
    assert "7 days" in young.why
    assert store.content() == before


def test_an_unknown_job_has_no_state(store: JobStore) -> None:
    assert job_state(store.config(), "nobody", NullHooks(), NOW) is None


def test_an_expired_job_has_the_reason_of_the_next_run(store: JobStore) -> None:
    store.job("a")
    due = state(store, "a")
    store.run(dry_run=True)
    (reason,) = [event.reason for event in store.events if isinstance(event, JobPlanned)]
    assert due.why == reason
    assert due.kept_until == NOW - timedelta(days=3)


@pytest.mark.parametrize("keeper", ["veto", "marker", "keep_last", "reserved"])
def test_an_expired_job_that_something_keeps_has_its_reason_and_no_end(store: JobStore, keeper: str) -> None:
    store.job("a")
    due = state(store, "a")
    hooks: NullHooks = NullHooks()
    options: dict[str, Any] = {}
    match keeper:
        case "veto":
            hooks = Vetoes()
        case "marker":
            (store.results("a") / KEEP_NAME).touch()
        case "keep_last":
            options["retention__successful_jobs__keep_last"] = 1
        case "reserved":
            options["paths__logs"] = "./results/a"
    kept = state(store, "a", hooks, **options)
    assert due.kept_until is not None
    assert kept.kept_until is None
    assert kept.why != due.why


def test_a_hold_is_named_with_its_end(store: JobStore) -> None:
    store.job("a")
    store.job("b")
    store.run(retention__successful_jobs__hours=9000)
    ledger = Ledger(store.open())
    ledger.hold(Hold("a", "for the paper", "ann", NOW + timedelta(days=2)), NOW)
    ledger.hold(Hold("b", "done", "ann", NOW - timedelta(days=2)), NOW)
    held, released = state(store, "a"), state(store, "b")
    assert held.hold == Hold("a", "for the paper", "ann", NOW + timedelta(days=2))
    assert held.kept_until == NOW + timedelta(days=2)
    assert held.size_bytes is not None
    assert held.size_bytes > 0  # the run measured it
    assert released.hold is None


def test_a_cleaned_job_keeps_its_time_and_its_size(store: JobStore) -> None:
    store.job("a")
    freed = store.run().bytes_freed
    cleaned = state(store, "a")
    assert (cleaned.cleaned, cleaned.cleaned_at, cleaned.size_bytes) == (True, NOW, freed)
    assert (cleaned.kept_until, cleaned.purge_after) == (None, None)
    assert "results/a/" in cleaned.why


def test_a_job_in_the_trash_says_until_when(store: JobStore) -> None:
    store.job("a")
    store.run(trash__grace_hours=24)
    trashed = state(store, "a")
    assert trashed.cleaned
    assert trashed.purge_after == NOW + timedelta(hours=24)
    before = trashed.why
    store.now += timedelta(hours=25)
    store.run(trash__grace_hours=24)
    assert state(store, "a").why != before


def test_a_job_whose_row_was_reset_is_still_in_the_trash(store: JobStore) -> None:
    store.job("a")
    store.run(trash__grace_hours=24)
    store.sql("UPDATE jobs SET data_cleaned_at = NULL")  # the reset SQL of the EEMT documentation
    assert state(store, "a").purge_after == NOW + timedelta(hours=24)


@pytest.mark.sqlite
@pytest.mark.parametrize("size", ["much", float("inf"), -5.0, b"\xff", "nan"])
def test_what_others_wrote_for_a_size_is_no_size(store: JobStore, size: object) -> None:
    store.job("a")
    store.run()
    store.sql("UPDATE jobs SET data_size_mb = ?, cleanup_summary = NULL", size)
    cleaned = state(store, "a")
    assert (cleaned.size_bytes, cleaned.cleaned_at) == (None, NOW)


def test_only_an_expired_job_needs_the_folders(store: JobStore) -> None:
    store.job("a")
    store.job("young", days=3)
    (store.path / "results").rename(store.path / "away")
    assert state(store, "young").kept_until is not None
    with pytest.raises(RootError):
        state(store, "a")


@pytest.mark.parametrize("status", ["running", "completed"])
def test_a_cleaned_job_that_was_started_again_says_that_runs_keep_its_new_data(
    store: JobStore, status: str
) -> None:
    store.job("a")
    store.run()
    cleaned = state(store, "a")
    ended = None if status == "running" else f"{NOW + timedelta(days=1):%Y-%m-%dT%H:%M:%S}"
    store.sql("UPDATE jobs SET status = ?, completed_at = ?", status, ended)
    store.results("a").mkdir()
    store.now += timedelta(days=30)
    again = state(store, "a")
    store.run()
    assert (cleaned.cleaned, again.cleaned, store.results("a").exists()) == (True, True, True)
    assert "data_cleaned_at" in again.why
    assert "data_cleaned_at" not in cleaned.why
