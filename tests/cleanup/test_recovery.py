"""A run that is killed at any moment leaves a store from which the next run goes on by itself."""

from __future__ import annotations

import errno
import itertools
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Select

from eemtcleanupd.cleanup import planner
from eemtcleanupd.cleanup.context import NullHooks, RunContext
from eemtcleanupd.cleanup.restore import RestoreRequest, restore
from eemtcleanupd.cleanup.session import job_table
from eemtcleanupd.events import JobPlanned, OrphanFound, RunFinished, Warned
from eemtcleanupd.model import Trigger
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.report.due_jobs import due_jobs
from eemtcleanupd.report.job_state import job_state
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.newest_jobs import NewestJobs
from eemtcleanupd.store.sqlite import SqliteDatabase
from tests.cleanup.conftest import JobStore
from tests.conftest import settle

KILLED = 77
# Workers share the steps of a run: each test takes every fourth.
SHARES = 4
CALLS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir", "os.link"}


def fill(path: Path) -> JobStore:
    """Make a store whose run takes every kind of step: shared and single uploads, archives, kept logs."""
    store = JobStore(path)
    store.job("done", dem="single.tif")
    store.job("broken", "failed", days=2, dem="needed.tif")
    (store.results("broken") / "global/run.log").write_text("why")
    store.job("live", "running", days=None, dem="needed.tif")
    store.job("young", days=1)
    (store.path / "results/done_results.zip").write_bytes(b"zip" * 1000)
    (store.path / "temp/done").mkdir()
    for name in ("single.tif", "needed.tif"):
        store.upload(name)
    return store


_ADVISORY_LOCKS = """
SELECT 1 FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
WHERE l.locktype = 'advisory' AND d.datname = current_database()"""


def run_and_die(store: JobStore, at: int | Callable[[], bool], grace_hours: int = 0, **options: Any) -> bool:
    """Run in a child that dies at its ``at``-th step, or at the first that holds; False if it ended before.

    Steps are the calls that change or list folders, and both sides of every write to the database.  The
    child ends by _exit(2): no handler, no buffer, no transaction survives.
    """
    child = os.fork()
    if child == 0:
        steps = 0
        looking = threading.local()  # what ``at`` lists is no step

        def step() -> None:
            nonlocal steps
            if hasattr(looking, "now"):
                return
            steps += 1
            looking.now = True
            with suppress(FileNotFoundError):  # what ``at`` lists can vanish meanwhile
                if at() if callable(at) else steps == at:
                    os._exit(KILLED)
            del looking.now

        def hook(event: str, _args: tuple[object, ...]) -> None:
            if event in CALLS:
                step()

        real_write = SqliteDatabase.write

        def write(self: SqliteDatabase, work: Callable[..., object]) -> object:
            step()
            result = real_write(self, work)
            step()
            return result

        try:
            SqliteDatabase.write = write  # type: ignore[method-assign,assignment]  # only in this child
            sys.addaudithook(hook)
            store.run(performance__max_workers=1, trash__grace_hours=grace_hours, **options)
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    while store.url and store.sql(_ADVISORY_LOCKS):
        pass  # the server notices the end of a client a moment later
    assert code in {0, KILLED}
    return code == KILLED


def assert_nothing_is_lost_or_lied_about(store: JobStore) -> None:
    assert (store.results("live") / "global/day_0.tif").exists()
    assert (store.results("young") / "global/day_0.tif").exists()
    assert len(store.sql("SELECT * FROM jobs")) == 4
    if "data_cleaned_at" in store.columns():
        for job_id in store.cleaned():
            assert not store.results(str(job_id)).exists()
            assert not (store.path / f"results/{job_id}_results.zip").exists()


def assert_totals_equal_the_records(store: JobStore) -> None:
    totals = "SELECT coalesce(sum(value), 0) FROM cleanup_totals WHERE name ="
    assert store.sql(f"{totals} 'jobs_cleaned'") == [(len(store.cleaned()),)]
    freed = store.sql("SELECT sum(bytes_freed) FROM cleanup_runs")
    assert store.sql(f"{totals} 'bytes_freed'") == freed


def test_the_totals_have_what_a_killed_run_had_recorded(tmp_path: Path) -> None:
    store = fill(tmp_path / "store")
    assert run_and_die(store, lambda: "data_cleaned_at" in store.columns() and bool(store.cleaned()))
    assert store.cleaned()
    assert store.sql("SELECT outcome FROM cleanup_runs") == [(None,)]
    assert_totals_equal_the_records(store)


@pytest.mark.slow
@pytest.mark.parametrize("first_step", range(1, SHARES + 1))
@pytest.mark.parametrize("grace_hours", [0, 1])
def test_the_next_run_finishes_what_a_kill_at_any_step_interrupted(
    tmp_path: Path, grace_hours: int, first_step: int
) -> None:
    for at in itertools.count(first_step, SHARES):
        store = fill(tmp_path / f"{at}")
        # A kill in mid-move may leave the needed upload in the trash, never lost.
        killed = run_and_die(store, at, grace_hours)
        assert_nothing_is_lost_or_lied_about(store)
        report = store.run(trash__grace_hours=grace_hours)
        assert report.outcome == "success"
        assert_nothing_is_lost_or_lied_about(store)
        assert store.cleaned() == {"done", "broken"}
        assert (store.path / "uploads/needed.tif").exists()
        assert not (store.path / "uploads/single.tif").exists()
        assert (store.path / "logs/jobs/broken/global/run.log").read_text() == "why"
        freed = sum(int(str(row[0])) for row in store.sql("SELECT bytes_freed FROM cleanup_runs"))
        assert freed <= 100_000  # nothing is counted twice
        assert_totals_equal_the_records(store)
        if grace_hours:
            store.now += timedelta(hours=2)
            store.run(trash__grace_hours=grace_hours)
        assert store.trash() == []
        assert store.sql("SELECT * FROM cleanup_intents") == []
        assert not [event for event in store.events if isinstance(event, Warned)]
        if not killed:
            break
    assert at > 40  # the child really took the steps that it was to die at


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first_step", range(1, SHARES + 1))
@pytest.mark.parametrize(("grace_hours", "is_reset"), [(0, False), (24, True)])
def test_what_expired_jobs_share_goes_and_counts_once_after_a_kill_at_any_step(
    tmp_path: Path, grace_hours: int, is_reset: bool, first_step: int
) -> None:
    for at in itertools.count(first_step, SHARES):
        store = JobStore(tmp_path / f"{at}", now=datetime.now(UTC))
        store.job("a", dem="shared.tif")
        store.job("b", "failed", days=9, dem="shared.tif")
        store.job("a_b", days=12)
        for name in ("shared.tif", "a_b_x.tif"):
            store.upload(name)
        killed = run_and_die(store, at, grace_hours)
        if is_reset and "data_cleaned_at" in store.columns():
            store.sql("UPDATE jobs SET data_cleaned_at = NULL, data_size_mb = NULL, cleanup_summary = NULL")
        for _ in range(2):
            store.wait(seconds=30)
            report = store.run(trash__grace_hours=grace_hours)
            assert report.outcome == "success"
        assert (report.successful.jobs, report.failed.jobs) == (0, 0)
        assert store.cleaned() == {"a", "b", "a_b"}
        assert not [path for root in ("results", "uploads") for path in (store.path / root).glob("[!.]*")]
        if grace_hours:
            taken = store.sql("SELECT job_id, action FROM cleanup_log WHERE action IN ('cleaned', 'trashed')")
            assert sorted(taken) == [(job, "trashed") for job in ("a", "a_b", "b")]
            store.now += timedelta(hours=grace_hours + 1)
            store.run(trash__grace_hours=grace_hours)
        assert store.trash() == []
        assert store.sql("SELECT * FROM cleanup_intents") == []
        if not killed:
            break
    assert at > 30


@pytest.mark.slow
@pytest.mark.parametrize("first_step", range(1, SHARES + 1))
def test_a_staged_job_that_runs_again_gets_its_files_back(tmp_path: Path, first_step: int) -> None:
    """The kill is between staging and deletion; then the job is restarted under its id."""
    seen = 0
    for at in itertools.count(first_step, SHARES):
        store = fill(tmp_path / f"{at}")
        if not run_and_die(store, at):
            break
        trash = store.path / "results/.eemtcleanupd-trash"
        staged = [path for path in trash.glob("*/done") if not path.parent.name.endswith(".deleting")]
        if not staged:
            continue
        seen += 1
        store.sql("UPDATE jobs SET status = 'running' WHERE id = 'done'")
        store.run()
        assert (store.results("done") / "global/day_0.tif").exists()
        assert "done" not in store.cleaned()
    assert seen


def test_recovery_does_not_overwrite_what_took_the_place_of_an_artifact(tmp_path: Path) -> None:
    store = fill(tmp_path)
    trash = store.path / "results/.eemtcleanupd-trash"

    def staged() -> list[Path]:
        return [path for path in trash.glob("*/done") if not path.parent.name.endswith(".deleting")]

    assert run_and_die(store, lambda: bool(staged()))
    store.sql("UPDATE jobs SET status = 'running' WHERE id = 'done'")
    store.results("done").mkdir()
    (store.results("done") / "new").write_text("new")
    store.run()
    assert (store.results("done") / "new").read_text() == "new"
    assert (staged()[0] / "global/day_0.tif").exists()
    assert any("results/done" in event.message for event in store.events if isinstance(event, Warned))
    (error,) = store.sql("SELECT error FROM cleanup_intents")[0]
    assert "trash restore" in str(error)


def test_trash_that_no_run_owns_is_reported_and_left(store: JobStore) -> None:
    store.run()
    stranger = store.path / "results/.eemtcleanupd-trash/stranger"
    stranger.mkdir()
    store.run()
    assert stranger.is_dir()
    assert any("results/stranger" in event.message for event in store.events if isinstance(event, Warned))


def test_space_freed_before_an_interruption_is_not_lost(store: JobStore) -> None:
    """What a job's earlier attempt measured stands in its row although its files went uncounted."""
    store.job("done", days=1)
    store.run()
    (size,) = store.sql("SELECT data_size_mb FROM jobs")
    store.now += timedelta(days=10)
    import shutil

    shutil.rmtree(store.results("done"))
    store.run()
    assert store.sql("SELECT data_size_mb FROM jobs") == [size]


def _killed_between_two_deletions(path: Path) -> JobStore:
    """Return a store whose run died when the deletion of a job's results had begun, of its upload not yet."""
    store = fill(path)
    results, uploads = (store.path / root / ".eemtcleanupd-trash" for root in ("results", "uploads"))

    def is_between() -> bool:
        doomed = {found.parent.name.endswith(".deleting") for found in uploads.glob("*/single.tif")}
        return doomed == {False} and any(results.glob("*.deleting/done"))

    assert run_and_die(store, is_between)
    assert not list(results.glob("*.deleting/broken"))
    return store


@pytest.mark.parametrize(
    "meanwhile",
    [
        "INSERT INTO cleanup_holds (job_id, created_at) VALUES ('done', '2026-06-15 00:00:00')",
        "UPDATE jobs SET status = 'running', completed_at = NULL WHERE id = 'done'",
        "UPDATE jobs SET completed_at = '2026-06-15T11:00:00' WHERE id = 'done'",
    ],
    ids=["it is held", "it runs again", "it ran again"],
)
def test_what_deletion_had_not_reached_comes_back_when_its_job_is_needed_again(
    tmp_path: Path, meanwhile: str
) -> None:
    store = _killed_between_two_deletions(tmp_path)
    store.sql(meanwhile)
    again = store.results("done")
    again.mkdir()
    (again / "new.tif").write_text("new")
    store.run()
    assert (store.path / "uploads/single.tif").exists()
    assert (again / "new.tif").exists()
    assert "done" not in store.cleaned()
    assert store.sql("SELECT * FROM cleanup_intents") == []


def test_recovery_takes_from_a_group_only_the_jobs_whose_deletion_had_begun(tmp_path: Path) -> None:
    """Small artifacts of all jobs of a group share a folder of the trash, in each root."""
    store = JobStore(tmp_path)
    store.job("begun", dem="of-begun.tif", files=0)
    store.results("begun").mkdir()
    settle(store.results("begun"), store.now - timedelta(days=9))
    store.job("held", dem="of-held.tif", files=0)
    for name in ("of-begun.tif", "of-held.tif"):
        store.upload(name)
    results, uploads = (store.path / root / ".eemtcleanupd-trash" for root in ("results", "uploads"))

    def is_between() -> bool:
        staged = {path.name for path in uploads.glob("*.g1/*")}
        return staged == {"of-begun.tif", "of-held.tif"} and any(results.glob("*.g1.deleting/begun"))

    assert run_and_die(store, is_between)
    store.sql("INSERT INTO cleanup_holds (job_id, created_at) VALUES ('held', '2026-06-15 00:00:00')")
    store.run()
    assert store.cleaned() == {"begun"}
    assert {path.name for path in (store.path / "uploads").glob("[!.]*")} == {"of-held.tif"}
    assert store.trash() == []
    assert store.sql("SELECT * FROM cleanup_intents") == []


def test_a_part_of_a_group_that_recovery_cannot_delete_keeps_its_job_unrecorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _killed_between_two_deletions(tmp_path)
    unlink = os.unlink

    def refuse(path: str, *, dir_fd: int | None = None) -> None:
        if path == "single.tif":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    for _ in range(2):
        report = store.run()
        assert [failure.job_id for failure in report.failures] == ["done"]
        assert "done" not in store.cleaned()
        assert any((store.path / "uploads/.eemtcleanupd-trash").glob("*.deleting/single.tif"))
    monkeypatch.undo()
    assert store.run().errors == 0
    assert "done" in store.cleaned()
    assert store.trash() == []


@pytest.mark.parametrize("is_stuck", [False, True])
def test_a_job_whose_deletion_had_begun_is_none_of_the_newest_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stuck: bool
) -> None:
    store = JobStore(tmp_path)
    store.job("newest", days=9)
    trash = store.path / "results/.eemtcleanupd-trash"
    assert run_and_die(store, lambda: any(trash.glob("*.deleting")))
    store.job("second", days=10)
    store.job("third", days=11)
    if is_stuck:
        monkeypatch.setattr(os, "rmdir", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "")))
    keeping: dict[str, Any] = {"retention__successful_jobs__keep_last": 1}
    store.run(dry_run=True, **keeping)
    planned = {event.job.id for event in store.events if isinstance(event, JobPlanned)}
    store.run(**keeping)
    assert planned == {"third"}
    assert store.results("second").exists()
    assert not store.results("third").exists()


def test_a_held_job_that_a_killed_run_had_deleted_takes_no_place_of_the_newest(store: JobStore) -> None:
    store.job("newest", days=9)
    trash = store.path / "results/.eemtcleanupd-trash"
    assert run_and_die(store, lambda: any(trash.glob("*.deleting")))
    store.job("second", days=10)
    store.job("third", days=11)
    store.sql("INSERT INTO cleanup_holds (job_id) VALUES ('newest')")
    keeping: dict[str, Any] = {"retention__successful_jobs__keep_last": 1}
    for _ in range(2):
        store.run(**keeping)
        assert store.cleaned() == {"newest", "third"}
        assert store.results("second").exists()
    assert not store.results("newest").exists()


@pytest.mark.sqlite  # the kill is at a write to this database
@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("has_ended", [True, False])
def test_a_held_job_counts_as_cleaned_if_a_killed_run_had_deleted_all_of_it(
    store: JobStore, has_ended: bool
) -> None:
    store.job("a")
    store.run(retention__successful_jobs__hours=100_000)  # measures it
    trash = store.path / "results/.eemtcleanupd-trash"

    def is_reached() -> bool:
        is_gone = not any(store.path.rglob("day_*.tif"))
        return is_gone and any(trash.glob("*.deleting")) is not has_ended

    assert run_and_die(store, is_reached)
    store.sql("INSERT INTO cleanup_holds (job_id) VALUES ('a')")
    assert store.run().successful.jobs == 1
    ((size, cleaned_at),) = store.sql("SELECT data_size_mb, data_cleaned_at FROM jobs")
    assert float(str(size)) > 0
    assert cleaned_at is not None


@pytest.mark.sqlite  # the kill is at a write to this database
def test_a_held_job_does_not_count_as_cleaned_with_what_an_earlier_recovery_put_back(store: JobStore) -> None:
    store.job("a")
    archive = store.path / "results/a_results.zip"
    archive.write_bytes(b"zip")
    settle(archive, store.now - timedelta(days=9))
    trash = store.path / "results/.eemtcleanupd-trash"
    assert run_and_die(store, lambda: any(trash.glob("*.deleting")) and not archive.exists())
    store.sql("INSERT INTO cleanup_holds (job_id) VALUES ('a')")
    assert run_and_die(store, lambda: archive.exists() and any(trash.glob("*.deleting")))
    store.run()
    assert store.trash() == []
    assert archive.exists()
    assert store.cleaned() == set()


@pytest.mark.sqlite  # the kill is at a write to this database
@pytest.mark.parametrize("label", ["results/a_results.zip", "uploads/dem.tif"])
def test_a_job_does_not_count_as_cleaned_with_what_a_person_restored_of_it(
    store: JobStore, label: str
) -> None:
    store.job("a", dem="dem.tif")
    restored = store.path / label
    restored.write_bytes(b"data")
    settle(restored, store.now - timedelta(days=9))
    trash = store.path / "results/.eemtcleanupd-trash"
    assert run_and_die(store, lambda: any(trash.glob("*.deleting")) and not restored.exists())
    hooks = NullHooks()
    restore(RestoreRequest(store.config(), "a", {label}, True, "ann", hooks, lambda: store.now))
    store.run()
    assert store.trash() == []
    assert restored.exists()
    assert store.cleaned() == set()


@pytest.mark.sqlite  # the kill is at a write to this database
@pytest.mark.parametrize("is_held", [False, True])
def test_a_job_whose_deletion_had_ended_counts_beside_an_upload_that_went_back(
    store: JobStore, is_held: bool
) -> None:
    store.job("a", dem="dem.tif")
    upload = store.upload("dem.tif")
    trash = store.path / "results/.eemtcleanupd-trash"
    submitted: list[str] = []

    def is_deleted() -> bool:
        if not submitted and any(trash.glob("*/a")):
            submitted.append("live")
            store.job("live", "running", days=None, dem="dem.tif", files=0)
        return (
            upload.exists() and not any(store.path.rglob("day_*.tif")) and not any(trash.glob("*.deleting"))
        )

    assert run_and_die(store, is_deleted)
    if is_held:
        store.sql("INSERT INTO cleanup_holds (job_id) VALUES ('a')")
    store.run(trigger=Trigger.RECOVERY)
    assert upload.exists()
    assert store.cleaned() == {"a"}
    assert store.sql("SELECT job_id, action FROM cleanup_log") == [("a", "cleaned")]


@pytest.mark.sqlite  # the kill is at a write to this database
def test_a_job_that_failed_again_since_the_kill_gets_its_upload_back(store: JobStore) -> None:
    store.job("a", "failed", days=2, dem="dem.tif")
    upload = store.upload("dem.tif")
    trash = store.path / "results/.eemtcleanupd-trash"
    assert run_and_die(store, lambda: any(trash.glob("*.deleting")) and not upload.exists())
    ended = (store.now + timedelta(hours=1)).replace(tzinfo=None)
    store.sql("UPDATE jobs SET completed_at = ?", ended.isoformat())
    store.now += timedelta(hours=2)
    store.run()
    assert upload.exists()
    assert store.cleaned() == set()


@pytest.mark.sqlite  # the kill is at a write to this database
def test_an_orphan_whose_deletion_had_begun_gives_away_no_upload_of_a_job_without_id(store: JobStore) -> None:
    store.job("a", dem="dem.tif")
    upload = store.upload("dem.tif")
    trash = store.path / "results/.eemtcleanupd-trash"
    assert run_and_die(store, lambda: any(trash.glob("*.deleting")) and not upload.exists())
    store.sql(
        "INSERT INTO cleanup_intents (id, run_id, kind, state, artifacts, bytes_freed, size_bytes,"
        " created_at, is_purging) VALUES ('r.g1.1', 'r', 'orphan', 'open', ?, 0, 0, '2026-06-15', 0)",
        '[["results", "x", true, "r.g1.1.1"]]',
    )
    (trash / "r.g1.1.1.deleting").mkdir(mode=0o700)
    store.job(None, "running", days=None, dem="dem.tif", files=0)
    store.run()
    assert upload.exists()


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("data", ["in place", "in the trash", "gone"])
def test_a_job_whose_data_is_gone_takes_no_place_of_the_newest(store: JobStore, data: str) -> None:
    store.job("newest", days=9, files=0 if data == "gone" else 2)
    grace: dict[str, Any] = {"trash__grace_hours": 24}
    if data == "in the trash":
        store.run(**grace)
        store.sql("UPDATE jobs SET data_cleaned_at = NULL")
    store.job("second", days=10)
    store.job("third", days=11)
    store.run(retention__successful_jobs__keep_last=1, **grace)
    assert store.cleaned() == ({"third"} if data == "gone" else {"second", "third"})


@pytest.mark.fast_parameters(1)
def test_a_job_of_which_only_the_zip_is_left_is_one_of_the_newest(store: JobStore) -> None:
    store.job("gone", days=9, files=0)
    store.job("newest", days=10, files=0)
    (store.path / "results/newest_results.zip").write_bytes(b"zip")
    store.job("older", days=11)
    store.run(retention__successful_jobs__keep_last=1)
    assert store.cleaned() == {"older"}
    assert (store.path / "results/newest_results.zip").exists()


@pytest.mark.fast_parameters(1)
def test_the_newest_jobs_are_found_soon_behind_many_whose_data_is_gone(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = (store.now - timedelta(hours=hours) for hours in range(1, 3001))
    rows = (f"('gone{n}', 'sol', 'completed', '2025-01-01', '{end:%F %T}')" for n, end in enumerate(ends))
    columns = "id, workflow_type, status, created_at, completed_at"
    store.sql(f"INSERT INTO jobs ({columns}) VALUES {', '.join(rows)}")
    store.job("newest", days=200, files=0)
    (store.path / "results/newest_results.zip").write_bytes(b"zip")
    store.job("older", days=201)
    monkeypatch.setattr(planner, "_JOBS_AHEAD", 1000)
    scans, real = [], NewestJobs.next_page

    def next_page(self: NewestJobs, statement: Select[Any]) -> Select[Any]:
        scans.append(statement)
        return real(self, statement)

    monkeypatch.setattr(NewestJobs, "next_page", next_page)
    config = store.config(retention__successful_jobs__keep_last=1)
    states = [job_state(config, job, NullHooks(), store.now) for job in ("newest", "older")]
    assert [state is not None and state.would_clean for state in states] == [False, True]
    assert len(scans) <= 2 * 3  # one or two for all jobs, and one for those with data


def test_why_and_report_know_what_the_next_run_finishes(store: JobStore) -> None:
    store.job("newest", days=9)
    trash = store.path / "results/.eemtcleanupd-trash"
    assert run_and_die(store, lambda: any(trash.glob("*.deleting")))
    store.job("second", days=10)
    store.job("third", days=11)
    config = store.config(retention__successful_jobs__keep_last=1)
    states = [job_state(config, job, NullHooks(), store.now) for job in ("second", "third")]
    assert [state is not None and state.would_clean for state in states] == [False, True]
    run = RunContext.reading(config, Policy.from_config(config.retention), store.now, NullHooks())
    database = store.open()
    due = due_jobs(run, database, job_table(database, config))
    assert (due.kept, due.cleaned) == (["second"], ["third"])


# -- a run that only recovers --------------------------------------------------------------------------------


def test_a_recovery_run_finishes_what_was_being_deleted_and_takes_nothing_else(tmp_path: Path) -> None:
    store = _killed_between_two_deletions(tmp_path)
    store.job("later", days=30)
    orphan = store.upload("of-nobody.tif")
    os.utime(orphan, (0, 0))
    planned = Ledger(store.open()).last_cleanup_at()
    store.now += timedelta(days=2)  # the orphan is old too, whichever time of it counts
    report = store.run(trigger=Trigger.RECOVERY, orphans__delete_after_hours=1)
    assert store.cleaned() == {"done"}
    assert not (store.path / "uploads/single.tif").exists()
    assert store.trash() == []
    assert store.results("later").exists()
    assert store.results("broken").exists()
    assert orphan.exists()
    assert store.of(OrphanFound) == []
    assert (report.successful.jobs, report.failed.jobs, report.missing) == (1, 0, 0)
    (finished,) = store.of(RunFinished)
    assert finished.occasion == "recovery"
    assert store.sql("SELECT trigger, outcome FROM cleanup_runs ORDER BY number")[-1] == (
        "recovery",
        "success",
    )
    ledger = Ledger(store.open())
    assert not ledger.has_whole_run()
    assert ledger.last_success_at() is None
    assert ledger.last_cleanup_at() == planned
    store.run(orphans__delete_after_hours=1)
    assert store.cleaned() == {"done", "broken", "later"}


@pytest.mark.parametrize("trigger", [Trigger.RECOVERY, Trigger.TRASH])
def test_a_run_that_plans_no_jobs_puts_back_what_was_only_staged(tmp_path: Path, trigger: Trigger) -> None:
    store = fill(tmp_path)

    def is_only_staged() -> bool:
        items = [path.name for path in store.path.glob("*/.eemtcleanupd-trash/**/*")]
        return {"done", "single.tif"} <= {*items} and not any(name.endswith(".deleting") for name in items)

    assert run_and_die(store, is_only_staged)
    report = store.run(trigger=trigger)
    assert store.sql("SELECT trigger FROM cleanup_runs ORDER BY number")[-1] == (trigger,)
    assert store.cleaned() == set()
    assert (store.results("done") / "global/day_0.tif").exists()
    assert (store.path / "uploads/single.tif").exists()
    assert store.trash() == []
    assert report.bytes_freed == 0


def test_a_recovery_run_records_a_job_whose_deletion_had_ended(tmp_path: Path) -> None:
    store = fill(tmp_path)

    def is_gone() -> bool:
        left = {path.name for path in store.path.rglob("*") if "logs" not in path.parts}
        return not {"done", "single.tif"} & left and "done" not in store.cleaned()

    assert run_and_die(store, is_gone)
    assert "done" in {row[0] for row in store.sql("SELECT job_id FROM cleanup_intents")}
    store.run(trigger=Trigger.RECOVERY)
    assert "done" in store.cleaned()
    assert store.sql("SELECT * FROM cleanup_intents") == []


def test_a_recovery_run_purges_no_trash(store: JobStore) -> None:
    store.job("old")
    store.run(trash__grace_hours=1)
    items = store.trash()
    store.now += timedelta(hours=2)
    assert store.run(trigger=Trigger.RECOVERY, trash__grace_hours=1).trash_purged.jobs == 0
    assert store.trash() == items
    assert store.run(trash__grace_hours=1).trash_purged.jobs == 1
