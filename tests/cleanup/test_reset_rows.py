"""Rows that are reset while their data is in the trash: no job counts as cleaned twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eemtcleanupd.cleanup.context import NullHooks
from eemtcleanupd.cleanup.restore import RestoreRequest, restore
from eemtcleanupd.events import JobFailed
from eemtcleanupd.model import Trigger
from tests.cleanup.conftest import JobStore
from tests.cleanup.test_refused_records import refuse

GRACE: dict[str, Any] = {"trash__grace_hours": 24}
_RESET = "UPDATE jobs SET data_cleaned_at = NULL, data_size_mb = NULL, cleanup_summary = NULL"
_RECORD = "SELECT data_cleaned_at, data_size_mb, cleanup_summary FROM jobs WHERE id = 'a'"
_TOTAL = "SELECT value FROM cleanup_totals WHERE name = 'jobs_cleaned' AND label = 'completed'"


@pytest.mark.parametrize("how", ["the grace ends", "a person purges"])
def test_a_job_that_is_purged_after_its_row_was_reset_gets_its_record_back(store: JobStore, how: str) -> None:
    store.job("a", dem="a_dem.tif")
    store.upload("a_dem.tif")
    store.run(**GRACE)
    record, total = store.sql(_RECORD), store.sql(_TOTAL)
    store.sql(_RESET)
    store.now += timedelta(hours=25)
    if how == "the grace ends":
        report = store.run(**GRACE)
    else:
        store.request(Trigger.TRASH, **GRACE)
        report = store.run(**GRACE)
    assert store.trash() == []
    assert (report.successful.jobs, report.missing, report.skipped) == (0, 0, 0)
    assert store.sql(_RECORD) == record
    assert store.sql(_TOTAL) == total


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("grace", [1, 24 * 365], ids=["purged", "in the trash"])
def test_a_reset_job_whose_shared_upload_is_in_place_counts_once(store: JobStore, grace: int) -> None:
    """The upload goes with the run after both jobs are cleaned, whichever of them ended last."""
    store.now = datetime.now(UTC)
    store.job("a", "failed", days=2, dem="shared.tif")
    store.job("b", days=6, dem="shared.tif")
    upload = store.upload("shared.tif")
    store.wait(seconds=10)
    store.now = store.now.replace(microsecond=0)
    store.run(trash__grace_hours=grace)
    assert store.cleaned() == {"a"}
    record = store.sql(_RECORD)
    store.sql(_RESET)
    store.wait(days=2)
    planned = store.run(dry_run=True, trash__grace_hours=grace)
    report = store.run(trash__grace_hours=grace)
    assert planned.bytes_trashed == report.bytes_trashed
    assert planned.bytes_freed == report.bytes_freed
    assert (report.successful.jobs, report.failed.jobs) == (1, 0)
    assert store.sql(_RECORD) == record
    assert not upload.exists()


@pytest.mark.parametrize("hours", [1, 25])
def test_a_reset_row_that_cannot_be_updated_stops_no_other(store: JobStore, hours: int) -> None:
    for job in ("a", "bad"):
        store.job(job)
    store.run(**GRACE)
    store.sql(_RESET)
    refuse(store, "abort")
    store.job("c")
    store.now += timedelta(hours=hours)
    report = store.run(**GRACE)
    assert report.successful.jobs == 1
    assert store.cleaned() == {"a", "c"}
    assert {event.job_id for event in store.events if isinstance(event, JobFailed)} == {"bad"}


@pytest.mark.parametrize("hours", [1, 25], ids=["in the trash", "purged"])
def test_an_upload_that_another_job_needs_is_no_new_data(store: JobStore, hours: int) -> None:
    store.job("a", dem="shared.tif")
    store.job("live", "running", days=None, dem="shared.tif")
    store.upload("shared.tif")  # by the clock of the store, it is younger than the trash
    store.run(**GRACE)
    record = store.sql(_RECORD)
    store.sql(_RESET)
    store.now += timedelta(hours=hours)
    assert store.run(**GRACE).successful.jobs == 0
    assert store.sql(_RECORD) == record


@pytest.mark.parametrize("when", ["in the trash", "purged"])
def test_what_is_restored_of_a_job_is_cleaned_again_later(store: JobStore, when: str) -> None:
    store.now = datetime.now(UTC)
    store.job("a", dem="a_dem.tif")
    upload = store.upload("a_dem.tif")
    store.run(**GRACE)
    store.wait(seconds=0)
    restore(
        RestoreRequest(
            store.config(**GRACE), "a", {"uploads/a_dem.tif"}, False, "ann", NullHooks(), lambda: store.now
        )
    )
    assert upload.exists()
    store.now += timedelta(hours=25 if when == "purged" else 1)
    report = store.run(**GRACE)
    assert report.successful.jobs == 1
    assert not upload.exists()


def test_a_row_that_is_marked_by_the_purge_is_not_planned_although_it_was_counted(store: JobStore) -> None:
    store.job("a")
    store.run(**GRACE)
    store.sql(_RESET)
    store.now += timedelta(hours=25)
    report = store.run(force=True, safety__max_fraction=0.01, safety__max_fraction_min_jobs=0, **GRACE)
    assert (report.successful.jobs, report.skipped) == (0, 0)
