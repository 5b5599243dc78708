"""Disk pressure: which jobs are cleaned ahead of retention, in which order, and which ones stay."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.events import DiskPressure, Event, JobCleaned, JobFailed, RunFinished, RunReport, Warned
from eemtcleanupd.model import Trigger
from eemtcleanupd.policy.pressure import DiskUsage, Pressure
from tests.cleanup.conftest import JobStore
from tests.conftest import immutable, settle
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
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m,mode=755", "tmpfs", str(results)], check=True)
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
def test_a_job_whose_name_is_in_doubt_stays_however_full_the_disk_is(small_disk: DaemonHarness) -> None:
    store = small_disk.store
    job(store, "Cafe\N{COMBINING ACUTE ACCENT}", "failed", 3)
    job(store, "Caf\N{LATIN SMALL LETTER E WITH ACUTE}", "running", 3)
    job(store, "plain", "completed", 3, mb=8)
    small_disk.start(f"{PRESSURE}\nretention: {{failed_jobs: {{hours: 200}}}}")
    small_disk.pass_time(minutes=1)
    assert cleaned_jobs(small_disk) == [("plain", True)]


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
def test_trash_that_a_job_needs_again_does_not_count_as_space_that_a_run_can_free(
    small_disk: DaemonHarness,
) -> None:
    store = small_disk.store
    job(store, "trashed", "failed", 3, mb=2)
    job(store, "again", "failed", 2, mb=8)
    small_disk.now = store.now
    store.run(trash__grace_hours=100)
    store.sql("UPDATE jobs SET status = 'running', data_cleaned_at = NULL WHERE id = 'again'")
    job(store, "other", "running", 2, mb=7)
    small_disk.start(f"{PRESSURE}\ntrash: {{grace_hours: 100}}")
    small_disk.pass_time(minutes=1)
    assert len(store.trash()) == 2
    assert len(pressure_warnings(small_disk)) == 1


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


def report_of(daemon: DaemonHarness) -> RunReport:
    (event,) = daemon.events_of(RunFinished)
    assert isinstance(event, RunFinished)
    return event.report


def pressure_warnings(daemon: DaemonHarness) -> list[str]:
    return [e.message for e in daemon.events_of(Warned) if isinstance(e, Warned) and "watermark" in e.message]


@pytest.mark.root
def test_on_a_disk_full_of_other_data_nothing_is_taken_early_and_expired_jobs_are_cleaned(
    small_disk: DaemonHarness,
) -> None:
    store = small_disk.store
    job(store, "in-trash", "failed", 2, mb=1)
    store.run(trash__grace_hours=100)
    items = store.trash()
    job(store, "expired", "failed", 2, mb=1)
    job(store, "young", "completed", 2, mb=1)
    job(store, "failed-young", "failed", 0.2, mb=1)
    (store.results("other-data")).write_bytes(b"x" * 13 * MB)
    small_disk.start(f"{PRESSURE}\ntrash: {{grace_hours: 100}}")
    small_disk.pass_time(minutes=1)
    assert cleaned_jobs(small_disk) == [("expired", False)]
    assert store.results("young").exists()
    assert store.trash() == items
    report = report_of(small_disk)
    assert report.outcome == "success"
    assert report.early.jobs == 0
    (warning,) = pressure_warnings(small_disk)
    assert "3 MB" in warning, "the trash and two jobs"
    assert "3 MB" in str(report.pressure)


@pytest.mark.fast_parameters(2)
@pytest.mark.root
@pytest.mark.parametrize("is_measured", [False, True])
@pytest.mark.parametrize("is_trashed", [False, True])
def test_what_is_on_another_disk_does_not_count(
    small_disk: DaemonHarness, is_measured: bool, is_trashed: bool
) -> None:
    """The uploads would be enough, but they are not on the disk of the results."""
    store = small_disk.store
    for number in range(3):
        name = f"young-{number}"
        job(store, name, "failed", 0.4 if not is_trashed else 2, mb=1)
        (store.path / "uploads" / f"{name}_dem.tif").write_bytes(b"x" * 20 * MB)
    if is_measured or is_trashed:
        store.run(trash__grace_hours=100)
    store.results("other-data").write_bytes(b"x" * 14 * MB)
    items = store.trash() if is_trashed else []
    small_disk.start(f"{PRESSURE}\ntrash: {{grace_hours: 100}}")
    small_disk.pass_time(minutes=1)
    assert cleaned_jobs(small_disk) == []
    assert len(pressure_warnings(small_disk)) == 1
    assert store.trash() == items


@pytest.mark.root
@pytest.mark.parametrize("is_measured", [False, True])
def test_what_is_only_on_another_disk_is_not_deleted_early(
    small_disk: DaemonHarness, is_measured: bool
) -> None:
    store = small_disk.store
    store.job("trashed", "failed", days=2, files=0)
    store.upload("trashed_dem.tif")
    store.run(trash__grace_hours=100)
    items = store.trash()
    store.job("elsewhere", "failed", days=0.4, files=0)
    upload = store.upload("elsewhere_dem.tif")
    job(store, "young", "completed", 2, mb=12)
    if is_measured:
        store.run(trash__grace_hours=100)
    store.results("other-data").write_bytes(b"x" * 5 * MB)
    small_disk.start(f"{PRESSURE}\ntrash: {{grace_hours: 100}}")
    small_disk.pass_time(minutes=1)
    assert cleaned_jobs(small_disk) == [("young", True)]
    assert upload.exists()
    assert store.trash() == items


@pytest.mark.root
def test_enough_is_freed_on_the_disk_of_the_results(small_disk: DaemonHarness) -> None:
    store = small_disk.store
    for number in range(4):
        job(store, f"young-{number}", "completed", 3 - number / 10, mb=4)
        (store.path / "uploads" / f"young-{number}_dem.tif").write_bytes(b"x" * 20 * MB)
    small_disk.start(PRESSURE)
    small_disk.pass_time(minutes=1)
    assert cleaned_jobs(small_disk) == [("young-0", True), ("young-1", True)]


@pytest.mark.root
def test_the_limits_of_a_run_count_when_it_is_asked_whether_early_cleaning_can_be_enough(
    small_disk: DaemonHarness,
) -> None:
    for number in range(8):
        job(small_disk.store, f"young-{number}", "completed", 2, mb=2)
    small_disk.start(f"{PRESSURE}\nsafety: {{max_jobs_per_run: 2}}")
    small_disk.pass_time(minutes=1)
    assert cleaned_jobs(small_disk) == []
    assert len(pressure_warnings(small_disk)) == 1


@pytest.mark.root
def test_early_cleaning_ends_when_others_write_more_than_it_can_still_free(small_disk: DaemonHarness) -> None:
    store = small_disk.store
    other = store.results("other-data")
    other.write_bytes(b"x" * 5 * MB)
    for number in range(5):
        job(store, f"young-{number}", "completed", 3 - number / 10, mb=2)

    class Writing(list[Event]):
        """Others write as soon as a job is cleaned."""

        def append(self, event: Event) -> None:
            if isinstance(event, JobCleaned):
                other.write_bytes(b"x" * 11 * MB)
            super().append(event)

    small_disk.events = Writing()
    small_disk.start("pressure: {enabled: true, high_watermark_percent: 70, low_watermark_percent: 30}")
    small_disk.pass_time(minutes=1)
    assert cleaned_jobs(small_disk) == [("young-0", True)]
    assert len(pressure_warnings(small_disk)) == 1
    assert report_of(small_disk).early.jobs == 1


@pytest.mark.root
def test_what_a_job_with_an_error_freed_counts_too(small_disk: DaemonHarness) -> None:
    store = small_disk.store
    job(store, "stuck", "failed", 0.4, mb=8)
    job(store, "young", "completed", 2, mb=8)
    file = store.results("stuck") / "global" / "stays"
    file.touch()
    settle(store.results("stuck"), store.now - timedelta(days=0.4))

    class Writing(list[Event]):
        """Others write as much as the job has freed."""

        def append(self, event: Event) -> None:
            if isinstance(event, JobFailed):
                store.results("other-data").write_bytes(b"x" * 8 * MB)
            super().append(event)

    small_disk.events = Writing()
    with immutable(file, root=store.path):
        small_disk.start(PRESSURE)
        small_disk.pass_time(minutes=1)
    assert len(small_disk.events_of(JobFailed)) == 1
    assert cleaned_jobs(small_disk) == []


@pytest.mark.root
def test_a_job_that_could_not_be_deleted_does_not_count_as_cleaned_early(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m,mode=755", "tmpfs", str(disk)], check=True)
    try:
        store = JobStore(disk / "store")
        job(store, "stuck", "failed", 2, mb=1)
        job(store, "old", "completed", 2, mb=14)
        job(store, "new", "completed", 1, mb=2)
        file = store.results("stuck") / "global" / "stays"
        file.touch()
        settle(store.results("stuck"), store.now - timedelta(days=2))
        request = RunRequest("ann", Trigger.PRESSURE, pressure=Pressure(50, timedelta(hours=1)))
        with immutable(file, root=store.path):
            report = clean(store.config(), request, emit=store.events.append, clock=lambda: store.now)
        assert (report.errors, report.early.jobs) == (1, 1)
        assert store.cleaned() == {"old"}
        assert store.sql("SELECT action FROM cleanup_log WHERE job_id = 'stuck'") == [("failed",)]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
