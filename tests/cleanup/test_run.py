"""One run, whole, on real files and a real SQLite database."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup.recording import Recording
from eemtcleanupd.cleanup.staging import ClaimedJob, Staging
from eemtcleanupd.errors import BreakerError, LockHeldError, RootError
from eemtcleanupd.events import Event, JobCleaned, JobFailed, JobPlanned, JobSkipped, OrphanFound, Warned
from eemtcleanupd.model import Hold
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.lock import run_lock
from eemtcleanupd.store.values import reload_zones
from tests.cleanup.conftest import JobStore
from tests.conftest import immutable


def du(path: Path) -> int:
    """Return the allocated bytes of a tree, each inode once."""
    seen = {}
    for each in [path, *path.rglob("*")]:
        status = each.lstat()
        seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def test_expired_jobs_lose_all_their_data_and_keep_their_rows(store: JobStore) -> None:
    store.job("done", dem="dem.tif")
    store.job("broken", "failed", days=1)
    store.upload("dem.tif")
    store.upload("done_mask.tif")
    (store.path / "results/done_results.zip").write_bytes(b"zip")
    (store.path / "temp/broken").mkdir()
    (store.path / "temp/broken/part").write_bytes(b"x")
    before = sum(du(store.path / root) for root in ("results", "uploads", "temp"))
    report = store.run(safety__ballast=0)
    left = sum(du(store.path / root) for root in ("results", "uploads", "temp"))
    trash_overhead = sum(du(store.path / r / ".eemtcleanupd-trash") for r in ("results", "uploads", "temp"))
    assert (report.successful.jobs, report.failed.jobs, report.outcome) == (1, 1, "success")
    assert store.cleaned() == {"done", "broken"}
    assert {path.split("/", 1)[1] for path in store.snapshot()} == {
        ".eemtcleanupd-trash",
        ".eemtcleanupd-trash/.root-id",
    }
    assert report.bytes_freed == before - (left - trash_overhead)
    assert len(store.sql("SELECT * FROM jobs")) == 2


def test_young_live_unknown_undated_and_held_jobs_keep_everything(store: JobStore) -> None:
    store.job("young", days=6.9)
    store.job("young-failure", "failed", days=11 / 24)
    store.job("live", "running")
    store.job("waiting", "pending", days=None)
    store.job("odd", "archived")
    store.job("undated", days=None)
    store.job("held")
    with_ledger(store).hold(Hold("held", "paper", "anna"), store.now)
    before = store.snapshot()
    report = store.run()
    assert report.bytes_freed == 0
    assert store.cleaned() == set()
    assert before.items() <= store.snapshot().items()
    reasons = {event.job.id: event.reason for event in store.of(JobSkipped) if isinstance(event, JobSkipped)}
    assert reasons["held"] == "held by anna: paper"
    assert "completed_at" in reasons["undated"]
    assert "'archived'" in reasons["odd"]


def with_ledger(store: JobStore) -> Ledger:
    ledger = Ledger(store.open())
    ledger.create_tables()
    return ledger


@pytest.mark.fast_parameters(3)
@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
@pytest.mark.parametrize(("hours", "goes"), [(11, False), (12, True), (13, True)])
def test_a_failed_job_goes_after_twelve_hours_to_the_minute_in_every_zone(
    store: JobStore, zone: str, hours: float, goes: bool
) -> None:
    from zoneinfo import ZoneInfo

    store.job("broken", "failed", files=1)
    ended = (store.now - timedelta(hours=hours)).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    store.sql("UPDATE jobs SET completed_at = ?", ended.isoformat())
    store.run(database__timezone=zone)
    assert (store.cleaned() == {"broken"}) is goes


@pytest.mark.parametrize("other", ["running", "pending", "archived"])
def test_an_upload_that_another_job_needs_stays(store: JobStore, other: str) -> None:
    store.job("done", dem="dem.tif")
    store.job("other", other, days=None, dem="dem.tif", files=0)
    upload = store.upload("dem.tif")
    store.run()
    assert store.cleaned() == {"done"}
    assert upload.exists()


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize("grace_hours", [0, 24])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_last_of_the_jobs_that_share_an_upload_takes_it_along(
    store: JobStore, batch_size: int, grace_hours: int
) -> None:
    for number in range(5):
        store.job(f"job-{number}", days=10 + number, dem="shared.tif")
    upload = store.upload("shared.tif")
    settings: dict[str, Any] = {"performance__batch_size": batch_size, "trash__grace_hours": grace_hours}
    planned = store.run(dry_run=True, **settings)
    assert upload.exists()
    report = store.run(**settings)
    assert report.bytes_freed + report.bytes_trashed == planned.bytes_freed + planned.bytes_trashed
    assert report.orphans.jobs == 0
    assert not upload.exists()


def test_a_shared_upload_goes_with_the_last_job_though_the_first_ones_are_recorded(store: JobStore) -> None:
    for number in range(120):  # more than one group
        store.job(f"job-{number}", days=10 + number / 100, dem="shared.tif", files=0)
    upload = store.upload("shared.tif")
    report = store.run(performance__batch_size=10, trash__grace_hours=24)
    assert (report.successful.jobs, report.orphans.jobs) == (120, 0)
    assert not upload.exists()


def test_an_upload_shared_with_a_young_job_goes_when_that_one_does(store: JobStore) -> None:
    store.job("old", dem="dem.tif")
    store.job("young", days=2, dem="dem.tif")
    upload = store.upload("dem.tif")
    store.run()
    assert upload.exists()
    store.now += timedelta(days=6)
    store.run()
    assert store.cleaned() == {"old", "young"}
    assert not upload.exists()


def test_a_name_that_could_be_two_jobs_is_kept_for_the_one_that_stays(store: JobStore) -> None:
    store.job("a")
    store.job("a_results.zip", "running", days=None)
    store.job("a_b", "running", days=None, files=0)
    upload = store.upload("a_b_dem.tif")
    store.run()
    assert store.cleaned() == {"a"}
    assert store.results("a_results.zip").is_dir()
    assert upload.exists()


HOSTILE = ["../x", ".", "..", "a/b", "", "x" * 5000, ".eemtcleanupd-trash", "/etc"]


@pytest.mark.sqlite
def test_an_id_with_a_nul_harms_nothing_and_is_named(store: JobStore) -> None:
    test_hostile_ids_and_uploads_harm_nothing_and_are_named(store, "nul\0")


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_ids_and_uploads_harm_nothing_and_are_named(store: JobStore, name: str) -> None:
    canary = store.path / "x"
    canary.mkdir()
    (canary / "keep").write_bytes(b"keep")
    store.job(name, files=0)
    store.job("victim", dem=name)
    report = store.run()
    reasons = [
        event.job.id for event in store.of(JobSkipped) if isinstance(event, JobSkipped) and event.notable
    ]
    assert sorted(reasons) == sorted([name, "victim"])
    assert report.skipped == 2
    assert store.cleaned() == set()
    assert (canary / "keep").exists()
    assert store.results("victim").is_dir()


@pytest.mark.parametrize("name", ["two\nlines", "ünï cödé", "-rf", "*", "a b'\"$(x)"])
def test_odd_but_honest_ids_are_cleaned(store: JobStore, name: str) -> None:
    store.job(name)
    store.run()
    assert store.cleaned() == {name}
    assert not store.results(name).exists()


@pytest.mark.sqlite
def test_names_that_are_not_utf8_are_cleaned(store: JobStore) -> None:
    name = b"caf\xe9"
    store.sql(
        "INSERT INTO jobs (id, workflow_type, status, created_at, completed_at, dem_filename)"
        " VALUES (CAST(? AS TEXT), 'sol', 'completed', '2025-12-31 23:00:00', '2026-01-01T00:00:00',"
        " CAST(? AS TEXT))",
        name,
        name + b".tif",
    )
    folder = os.path.join(os.fsencode(store.path), b"results", name)
    os.mkdir(folder)
    os.mkdir(os.path.join(folder, b"\xff\xfe"))
    upload = os.path.join(os.fsencode(store.path), b"uploads", name + b".tif")
    with open(upload, "wb") as file:
        file.write(b"dem")
    report = store.run()
    assert report.successful.jobs == 1
    assert not os.path.exists(folder)
    assert not os.path.exists(upload)
    assert store.run().successful.jobs == 0


def test_a_results_folder_that_is_a_symlink_goes_without_what_it_points_to(store: JobStore) -> None:
    canary = store.path / "canary"
    canary.mkdir()
    (canary / "keep").write_bytes(b"keep")
    store.job("linked", files=0)
    store.results("linked").symlink_to(canary)
    store.job("inside")
    (store.results("inside") / "link").symlink_to(canary)
    store.run()
    assert store.cleaned() == {"linked", "inside"}
    assert not store.results("linked").is_symlink()
    assert (canary / "keep").read_bytes() == b"keep"


def test_a_second_run_finds_nothing_and_changes_nothing(store: JobStore) -> None:
    store.job("done", dem="dem.tif")
    store.upload("dem.tif")
    store.job("young", days=1)
    store.run()
    rows, files = store.sql("SELECT * FROM jobs"), store.snapshot()
    report = store.run()
    assert (report.successful.jobs, report.bytes_freed, report.outcome) == (0, 0, "success")
    assert store.sql("SELECT * FROM jobs") == rows
    assert store.snapshot() == files


@pytest.mark.parametrize("seconds", [0.001, 1, 60])
def test_runs_at_the_same_time_of_day_have_different_ids(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    ids = set()
    for elapsed in (1000, 1000 + seconds):
        monkeypatch.setattr("eemtcleanupd.cleanup.run.elapsed_seconds", lambda elapsed=elapsed: elapsed)
        ids.add(store.run().run_id)
    assert len(ids) == 2


def test_a_dry_run_changes_not_one_byte(store: JobStore) -> None:
    store.job("done", dem="dem.tif")
    store.upload("dem.tif")
    database = store.content()
    everything = {str(path): path.stat().st_mtime_ns for path in store.path.rglob("*")}
    report = store.run(dry_run=True)
    assert report.successful.jobs == 1
    assert store.content() == database
    assert {str(path): path.stat().st_mtime_ns for path in store.path.rglob("*")} == everything


def test_a_dry_run_says_what_the_run_then_does(store: JobStore) -> None:
    for number in range(6):
        store.job(f"job-{number}", "failed" if number % 2 else "completed", dem=f"dem-{number // 3}.tif")
    for number in range(2):
        store.upload(f"dem-{number}.tif")
    store.run(dry_run=True)
    planned = {
        (event.job.id, part.found.label, part.size_bytes)
        for event in store.of(JobPlanned)
        if isinstance(event, JobPlanned)
        for part in event.artifacts
    }
    store.run()
    done = {
        (event.job.id, part.found.label, part.size_bytes)
        for event in store.of(JobCleaned)
        if isinstance(event, JobCleaned)
        for part in event.artifacts
    }
    assert done == planned


def test_sizes_and_records_say_what_was_freed(store: JobStore) -> None:
    store.job("done", files=30)
    store.job("young", days=1, files=7)
    size, young = du(store.results("done")), du(store.results("young"))
    report = store.run()
    rows = {row[0]: row[1] for row in store.sql("SELECT id, data_size_mb FROM jobs")}
    assert report.bytes_freed == size
    assert rows == {"done": size / 2**20, "young": young / 2**20}
    assert store.sql("SELECT job_id, action, bytes_freed FROM cleanup_log") == [("done", "cleaned", size)]
    assert store.sql('SELECT job_id, action, "user" FROM cleanup_audit') == [
        ("done", "deleted_results", "tester")
    ]
    assert store.sql("SELECT successful_bytes, failed_bytes FROM cleanup_storage") == [(young, 0)]
    assert store.sql("SELECT outcome, successful, bytes_freed FROM cleanup_runs") == [("success", 1, size)]
    assert store.sql("SELECT * FROM cleanup_intents") == []
    cleaned_at = store.sql("SELECT data_cleaned_at FROM jobs WHERE id = 'done'")
    assert cleaned_at == [("2026-06-15T12:00:00",)]


def test_an_upload_counts_for_the_one_job_that_waits_for_it_and_for_none_of_several(store: JobStore) -> None:
    store.job("alone", days=1, dem="own.tif", files=0)
    store.job("first", days=1, dem="shared.tif", files=0)
    store.job("second", days=1, dem="shared.tif", files=0)
    size = du(store.upload("own.tif"))
    store.upload("shared.tif")
    assert store.run().missing == 0
    sizes = {row[0]: row[1] for row in store.sql("SELECT id, data_size_mb FROM jobs")}
    assert sizes == {"alone": size / 2**20, "first": 0, "second": 0}


def test_columns_are_appended_and_others_keep_their_places(store: JobStore) -> None:
    store.sql("ALTER TABLE jobs ADD COLUMN extra TEXT DEFAULT 'theirs'")
    store.job("done")
    store.run()
    assert store.columns()[-4:] == ["extra", "data_cleaned_at", "data_size_mb", "cleanup_summary"]


@pytest.mark.sqlite
def test_the_journal_mode_stays(store: JobStore) -> None:
    store.job("done")
    store.run()
    assert store.sql("PRAGMA journal_mode") == [("delete",)]


def test_a_table_with_job_id_and_the_least_columns_works(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "least")
    store.sql("DROP TABLE jobs")
    store.sql("CREATE TABLE jobs (job_id TEXT PRIMARY KEY, status TEXT, completed_at TIMESTAMP)")
    store.sql("INSERT INTO jobs VALUES ('a', 'completed', '2026-01-01T00:00:00')")
    store.results("a").mkdir()
    assert store.run().successful.jobs == 1
    assert not store.results("a").exists()


def test_numbers_as_ids_work_and_one_id_of_two_rows_is_kept(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "numbers")
    store.sql("DROP TABLE jobs")
    store.sql("CREATE TABLE jobs (job_id INTEGER, status TEXT, completed_at TIMESTAMP)")
    for job_id, status in ((1, "completed"), (2, "completed"), (2, "running")):
        store.sql("INSERT INTO jobs VALUES (?, ?, '2026-01-01T00:00:00')", job_id, status)
        store.results(str(job_id)).mkdir(exist_ok=True)
    report = store.run()
    assert (report.successful.jobs, report.skipped) == (1, 1)
    assert (store.results("1").exists(), store.results("2").exists()) == (False, True)


def test_logs_of_failed_jobs_are_kept_before_the_rest_goes(store: JobStore) -> None:
    store.job("broken", "failed")
    store.job("done")
    for job in ("broken", "done"):
        (store.results(job) / "global/run.log").write_text("why it failed")
    store.run()
    assert store.cleaned() == {"broken", "done"}
    assert (store.path / "logs/jobs/broken/global/run.log").read_text() == "why it failed"
    assert not (store.path / "logs/jobs/done").exists()


def test_with_a_grace_data_waits_in_the_trash_and_then_goes(store: JobStore) -> None:
    store.job("done", dem="dem.tif")
    store.upload("dem.tif")
    size = du(store.results("done")) + du(store.path / "uploads/dem.tif")
    report = store.run(trash__grace_hours=24)
    assert (report.successful.jobs, report.bytes_freed) == (1, 0)
    assert store.cleaned() == {"done"}
    assert not store.results("done").exists()
    assert len(store.trash()) == 2
    assert store.sql("SELECT data_size_mb FROM jobs") == [(size / 2**20,)]
    store.now += timedelta(hours=23)
    assert store.run(trash__grace_hours=24).trash_purged.jobs == 0
    store.now += timedelta(hours=2)
    assert store.run(trash__grace_hours=24).trash_purged.bytes_freed == size
    assert store.trash() == []
    assert store.sql("SELECT * FROM cleanup_intents") == []
    assert store.sql("SELECT data_size_mb FROM jobs") == [(size / 2**20,)]


def test_a_hold_keeps_trashed_data_beyond_its_grace(store: JobStore) -> None:
    store.job("done")
    store.run(trash__grace_hours=1)
    with_ledger(store).hold(Hold("done", "", "anna"), store.now)
    store.now += timedelta(hours=2)
    store.run(trash__grace_hours=1)
    assert len(store.trash()) == 1


def test_large_jobs_are_left_for_another_run(store: JobStore) -> None:
    store.job("large", files=50)
    store.job("small")
    report = store.run(skip_larger_than_bytes=100_000)
    assert store.cleaned() == {"small"}
    assert report.remaining == 1
    assert report.remaining_bytes > 100_000
    assert store.run(dry_run=True, skip_larger_than_bytes=100_000).remaining_bytes == report.remaining_bytes
    assert store.run().successful.jobs == 1


def test_a_cap_takes_the_oldest_first_and_says_what_is_left(store: JobStore) -> None:
    for number in range(7):
        store.job(f"job-{number}", days=20 + number)
    options: dict[str, Any] = {"safety__max_jobs_per_run": 3, "performance__batch_size": 2}
    dry_run = store.run(dry_run=True, **options)
    planned = {event.job.id for event in store.events if isinstance(event, JobPlanned)}
    report = store.run(**options)
    assert planned == store.cleaned()
    assert (dry_run.successful.jobs, dry_run.remaining) == (report.successful.jobs, report.remaining)
    assert store.cleaned() == {"job-6", "job-5", "job-4"}
    assert (report.successful.jobs, report.remaining) == (3, 4)


def test_the_newest_successful_jobs_are_kept(store: JobStore) -> None:
    for number in range(4):
        store.job(f"job-{number}", days=10 + number)
    store.run(retention__successful_jobs__keep_last=2)
    assert store.cleaned() == {"job-2", "job-3"}


def test_a_job_whose_end_is_impossible_is_kept_and_named(store: JobStore) -> None:
    text_times(store)
    for job_id, ended in (
        ("milliseconds", "1795010112345"),
        ("year-1", "0001-01-01T00:00:00Z"),
        ("windows", "1601-01-01T00:00:00"),
        ("epoch", "1970-01-01T00:00:00"),
        ("future", "2026-06-15T21:00:00"),
        ("before-start", "2026-06-01T11:59:00"),
        ("before-creation", "2026-06-01T10:59:00"),
    ):
        started = None if job_id == "before-creation" else "2026-06-01T12:00:00"
        store.job(job_id)
        store.sql(
            "UPDATE jobs SET created_at = '2026-06-01 11:00:00', started_at = ?, completed_at = ?"
            " WHERE id = ?",
            started,
            ended,
            job_id,
        )
    store.job("due")
    report = store.run()
    assert store.cleaned() == {"due"}
    notable = {
        event.job.id for event in store.of(JobSkipped) if isinstance(event, JobSkipped) and event.notable
    }
    assert len(notable) == report.skipped == 7


def test_jobs_with_an_impossible_end_displace_none_of_the_newest(store: JobStore) -> None:
    text_times(store)
    for job_id, ended in (
        ("newest", "2026-06-01T10:00:00-08:00"),
        ("second", "2026-06-01T12:00:00Z"),
        ("third", "2026-06-01T11:00:00"),
        ("undated", "n/a"),
        ("future", "2027-01-01T00:00:00"),
    ):
        store.job(job_id)
        store.sql("UPDATE jobs SET created_at = NULL, completed_at = ? WHERE id = ?", ended, job_id)
    store.run(retention__successful_jobs__keep_last=2)
    assert store.cleaned() == {"third"}


def text_times(store: JobStore) -> None:
    """Recreate the table with text columns, as a migration from SQLite to a server makes them."""
    store.sql("DROP TABLE jobs")
    store.sql(
        "CREATE TABLE jobs (id TEXT PRIMARY KEY, workflow_type TEXT, status TEXT, created_at TEXT,"
        " started_at TEXT, completed_at TEXT, dem_filename TEXT)"
    )


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the machine's zone to Tokyo's; the run notices it by itself."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    yield
    monkeypatch.undo()
    reload_zones()


def failed_in_utc(store: JobStore, jobs: int) -> None:
    """Add jobs of a web interface in UTC that failed four hours ago and waited up to a minute."""
    text_times(store)
    for number in range(jobs):
        store.job(f"job-{number}", "failed", days=4 / 24)
        store.sql(
            "UPDATE jobs SET started_at = ? WHERE id = ?",
            (store.now - timedelta(hours=5, seconds=-20 * number)).replace(tzinfo=None).isoformat(),
            f"job-{number}",
        )


@pytest.mark.usefixtures("tokyo")
@pytest.mark.parametrize("how", [{}, {"force": True}, {"dry_run": True}])
def test_a_zone_in_which_jobs_seem_older_than_they_are_refuses_the_run(
    store: JobStore, how: dict[str, bool]
) -> None:
    """Also the first run, and with --force."""
    failed_in_utc(store, 3)
    before = store.snapshot()
    with pytest.raises(BreakerError, match=r"database\.timezone"):
        store.run(database__timezone="local", **how)  # type: ignore[arg-type]  # booleans, not options
    assert store.snapshot() == before
    store.run(database__timezone="UTC")
    assert store.cleaned() == set()
    assert not store.of(Warned)


@pytest.mark.usefixtures("tokyo")
@pytest.mark.parametrize(("jobs", "zone"), [(2, "local"), (3, "Asia/Tokyo")])
def test_a_configured_zone_and_few_jobs_are_only_warned_of(store: JobStore, jobs: int, zone: str) -> None:
    failed_in_utc(store, jobs)
    store.run(database__timezone=zone, dry_run=True)
    (warning,) = store.of(Warned)
    assert isinstance(warning, Warned)
    assert "UTC+09:00" in warning.message


@pytest.mark.usefixtures("tokyo")
def test_a_zone_that_changes_under_the_daemon_reaches_its_next_run(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.job("failed", "failed", days=11 / 24)
    local = (store.now - timedelta(hours=11 - 9)).replace(tzinfo=None)
    store.sql("UPDATE jobs SET completed_at = ?", local.isoformat())
    store.run(database__timezone="local")
    assert store.cleaned() == set()
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # five hours further east
    store.run(database__timezone="local")
    assert store.cleaned() == {"failed"}


@pytest.mark.root
def test_one_undeletable_file_leaves_its_job_uncleaned_and_the_next_run_tries_again(store: JobStore) -> None:
    store.job("stuck", files=5)
    store.job("done")
    file = store.results("stuck") / "global/day_3.tif"
    with immutable(file, root=store.path):
        report = store.run()
        assert (report.outcome, report.errors) == ("errors", 1)
        assert store.cleaned() == {"done"}
        assert not store.results("stuck").exists()
        (failure,) = store.of(JobFailed)
        assert isinstance(failure, JobFailed)
        assert "day_3.tif: Operation not permitted" in failure.error
        assert store.run().errors == 1
    again = store.run()
    assert (again.successful.jobs, again.errors) == (1, 0)
    assert store.cleaned() == {"done", "stuck"}
    assert store.trash() == []


def test_a_job_under_a_lock_is_kept_for_this_run(store: JobStore) -> None:
    import subprocess

    store.job("busy")
    with subprocess.Popen(
        ["flock", str(store.results("busy") / "global/day_0.tif"), "sh", "-c", "echo held; read end"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        report = store.run()
        assert (report.successful.jobs, report.skipped) == (0, 1)
        assert (store.results("busy") / "global/day_0.tif").exists()
        holder.communicate(b"\n")
    assert store.run().successful.jobs == 1


def test_orphans_and_lost_files_are_reported(store: JobStore) -> None:
    store.job("known", days=1)
    store.job("lost", days=1, files=0)
    store.job("shares", days=1, dem="dem.tif", files=0)
    store.upload("dem.tif")
    (store.path / "results/nobody").mkdir()
    (store.path / "temp/nobody-either").mkdir()
    store.upload("nobodys.tif")
    report = store.run()
    orphans = {event.found.label for event in store.of(OrphanFound) if isinstance(event, OrphanFound)}
    assert orphans == {"results/nobody/", "temp/nobody-either/", "uploads/nobodys.tif"}
    assert (report.orphans_found, report.missing) == (3, 1)


def test_old_orphans_go_the_same_way_when_that_is_asked_for(store: JobStore) -> None:
    store.job("live", "running", days=None, files=0)  # an empty table would be refused
    store.wait(hours=49)
    for name in ("old", "young"):
        folder = store.path / "results" / name
        folder.mkdir()
        (folder / "file").write_bytes(b"x")
    moment = (store.now - timedelta(hours=47)).timestamp()
    os.utime(store.results("young") / "file", (moment, moment))
    report = store.run(orphans__delete_after_hours=48)
    assert report.orphans.jobs == 1
    assert not store.results("old").exists()
    assert store.results("young").exists()
    assert store.sql("SELECT job_id, action FROM cleanup_audit") == [("old", "deleted_results")]
    assert store.sql("SELECT * FROM cleanup_intents") == []


def test_a_missing_root_is_refused_and_nothing_is_marked(store: JobStore) -> None:
    store.job("done")
    store.run()
    store.job("next")
    (store.path / "results").rename(store.path / "elsewhere")
    with pytest.raises(RootError, match="results"):
        store.run()
    (store.path / "results").mkdir()
    with pytest.raises(RootError, match="roots --accept"):
        store.run()
    with pytest.raises(RootError, match="roots --accept"):
        store.run(force=True)
    assert store.cleaned() == {"done"}
    (store.path / "results").rmdir()
    (store.path / "elsewhere").rename(store.path / "results")
    assert store.run().successful.jobs == 1


@pytest.mark.parametrize("leap_days", [3650, -1])
def test_a_clock_that_leapt_is_refused_and_nothing_is_touched(store: JobStore, leap_days: int) -> None:
    store.job("done")
    store.run()
    store.job("young", days=1)
    database, files = store.content(), store.snapshot()
    store.now += timedelta(days=leap_days)
    with pytest.raises(BreakerError, match="--force"):
        store.run()
    assert store.content() == database
    assert store.snapshot() == files
    store.run(force=True)
    assert any(isinstance(event, Warned) and "--force" in event.message for event in store.events)


@pytest.mark.slow
def test_a_run_that_would_take_nearly_everything_is_refused_but_not_the_first(store: JobStore) -> None:
    for number in range(101):
        store.job(f"first-{number}", files=0)
    assert store.run().successful.jobs == 101
    warned = [event.message for event in store.events if isinstance(event, Warned)]
    assert "101 of 101" in warned[0]
    for number in range(110):
        store.job(f"second-{number}", days=3, files=0)
    with pytest.raises(BreakerError, match="110 of 110"):
        store.run(retention__successful_jobs__hours=1)
    assert len(store.cleaned()) == 101
    capped = store.run(retention__successful_jobs__hours=1, safety__max_jobs_per_run=50)
    assert capped.successful.jobs == 50
    assert store.run(retention__successful_jobs__hours=1, force=True).successful.jobs == 60


def test_a_second_run_says_who_holds_the_lock(store: JobStore) -> None:
    store.job("done")
    with run_lock(store.open(), "the-first", store.now):
        with pytest.raises(LockHeldError, match=rf"the-first.*{os.getpid()}"):
            store.run()
        assert store.run(dry_run=True).successful.jobs == 1
    assert store.run().successful.jobs == 1


def test_a_job_that_changes_or_is_held_after_the_plan_is_left_alone(store: JobStore) -> None:
    for name in ("revived", "held", "gone", "done"):
        store.job(name)
    ledger = with_ledger(store)

    def meddle(event: Event) -> None:
        if type(event).__name__ == "RunStarted":
            store.sql("UPDATE jobs SET status = 'running' WHERE id = 'revived'")
            store.sql("DELETE FROM jobs WHERE id = 'gone'")
            ledger.hold(Hold("held", "", "anna"), store.now)

    store.run(on_event=meddle)
    assert store.cleaned() == {"done"}
    for name in ("revived", "held", "gone"):
        assert (store.results(name) / "global/day_0.tif").exists()


def test_an_upload_that_a_new_job_names_while_it_is_staged_comes_back(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eemtcleanupd.deletion.trash import Trash

    store.job("done", dem="dem.tif")
    upload = store.upload("dem.tif")
    content = upload.read_bytes()
    stage = Trash.stage

    def submit_meanwhile(self: Trash, item: str, names: list[str]) -> tuple[str, ...]:
        moved = stage(self, item, names)
        if names == ["dem.tif"]:
            store.job("new", "pending", days=None, dem="dem.tif", files=0)
        return moved

    monkeypatch.setattr(Trash, "stage", submit_meanwhile)
    store.run()
    assert store.cleaned() == {"done"}
    assert upload.read_bytes() == content
    assert store.trash() == []


def test_a_run_that_is_stopped_leaves_the_rest_to_the_next(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "eemtcleanupd.cleanup.pipeline.RECORD_SECONDS", 0
    )  # recorded as soon as it is deleted
    for number in range(40):
        store.job(f"job-{number:02}", days=10 + number)
    stop = StopFlag()

    def stop_soon(event: Event) -> None:
        if isinstance(event, JobCleaned):
            stop.set()

    first = store.run(stop=stop, on_event=stop_soon, performance__max_workers=1, performance__batch_size=5)
    assert first.outcome == "interrupted"
    assert 0 < first.successful.jobs < 40
    cleaned = store.cleaned()
    for row in store.sql("SELECT id FROM jobs WHERE data_cleaned_at IS NULL"):
        assert row[0] not in cleaned
    second = store.run()
    assert second.outcome == "success"
    assert first.successful.jobs + second.successful.jobs == 40
    assert store.cleaned() == {f"job-{number:02}" for number in range(40)}
    assert store.trash() == []


@pytest.mark.slow
def test_a_run_whose_cluster_does_not_answer_is_told_and_cleans_alone(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eemtcleanupd.deletion.dask_executor.CONNECT_SECONDS", 0.2)
    store.job("done", files=300)
    report = store.run(
        performance__executor="dask",
        performance__dask__scheduler="tls://127.0.0.1:1",
        performance__dask__tls_ca_file="/nowhere/ca.pem",
        performance__dask__tls_cert_file="/nowhere/cert.pem",
        performance__dask__tls_key_file="/nowhere/key.pem",
    )
    assert report.outcome == "success"
    assert store.cleaned() == {"done"}
    (warning,) = (event.message for event in store.events if isinstance(event, Warned))
    assert "tls://127.0.0.1:1" in warning


@pytest.mark.slow
def test_many_small_jobs_are_recorded_in_few_transactions_and_all_of_them(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction waits for the disk; none may be so long that the web interface notices."""
    monkeypatch.setattr("eemtcleanupd.cleanup.pipeline.monotonic_seconds", lambda: 0.0)
    for number in range(230):
        store.job(f"job-{number}", files=1)
    recorded: list[int] = []
    real = Recording.record_in_transaction

    def record(self: Recording, connection: Connection, jobs: list[Any], now: datetime) -> set[str]:
        recorded.append(len(jobs))
        return real(self, connection, jobs, now)

    monkeypatch.setattr(Recording, "record_in_transaction", record)
    store.run()
    assert len(store.cleaned()) == 230
    assert max(recorded) == 100
    assert len(recorded) < 10


@pytest.mark.sqlite
def test_the_documents_scripts_work_unchanged_on_the_database(store: JobStore) -> None:
    store.job("done", files=20)
    store.job("broken", "failed", days=2)
    store.job("young", days=1)
    store.run()
    yesterday = (store.now - timedelta(hours=24)).replace(tzinfo=None).isoformat()
    count, size = store.sql(
        "SELECT COUNT(*), SUM(data_size_mb) FROM jobs WHERE data_cleaned_at > ?", yesterday
    )[0]
    assert count == 2
    assert isinstance(size, float)
    assert size > 0
    usage = store.sql(
        "SELECT status, COUNT(*) as count, SUM(data_size_mb) as total_mb FROM jobs"
        " WHERE data_cleaned_at IS NULL GROUP BY status"
    )
    assert [(status, number) for status, number, _ in usage] == [("completed", 1)]
    store.sql(
        "INSERT INTO cleanup_audit (job_id, action, space_freed_mb, user)"
        " VALUES ('job-123', 'deleted_results', 15360, 'auto_cleanup')"
    )
    store.sql("UPDATE jobs SET data_cleaned_at = NULL WHERE data_cleaned_at IS NOT NULL")
    store.sql("DELETE FROM cleanup_log")
    connection = sqlite3.connect(store.path / "jobs.db", isolation_level=None)
    connection.execute("VACUUM")
    connection.close()
    again = store.run()
    assert (again.successful.jobs, again.failed.jobs, again.bytes_freed) == (1, 1, 0)
    assert store.cleaned() == {"done", "broken"}
    assert store.sql("SELECT SUM(data_size_mb) FROM jobs WHERE data_cleaned_at IS NOT NULL") == [(0,)]


def test_roots_that_hold_our_logs_never_give_them_to_a_job(store: JobStore) -> None:
    store.job("logs")
    store.run(paths__logs=str(store.path / "results/logs"))
    assert store.cleaned() == set()
    assert store.results("logs").is_dir()


def test_a_marker_in_its_results_keeps_a_job_and_what_it_shares(store: JobStore) -> None:
    store.job("kept", dem="dem.tif")
    store.job("other", dem="dem.tif")
    upload = store.upload("dem.tif")
    (store.results("kept") / ".eemt-keep").touch()
    dry = store.run(dry_run=True)
    assert dry.successful.jobs == 1
    store.run()
    assert store.cleaned() == {"other"}
    assert upload.exists()
    assert ("kept", "held by the file .eemt-keep in its results") in [
        (each.job.id, each.reason) for each in store.of(JobSkipped) if isinstance(each, JobSkipped)
    ]
    (store.results("kept") / ".eemt-keep").unlink()
    store.run()
    assert not upload.exists()


def test_a_marker_that_comes_up_after_the_plan_keeps_the_job(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        store.job(f"job-{number}")
    stage = Staging.stage

    def mark_and_stage(self: Staging, group: Sequence[ClaimedJob]) -> list[ClaimedJob]:
        marker = store.results("job-1") / ".eemt-keep"
        if not marker.is_symlink():
            marker.symlink_to("nowhere")
        return stage(self, group)

    monkeypatch.setattr(Staging, "stage", mark_and_stage)
    store.run()
    assert store.cleaned() == {"job-0", "job-2"}
    assert store.results("job-1").exists()


def test_an_upload_stays_with_a_job_that_changed_after_the_claim(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = store.upload("dem.tif")
    store.job("changed", dem="dem.tif", days=11)
    store.job("other", dem="dem.tif", days=10)
    stage = Staging.stage

    def change_and_stage(self: Staging, group: Sequence[ClaimedJob]) -> list[ClaimedJob]:
        staged = stage(self, group)
        store.sql("UPDATE jobs SET workflow_type = 'eemt' WHERE id = 'changed'")
        return staged

    monkeypatch.setattr(Staging, "stage", change_and_stage)
    store.run()
    assert store.cleaned() == {"other"}
    assert store.results("changed").exists()
    assert upload.exists()


def test_what_a_deleted_row_left_stays_while_its_id_is_held(store: JobStore) -> None:
    store.wait(hours=0)
    store.job("a")
    store.run(retention__successful_jobs__hours=100_000)
    for name in ("a_notes.tif", "stranger_notes.tif"):
        store.upload(name)
    store.sql("INSERT INTO cleanup_holds (job_id) VALUES ('a')")
    store.job("b", "running", days=None)
    store.sql("DELETE FROM jobs WHERE id = 'a'")
    store.wait(hours=2)
    report = store.run(orphans__delete_after_hours=1)
    assert store.results("a").exists()
    assert (store.path / "uploads/a_notes.tif").exists()
    assert not (store.path / "uploads/stranger_notes.tif").exists()
    assert report.orphans.jobs == 1


def test_a_hold_that_was_set_in_sql_without_owner_and_reason_keeps_its_job(store: JobStore) -> None:
    store.job("a")
    store.run(retention__successful_jobs__hours=100_000)
    store.sql("INSERT INTO cleanup_holds (job_id) VALUES ('a')")
    assert store.run().outcome == "success"
    (skipped,) = [event for event in store.of(JobSkipped) if isinstance(event, JobSkipped)]
    assert skipped.reason.startswith("held by")


# -- the row is reset while the data is in the trash ---------------------------------------------------------

_RESET = "UPDATE jobs SET data_cleaned_at = NULL, data_size_mb = NULL, cleanup_summary = NULL"
_RECORD = "SELECT data_cleaned_at, data_size_mb, cleanup_summary FROM jobs WHERE id = 'a'"


def test_a_job_in_the_trash_whose_row_was_reset_gets_its_record_back_and_counts_once(store: JobStore) -> None:
    store.job("a", dem="a_dem.tif")
    store.upload("a_dem.tif")
    first = store.run(trash__grace_hours=24)
    assert first.successful.jobs == 1
    record = store.sql(_RECORD)
    assert "in the trash" in str(record[0][2])
    history = store.sql("SELECT job_id, action FROM cleanup_log")
    totals = "SELECT value FROM cleanup_totals WHERE name = 'jobs_cleaned'"
    total = store.sql(totals)
    store.sql(_RESET)
    store.now += timedelta(hours=1)
    assert store.run(dry_run=True, trash__grace_hours=24).successful.jobs == 0
    again = store.run(trash__grace_hours=24)
    assert (again.successful.jobs, again.bytes_freed, again.missing, again.skipped) == (0, 0, 0, 0)
    assert store.of(JobCleaned) == []
    assert store.sql(_RECORD) == record
    assert store.sql("SELECT job_id, action FROM cleanup_log") == history
    assert store.sql(totals) == total
    assert len(store.sql("SELECT * FROM cleanup_intents")) == 1


def test_a_job_with_files_in_place_and_in_the_trash_is_cleaned_like_any_other(store: JobStore) -> None:
    store.job("a")
    store.run(trash__grace_hours=24)
    store.sql(_RESET)
    store.results("a").mkdir()
    (store.results("a") / "new.tif").write_bytes(b"x" * 5000)
    assert store.run(trash__grace_hours=24).successful.jobs == 1
    assert not store.results("a").exists()
    assert len(store.sql("SELECT * FROM cleanup_intents")) == 2


def test_a_reset_job_whose_trash_is_gone_is_not_marked_as_if_it_were_there(store: JobStore) -> None:
    store.job("a")
    store.run(trash__grace_hours=24)
    store.sql(_RESET)
    (item,) = store.trash()
    shutil.rmtree(store.path / "results/.eemtcleanupd-trash" / item)
    report = store.run(trash__grace_hours=24)
    assert report.skipped == 1
    assert store.cleaned() == set()
