"""What others change between two steps of a run: what a job needs then stays, and the trash loses nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eemtcleanupd.cleanup import RunRequest, clean, inventory, planner
from eemtcleanupd.cleanup.context import NullHooks
from eemtcleanupd.cleanup.session import root_entries
from eemtcleanupd.cleanup.staging import ClaimedJob, Staging
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.errors import BreakerError, JobTableError
from eemtcleanupd.events import AuditEntry, Event, JobCleaned, JobPlanned, JobTally, OrphanFound, RunReport
from eemtcleanupd.model import ArtifactPath, Job
from tests.cleanup.conftest import JobStore
from tests.cleanup.test_recovery import run_and_die
from tests.conftest import RunCli, immutable, settle


class At(NullHooks):
    """Does something once, when a run has come to an action on a job."""

    def __init__(self, action: str, job_id: str | None, act: Callable[[], object]) -> None:
        self._moment = (action, job_id)
        self._act: Callable[[], object] | None = act

    def _reach(self, *moment: object) -> None:
        if moment == self._moment and self._act is not None:
            act, self._act = self._act, None
            act()

    def before_stage(self, job: Job, artifacts: Sequence[ArtifactPath]) -> str | None:
        self._reach("backup", job.id)
        return None

    def audit(self, entries: Sequence[AuditEntry]) -> None:
        for entry in entries:
            self._reach(entry.action, entry.details.get("job_id"))


def run(store: JobStore, hooks: NullHooks, **options: object) -> RunReport:
    return clean(
        store.config(**options),
        RunRequest(user="tester"),
        emit=store.events.append,
        clock=lambda: store.now,
        hooks=hooks,
    )


@pytest.fixture
def after_staging(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Return what lets somebody act once, when the first group is in the trash and not yet checked again."""

    def let(act: Callable[[], object]) -> None:
        real, waiting = Staging.confirm, [act]

        def confirm(self: Staging, group: list[ClaimedJob], in_flight: Collection[Job]) -> list[ClaimedJob]:
            while waiting:
                waiting.pop()()
            return real(self, group, in_flight)

        monkeypatch.setattr(Staging, "confirm", confirm)

    return let


def kept(store: JobStore, content: bytes) -> bool:
    """Return whether a file with this content is in a root or its trash."""
    return content in store.snapshot().values()


@pytest.mark.parametrize("grace_hours", [0, 24])
def test_a_marker_that_comes_up_late_keeps_the_upload_that_the_job_shares(
    store: JobStore, grace_hours: int
) -> None:
    store.job("a", days=20, dem="dem.tif")
    store.job("b", days=10, dem="dem.tif")
    store.upload("dem.tif")
    run(
        store,
        At("cleaning", "a", (store.results("a") / ".eemt-keep").touch),
        trash__grace_hours=grace_hours,
    )
    assert store.cleaned() == {"b"}
    assert (store.results("a") / ".eemt-keep").exists()
    assert (store.path / "uploads/dem.tif").exists()


@pytest.mark.parametrize("grace_hours", [0, 24])
@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_download_that_starts_with_the_move_keeps_its_job(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, moment: str, grace_hours: int
) -> None:
    store.job("a")
    store.job("b")
    archive = store.path / "results/a_results.zip"

    def build() -> None:
        archive.write_bytes(b"half")
        os.utime(archive, (store.now.timestamp(), store.now.timestamp()))

    real = Trash.stage

    def stage(self: Trash, item: str, names: Collection[str]) -> tuple[str, ...]:
        if moment == "during" and "a" in names:
            build()
        return real(self, item, names)

    monkeypatch.setattr(Trash, "stage", stage)
    hooks = At("cleaning", "a", build) if moment == "before" else NullHooks()
    options = {"safety__min_idle_minutes": 60, "trash__grace_hours": grace_hours}
    assert run(store, hooks, **options).skipped == 1
    assert store.cleaned() == {"b"}
    assert any(store.results("a").rglob("*.tif"))
    assert archive.read_bytes() == b"half"


def test_a_job_that_is_run_again_while_it_is_deleted_keeps_the_upload_that_it_shares(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eemtcleanupd.cleanup.pipeline.RECORD_SECONDS", 3600)  # all that is deleted together
    store.job("a", days=20, dem="dem.tif")
    for number in range(4):  # the first group has two jobs, and the next run on before that is recorded
        store.job(f"b{number}", days=10 - number / 10, dem="dem.tif")
    store.upload("dem.tif")

    def run_again() -> None:
        store.sql("UPDATE jobs SET status = 'running', completed_at = NULL WHERE id = 'a'")

    run(store, At("cleaning", "b3", run_again), performance__max_workers=1)
    assert store.cleaned() == {"b0", "b1", "b2", "b3"}
    assert (store.path / "uploads/dem.tif").exists()


@pytest.mark.parametrize("grace_hours", [0, 24])
def test_results_that_cannot_go_back_stay_in_the_trash_when_their_group_is_deleted(
    store: JobStore, after_staging: Callable[[Callable[[], object]], None], grace_hours: int
) -> None:
    for name in ("a", "b"):  # without subfolders, so that they are small and share the folder of a group
        store.job(name, files=0)
        store.results(name).mkdir()
        (store.results(name) / "map.tif").write_bytes(name.encode())

    def run_again() -> None:
        store.sql("UPDATE jobs SET status = 'running', completed_at = NULL WHERE id = 'a'")
        store.results("a").mkdir()
        (store.results("a") / "map.tif").write_bytes(b"new")

    after_staging(run_again)
    for _ in range(3):
        store.run(trash__grace_hours=grace_hours)
        assert store.cleaned() == {"b"}
        assert kept(store, b"a")
        assert kept(store, b"new")
    (store.results("a") / "map.tif").unlink()
    store.results("a").rmdir()
    store.run(trash__grace_hours=grace_hours)
    assert (store.results("a") / "map.tif").read_bytes() == b"a"
    assert store.sql("SELECT id FROM cleanup_intents WHERE state = 'open'") == []


def test_a_job_whose_deletion_failed_beside_what_cannot_go_back_is_not_recorded(
    store: JobStore, after_staging: Callable[[Callable[[], object]], None]
) -> None:
    for name in ("a", "b"):
        store.job(name, files=0)
        store.results(name).mkdir()
        (store.results(name) / "map.tif").write_bytes(name.encode())

    def run_again() -> None:
        store.sql("UPDATE jobs SET status = 'running', completed_at = NULL WHERE id = 'a'")
        store.results("a").mkdir()

    after_staging(run_again)
    with immutable(store.results("b") / "map.tif", root=store.path):
        for _ in range(3):
            assert store.run().errors == 1
            assert (store.cleaned(), kept(store, b"a"), kept(store, b"b")) == (set(), True, True)
    assert store.run().errors == 0
    assert (store.cleaned(), kept(store, b"a"), kept(store, b"b")) == ({"b"}, True, False)


@pytest.mark.parametrize("grace_hours", [0, 24])
def test_an_upload_that_cannot_go_back_keeps_its_job_until_it_can(
    store: JobStore, after_staging: Callable[[Callable[[], object]], None], grace_hours: int
) -> None:
    store.job("a", dem="dem.tif")
    store.job("b", dem="other.tif")
    store.upload("dem.tif").write_bytes(b"old")
    store.upload("other.tif")

    def submit_again() -> None:
        store.job("c", "running", days=None, dem="dem.tif", files=0)
        store.upload("dem.tif").write_bytes(b"new")

    after_staging(submit_again)
    for number in range(3):
        dry_run = store.run(dry_run=True, trash__grace_hours=grace_hours)
        report = store.run(trash__grace_hours=grace_hours)
        if number:
            assert dry_run.successful == report.successful == JobTally()
            assert dry_run.trash_purged == report.trash_purged == JobTally()
        assert store.cleaned() == {"b"}
        assert store.results("a").exists()
        assert kept(store, b"old")
        assert kept(store, b"new")
    store.upload("dem.tif").unlink()
    store.run(trash__grace_hours=grace_hours)
    assert store.cleaned() == {"a", "b"}
    assert (store.path / "uploads/dem.tif").read_bytes() == b"old"


@pytest.mark.parametrize("status", ["running", "completed", "strange"])
def test_the_trash_keeps_what_its_own_job_needs_again(store: JobStore, status: str) -> None:
    store.job("a", dem="dem.tif")
    store.upload("dem.tif").write_bytes(b"old")
    store.run(trash__grace_hours=24)
    store.sql("UPDATE jobs SET status = ?, completed_at = NULL, data_cleaned_at = NULL", status)
    store.now += timedelta(days=2)
    report = store.run(trash__grace_hours=24)
    assert (report.trash_purged.jobs, kept(store, b"old")) == (0, True)
    # Once it is due again, or everything is in its place again, the trash is of no use to it.
    if status == "completed":
        store.sql("UPDATE jobs SET completed_at = '2026-06-06 00:00:00'")
    else:
        store.results("a").mkdir()
        store.upload("dem.tif").write_bytes(b"new")
    assert store.run(trash__grace_hours=24).trash_purged.jobs == 1
    assert not kept(store, b"old")


def test_the_trash_keeps_what_a_job_needs_that_ran_again_and_failed(store: JobStore) -> None:
    store.job("a", "failed", dem="dem.tif")
    store.upload("dem.tif").write_bytes(b"old")
    store.run(trash__grace_hours=24)
    store.now += timedelta(hours=20)  # it finds no upload, and the web application keeps data_cleaned_at
    store.sql("UPDATE jobs SET completed_at = ?", f"{store.now:%Y-%m-%dT%H:%M:%S}")
    store.now += timedelta(hours=10)
    report = store.run(trash__grace_hours=24)
    assert (report.trash_purged.jobs, kept(store, b"old")) == (0, True)
    store.now += timedelta(days=3)
    assert store.run(trash__grace_hours=24).trash_purged.jobs == 1


@pytest.mark.parametrize("how", ["named", "gone"])
def test_an_orphan_that_is_none_any_more_does_not_count_as_removed(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    store.job("young", days=1)
    upload = store.upload("dem.tif")
    store.now = datetime.now(UTC) + timedelta(days=3)
    store.sql(
        "UPDATE jobs SET completed_at = ?", (store.now - timedelta(days=1)).strftime("%Y-%m-%d %H:%M:%S")
    )
    moment = "stage" if how == "gone" else "confirm"
    real = getattr(Staging, moment)

    def late(self: Staging, *arguments: object) -> list[ClaimedJob]:
        if how == "gone":
            upload.unlink()
        else:
            store.job("new", "running", days=None, dem="dem.tif", files=0)
        result: list[ClaimedJob] = real(self, *arguments)
        return result

    monkeypatch.setattr(Staging, moment, late)
    report = store.run(orphans__delete_after_hours=24)
    assert report.orphans.jobs == 0
    assert store.sql("SELECT job_id FROM cleanup_log") == []
    assert store.sql("SELECT id FROM cleanup_intents") == []
    assert upload.exists() == (how == "named")


def test_an_orphan_that_is_replaced_after_it_was_measured_stays(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.job("young", days=1)
    upload = store.upload("dem.tif")
    store.now = datetime.now(UTC) + timedelta(days=3)
    store.sql("UPDATE jobs SET completed_at = ?", f"{store.now - timedelta(days=1):%Y-%m-%d %H:%M:%S}")
    real = Staging.stage

    def late(self: Staging, group: Sequence[ClaimedJob]) -> list[ClaimedJob]:
        upload.unlink()
        upload.write_bytes(b"new")  # the web application writes its row next
        os.utime(upload, times=(store.now.timestamp(), store.now.timestamp()))
        return real(self, group)

    monkeypatch.setattr(Staging, "stage", late)
    report = store.run(orphans__delete_after_hours=24, safety__min_idle_minutes=60)
    assert (report.orphans.jobs, upload.read_bytes()) == (0, b"new")


def test_a_folder_that_took_the_place_of_an_orphan_with_its_old_times_stays(store: JobStore) -> None:
    store.job("young", days=1)
    store.wait()
    store.sql("UPDATE jobs SET completed_at = ?", f"{store.now - timedelta(days=1):%Y-%m-%d %H:%M:%S}")
    folder = store.path / "temp/lost/global"
    folder.mkdir(parents=True)
    settle(folder.parent, store.now - timedelta(days=3))
    store.wait()
    options: dict[str, Any] = {"orphans__delete_after_hours": 0, "safety__min_idle_minutes": 60}
    assert (store.run(**options).orphans.jobs, folder.exists()) == (0, True)
    store.wait(hours=2)
    assert (store.run(**options).orphans.jobs, folder.exists()) == (1, False)


def test_a_folder_that_the_plan_could_not_check_keeps_its_logs(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of the network can fail for a moment: the plan does not know then that it is a folder."""
    store.job("a")
    log = store.results("a") / "job.log"
    log.write_text("log")
    settle(store.results("a"), store.now - timedelta(days=10))
    stat = os.stat

    def fail(path: Any, **options: Any) -> os.stat_result:
        if path == "a" and sys._getframe(1).f_code is planner.find_artifacts.__code__:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, **options)

    options: dict[str, Any] = {"retention__successful_jobs__keep_logs": True}
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", fail)
        report = store.run(**options)
    assert (report.skipped, store.cleaned(), log.read_text()) == (1, set(), "log")
    assert store.run(**options).successful.jobs == 1
    assert (store.path / "logs/jobs/a/job.log").read_text() == "log"


@pytest.mark.parametrize("name", ["uploads/dem.tif", "temp/a/global/day_0.tif"])
def test_a_leftover_that_is_replaced_during_its_backup_stays(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = store.path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"old")
    store.now = datetime.now(UTC)
    store.job("a", dem="dem.tif", files=0)
    store.run(retention__successful_jobs__hours=100_000)
    store.wait()
    store.sql("UPDATE jobs SET data_cleaned_at = ?", store.now.replace(tzinfo=None).isoformat())
    store.wait()

    def replace() -> None:
        file.unlink()
        file.write_bytes(b"new")  # the web application resets the row next
        settle(file.parent, store.now - timedelta(days=3))  # a copy can keep the times of the original

    monkeypatch.setattr(At, "read_jobs", True)
    report = run(store, At("backup", "a", replace))
    assert (report.orphans.jobs, file.read_bytes()) == (0, b"new")
    assert store.sql("SELECT id FROM cleanup_intents") == []


def test_an_orphan_that_cannot_go_back_is_shown_and_can_be_restored(
    store: JobStore, after_staging: Callable[[Callable[[], object]], None], run_cli: RunCli
) -> None:
    store.job("young", days=1)
    upload = store.upload("dem.tif")
    upload.write_bytes(b"old")
    store.now = datetime.now(UTC) + timedelta(days=3)
    store.sql("UPDATE jobs SET completed_at = ?", f"{store.now - timedelta(days=1):%Y-%m-%d %H:%M:%S}")

    def submit() -> None:
        store.job("c", "running", days=None, dem="dem.tif", files=0)
        upload.write_bytes(b"new")

    after_staging(submit)
    store.run(orphans__delete_after_hours=24)
    (store.path / "cleanup_config.yaml").write_text("database: {timezone: UTC}\n")
    assert run_cli("trash", "list", cwd=store.path).stdout != "The trash is empty.\n"
    assert "uploads/dem.tif: " in run_cli("doctor", cwd=store.path).stdout
    upload.unlink()
    restored = run_cli("trash", "restore", "uploads/dem.tif", cwd=store.path)
    assert (restored.returncode, upload.read_bytes()) == (0, b"old"), restored.stderr
    assert store.sql("SELECT id FROM cleanup_intents") == []


@pytest.mark.parametrize("how", ["opened", "written"])
def test_a_job_that_is_used_after_its_backup_waits_for_the_next_run(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    store.job("a", days=20)
    store.job("b", days=10)
    store.now = datetime.now(UTC)
    monkeypatch.setattr(At, "read_jobs", True)
    with ExitStack() as stack:

        def use() -> None:
            began = time.monotonic()
            if how == "written":
                (store.results("a") / "global/new.tif").write_bytes(b"new")
            code = f"f = open({str(store.results('a') / 'global/day_1.tif')!r}); print(flush=True); input()"
            if how == "opened":
                process = stack.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                    )
                )
                stack.callback(process.kill)
                assert process.stdout is not None
                process.stdout.readline()
            while time.monotonic() - began < 0.2:  # a backup takes longer
                time.sleep(0.01)

        report = run(store, At("backup", "b", use), safety__min_idle_minutes=60)
    assert store.cleaned() == {"b"}
    assert (report.successful.jobs, report.skipped) == (1, 1)


@pytest.mark.parametrize("batch_size", [1, 100])
def test_a_job_that_cannot_go_leaves_its_place_under_the_cap_to_the_next(
    store: JobStore, batch_size: int
) -> None:
    for number in range(4):
        store.job(f"job-{number}", days=20 - number)
    store.now = datetime.now(UTC)
    options: dict[str, Any] = {"safety__max_jobs_per_run": 2, "safety__min_idle_minutes": 60}
    options["performance__batch_size"] = batch_size
    for name in ("job-0", "job-1"):
        os.utime(store.results(name))
    dry_run = store.run(dry_run=True, **options)
    report = store.run(**options)
    assert store.cleaned() == {"job-2", "job-3"}
    assert (dry_run.successful.jobs, dry_run.skipped, dry_run.remaining) == (2, 2, 0)
    assert (report.successful.jobs, report.skipped, report.remaining) == (2, 2, 0)


@pytest.mark.parametrize("why", ["too large", "in use"])
def test_a_dry_run_leaves_the_upload_to_a_job_that_stays(store: JobStore, why: str) -> None:
    store.job("a", days=20, dem="dem.tif", files=50)
    store.job("b", days=10, dem="dem.tif")
    upload = store.upload("dem.tif")
    options: dict[str, Any] = {"skip_larger_than_bytes": 100_000}
    if why == "in use":
        store.now = datetime.now(UTC)
        os.utime(store.results("a"))
        options = {"safety__min_idle_minutes": 60}
    dry_run = store.run(dry_run=True, **options)
    planned = {
        found.found.label
        for event in store.events
        if isinstance(event, JobPlanned)
        for found in event.artifacts
    }
    report = store.run(**options)
    assert (planned, upload.exists()) == ({"results/b/"}, True)
    assert dry_run.bytes_freed == report.bytes_freed


def test_a_grace_lasts_though_the_run_was_killed_and_a_file_was_gone_when_the_job_moved(
    tmp_path: Path,
) -> None:
    store = JobStore(tmp_path)
    store.job("a", dem="dem.tif")
    store.upload("dem.tif")
    archive = store.path / "results/a_results.zip"
    archive.write_bytes(b"zip")

    def is_staged() -> bool:
        trash = {path.name for path in store.path.glob("*/.eemtcleanupd-trash/*/*")}
        is_claimed = store.sql("SELECT name FROM sqlite_master WHERE name = 'cleanup_intents'") and store.sql(
            "SELECT id FROM cleanup_intents"
        )
        if is_claimed:
            archive.unlink(missing_ok=True)  # the web interface removes the zip
        return {"a", "dem.tif"} <= trash

    assert run_and_die(store, is_staged, grace_hours=24)
    report = store.run(trash__grace_hours=24)
    assert (report.bytes_freed, store.cleaned()) == (0, {"a"})
    assert len(store.trash()) == 2


def test_a_refused_run_names_what_an_interrupted_one_left_in_the_trash(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    store.job("staged")
    for number in range(30):
        store.job(f"young-{number}", days=1, files=0)
    assert run_and_die(store, lambda: any(store.path.glob("results/.eemtcleanupd-trash/*/staged")))
    store.sql("DELETE FROM jobs WHERE id LIKE 'young%'")
    with pytest.raises(JobTableError) as refused:
        store.run()
    assert "staged" in str(refused.value)


@pytest.mark.parametrize("grace_hours", [0, 24])
@pytest.mark.parametrize("held", [False, True])
def test_a_dry_run_shows_what_a_run_does_with_what_a_killed_run_had_staged(
    tmp_path: Path, grace_hours: int, held: bool
) -> None:
    store = JobStore(tmp_path)
    store.job("a", dem="dem.tif")
    store.upload("dem.tif")

    def is_staged() -> bool:
        return {"a", "dem.tif"} <= {path.name for path in store.path.glob("*/.eemtcleanupd-trash/*/*")}

    assert run_and_die(store, is_staged, grace_hours=grace_hours)
    if held:
        store.sql("INSERT INTO cleanup_holds (job_id, reason, owner) VALUES ('a', 'paper', 'alice')")
    dry_run = store.run(dry_run=True, trash__grace_hours=grace_hours)
    report = store.run(trash__grace_hours=grace_hours)
    assert (dry_run.successful, dry_run.trash_purged) == (report.successful, report.trash_purged)
    assert report.successful.jobs == (not held)


@pytest.mark.parametrize("left", [0, 5, 20])
def test_a_job_table_that_loses_its_rows_during_a_run_makes_no_orphans(store: JobStore, left: int) -> None:
    for number in range(30):
        store.job(f"job-{number:02}", days=1, files=1)
    store.now = datetime.now(UTC) + timedelta(days=3)
    store.sql("UPDATE jobs SET completed_at = ?", f"{store.now - timedelta(days=1):%Y-%m-%d %H:%M:%S}")

    def recreate() -> None:
        store.sql(f"DELETE FROM jobs WHERE id >= 'job-{left:02}'")

    before = store.snapshot()
    with pytest.raises(BreakerError):
        run(store, At("run_started", None, recreate), orphans__delete_after_hours=24)
    assert before.items() <= store.snapshot().items()


def test_a_run_that_fails_keeps_the_record_of_what_it_has_done(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eemtcleanupd.cleanup.pipeline.RECORD_SECONDS", 3600)  # all that is deleted together
    store.job("a")
    store.job("b", "failed")
    store.job("young", days=1)
    store.now = datetime.now(UTC) + timedelta(days=3)
    store.upload("orphan.tif")
    for job_id, days in (("a", 10), ("b", 10), ("young", 1)):
        ended = f"{store.now - timedelta(days=days):%Y-%m-%d %H:%M:%S}"
        store.sql("UPDATE jobs SET completed_at = ?, created_at = NULL WHERE id = ?", ended, job_id)

    def empty(event: Event) -> None:
        if isinstance(event, JobCleaned):
            store.sql("DELETE FROM jobs")

    with pytest.raises(JobTableError):
        store.run(on_event=empty, orphans__delete_after_hours=24)
    counts = "outcome, successful, failed, bytes_freed"
    assert store.sql(f"SELECT {counts} FROM cleanup_runs") == [
        ("failed", 1, 1, store.sql("SELECT sum(bytes_freed) FROM cleanup_log")[0][0])
    ]


def test_an_entry_that_is_listed_again_after_its_removal_counts_once(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.job("young", days=1)
    store.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)"
        " INSERT INTO jobs (id, workflow_type, status) SELECT 'job-' || i, 'sol', 'completed' FROM n"
    )
    for name in [f"job-{number}" for number in range(1, 501)] + [f"orphan-{number}" for number in range(90)]:
        store.results(name).mkdir()
    store.now = datetime.now(UTC) + timedelta(days=3)
    store.sql("UPDATE jobs SET completed_at = ?", f"{store.now - timedelta(days=1):%Y-%m-%d %H:%M:%S}")
    listed: list[str] = []

    def again(root: Root) -> Iterator[tuple[str, bool]]:
        """List a folder as ext4 can do while entries are removed from it."""
        entries = list(root_entries(root))
        yield from entries
        listed.append(root.name)
        if listed.count(root.name) == 2:
            yield from entries

    monkeypatch.setattr(inventory, "root_entries", again)
    report = store.run(orphans__delete_after_hours=24)
    assert report.orphans.jobs == 90


def test_a_dry_run_keeps_the_orphans_that_a_run_keeps(store: JobStore) -> None:
    store.job("young", days=1)
    for name in ("marked", "free"):
        store.results(name).mkdir()
    (store.results("marked") / ".eemt-keep").touch()
    store.now = datetime.now(UTC) + timedelta(days=3)
    store.sql("UPDATE jobs SET completed_at = ?", f"{store.now - timedelta(days=1):%Y-%m-%d %H:%M:%S}")
    dry_run = store.run(dry_run=True, orphans__delete_after_hours=24)
    planned = {
        event.found.label for event in store.events if isinstance(event, OrphanFound) and event.planned
    }
    report = store.run(orphans__delete_after_hours=24)
    removed = {
        event.found.label for event in store.events if isinstance(event, OrphanFound) and event.removed
    }
    assert planned == removed == {"results/free/"}
    assert (dry_run.orphans, dry_run.skipped) == (report.orphans, report.skipped)


@pytest.mark.parametrize("ended", ["again", "before"])
def test_a_job_that_ran_again_after_its_cleaning_keeps_the_upload_that_it_shares(
    store: JobStore, ended: str
) -> None:
    store.job("a", days=20, dem="dem.tif")
    store.job("b", days=2, dem="dem.tif")
    upload = store.upload("dem.tif")
    store.run()
    assert (store.cleaned(), upload.exists()) == ({"a"}, True)
    store.now += timedelta(days=8)
    if ended == "again":  # the web application does not know our columns
        moment = store.now - timedelta(days=1)
        store.sql("UPDATE jobs SET completed_at = ? WHERE id = 'a'", f"{moment:%Y-%m-%dT%H:%M:%S}")
    store.run()
    assert (store.cleaned(), upload.exists()) == ({"a", "b"}, ended == "again")
