"""Disk pressure: which jobs are cleaned ahead of retention, in which order, and which ones stay."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from eemtcleanupd.events import DiskPressure, JobCleaned, RunFinished
from eemtcleanupd.policy.pressure import DiskUsage
from tests.cleanup.conftest import JobStore
from tests.daemon.conftest import DaemonHarness

MB = 1024 * 1024
PRESSURE = "pressure: {enabled: true, high_watermark_percent: 80, low_watermark_percent: 50}"


def test_usage_is_computed_like_df() -> None:
    usage = DiskUsage(total_bytes=1000, used_bytes=600, free_bytes=300)  # 100 are reserved for root
    assert round(usage.used_percent, 1) == 66.7
    assert usage.bytes_above(50) == 150
    assert usage.bytes_above(70) == 0


@pytest.fixture
def small_disk(daemon: DaemonHarness) -> Iterator[DaemonHarness]:
    """A daemon whose results are on a filesystem of 20 MB."""
    results = daemon.store.path / "results"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(results)], check=True)
    try:
        yield daemon
        daemon.stack.close()
    finally:
        subprocess.run(["umount", "--lazy", str(results)], check=True)


def job(store: JobStore, name: str, status: str, days: float, mb: int = 4) -> None:
    store.job(name, status, days=days, files=1)
    (store.results(name) / "global" / "day_0.tif").write_bytes(b"x" * (mb * MB))


def cleaned_jobs(daemon: DaemonHarness) -> list[tuple[str, bool]]:
    return [
        (e.job.id, e.ahead_of_retention is not None)
        for e in daemon.events_of(JobCleaned)
        if isinstance(e, JobCleaned)
    ]


@pytest.mark.root
def test_failed_jobs_are_cleaned_first_then_the_oldest_successful_ones_as_far_as_needed(
    small_disk: DaemonHarness,
) -> None:
    store = small_disk.store
    job(store, "successful-old", "completed", 3)
    job(store, "successful-new", "completed", 2)
    job(store, "failed-new", "failed", 0.2)
    job(store, "fresh", "completed", 0.01)
    small_disk.start(PRESSURE)
    small_disk.pass_time(minutes=1)
    assert cleaned_jobs(small_disk) == [("failed-new", True), ("successful-old", True)]
    (event,) = small_disk.events_of(RunFinished)
    assert isinstance(event, RunFinished)
    assert event.report.trigger == "pressure"
    assert event.report.early.jobs == 2
    assert "50 %" in (event.report.pressure or "")
    (message,) = store.sql("SELECT message FROM cleanup_log WHERE job_id = 'successful-old'")
    assert "80" in str(message[0])
    assert len(small_disk.events_of(DiskPressure)) == 1


@pytest.mark.root
def test_held_live_young_and_last_jobs_stay_however_full_the_disk_is(small_disk: DaemonHarness) -> None:
    store = small_disk.store
    job(store, "held", "completed", 5)
    job(store, "running", "running", 5)
    job(store, "fresh", "failed", 0.01)
    job(store, "newest", "completed", 1)
    store.run()
    store.sql("INSERT INTO cleanup_holds (job_id, reason, owner) VALUES ('held', 'paper', 'alice')")
    small_disk.start(f"{PRESSURE}\nretention: {{successful_jobs: {{keep_last: 1}}}}")
    small_disk.pass_time(minutes=1)
    assert cleaned_jobs(small_disk) == []
    small_disk.pass_time(minutes=10)
    assert len(small_disk.events_of(RunFinished)) == 1, "it is retried after an hour, not every minute"


@pytest.mark.root
def test_the_trash_is_emptied_before_any_job_is_cleaned_ahead_of_retention(small_disk: DaemonHarness) -> None:
    store = small_disk.store
    job(store, "trashed", "failed", 2, mb=8)
    job(store, "young", "completed", 2, mb=8)
    small_disk.now = store.now
    store.run(trash__grace_hours=100)
    small_disk.start(f"{PRESSURE}\ntrash: {{grace_hours: 100}}")
    small_disk.pass_time(minutes=1)
    assert store.trash() == []
    assert [name for name, early in cleaned_jobs(small_disk) if early] == []
    assert store.results("young").exists()


@pytest.mark.root
@pytest.mark.parametrize("settings", ["", f"{PRESSURE}\ndry_run: true"], ids=["by default", "dry run"])
def test_a_full_disk_changes_nothing_when_pressure_is_off_or_in_a_dry_run(
    small_disk: DaemonHarness, settings: str
) -> None:
    job(small_disk.store, "young", "completed", 2, mb=17)
    small_disk.start(settings)
    small_disk.pass_time(minutes=5)
    assert Path(small_disk.store.results("young")).exists()
    assert small_disk.events_of(RunFinished) == []
