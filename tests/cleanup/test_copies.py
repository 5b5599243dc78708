"""What a run copies before it deletes: a copy that fails or is stopped costs only its own job."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from eemtcleanupd.backup.folder import BackupFolder
from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.cleanup.context import NullHooks
from eemtcleanupd.cleanup.pipeline import Pipeline
from eemtcleanupd.cleanup.restore import RestoreRequest, RestoreResult, restore, restore_backup
from eemtcleanupd.errors import BackupError, RowError, TrashError
from eemtcleanupd.events import RunReport, Warned
from eemtcleanupd.model import ArtifactPath, Job
from eemtcleanupd.plugins import Plugins
from tests.cleanup.conftest import JobStore
from tests.cleanup.test_refused_records import refuse
from tests.deletion.conftest import mount_tmpfs

__all__ = ["mount_tmpfs"]
MB = 1 << 20


def fail_job(store: JobStore, job_id: str, log_bytes: int) -> Path:
    store.job(job_id, "failed")
    log = store.results(job_id) / "run.log"
    log.write_bytes(os.urandom(log_bytes))
    return log


def run_with_backups(store: JobStore, stop: StopFlag | None = None) -> RunReport:
    config = store.config(backup__enabled=True, backup__path=str(store.path / "backup"))
    return clean(
        config,
        RunRequest(user="tester"),
        emit=lambda _: None,
        stop=stop,
        clock=lambda: store.now,
        hooks=Plugins(config),
    )


def untouched(store: JobStore, job_id: str) -> bool:
    """Return whether a job is where it was, with nothing of it in the trash or in an intent."""
    intents = store.sql("SELECT count(*) FROM cleanup_intents")
    return store.results(job_id).exists() and store.trash() == [] and intents == [(0,)]


@pytest.mark.root
def test_a_log_that_does_not_fit_keeps_only_its_job(
    store: JobStore, mount_tmpfs: Callable[[Path, str], None]
) -> None:
    fail_job(store, "large", 20 * MB)
    fail_job(store, "small", 1000)
    store.job("done")
    mount_tmpfs(store.path / "logs", "24M")
    for cleaned in (2, 0):  # the second run is not worse off than the first
        report = store.run()
        assert (report.successful.jobs + report.failed.jobs, report.errors) == (cleaned, 1)
        assert store.cleaned() == {"small", "done"}
        assert untouched(store, "large")
        free = os.statvfs(store.path / "logs")
        assert free.f_bavail * free.f_frsize > 20 * MB


def test_a_job_whose_logs_cannot_be_kept_is_not_backed_up_by_each_run(store: JobStore) -> None:
    fail_job(store, "a", 1000)
    (store.path / "logs").mkdir()
    in_the_way = store.path / "logs/jobs"
    in_the_way.touch()
    assert run_with_backups(store).errors == 1
    assert untouched(store, "a")
    assert BackupFolder(store.path / "backup").all() == []
    in_the_way.unlink()
    assert run_with_backups(store).failed.jobs == 1
    assert len(BackupFolder(store.path / "backup").all("a")) == 1
    assert (store.path / "logs/jobs/a/run.log").stat().st_size == 1000


@pytest.mark.root
@pytest.mark.parametrize("grace", [0, 24])
def test_a_run_that_is_stopped_during_the_copy_of_a_log_puts_the_job_back(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, mount_tmpfs: Callable[[Path, str], None], grace: int
) -> None:
    fail_job(store, "a", 3 * MB)
    mount_tmpfs(store.path / "logs", "64M")
    stop, pwrite = StopFlag(), os.pwrite

    def write_and_stop(fd: int, data: bytes, position: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".part"):
            stop.set()
        return pwrite(fd, data, position)

    monkeypatch.setattr(os, "pwrite", write_and_stop)
    report = store.run(stop=stop, trash__grace_hours=grace)
    assert (report.outcome, report.errors) == ("interrupted", 0)
    assert untouched(store, "a")
    assert list((store.path / "logs/jobs/a").iterdir()) == []
    monkeypatch.undo()
    assert store.run(trash__grace_hours=grace).failed.jobs == 1
    assert (store.path / "logs/jobs/a/run.log").stat().st_size == 3 * MB


def test_a_run_that_is_stopped_during_a_backup_puts_the_job_back(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.job("a")
    (store.results("a") / "large.tif").write_bytes(bytes(3 * MB))
    stop, pread = StopFlag(), os.pread

    def read_and_stop(fd: int, size: int, offset: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("large.tif"):
            stop.set()
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", read_and_stop)
    report = run_with_backups(store, stop)
    assert (report.outcome, report.errors) == ("interrupted", 0)
    assert untouched(store, "a")
    assert list((store.path / "backup").iterdir()) == []
    monkeypatch.undo()
    assert run_with_backups(store).successful.jobs == 1


@pytest.mark.root
def test_a_backup_that_does_not_fit_keeps_only_its_job(
    store: JobStore, mount_tmpfs: Callable[[Path, str], None]
) -> None:
    store.job("small")
    store.job("large")
    (store.results("large") / "large.tif").write_bytes(os.urandom(10 * MB))
    mount_tmpfs(store.path / "backup", "20M")
    report = run_with_backups(store)
    assert (report.successful.jobs, report.errors) == (1, 1)
    assert store.cleaned() == {"small"}
    assert untouched(store, "large")
    assert len(list((store.path / "backup").iterdir())) == 1


def restored(store: JobStore, job_id: str) -> RestoreResult:
    backups = BackupFolder(store.path / "backup").all(job_id)
    request = RestoreRequest(store.config(), job_id, (), False, "ann", NullHooks(), lambda: store.now)
    return restore_backup(request, [backup.path for backup in backups])


@pytest.mark.parametrize(
    "moment", [9_300_000_000_123_456_789, -9_300_000_000_123_456_789], ids=["2264", "1675"]
)
def test_a_file_comes_back_with_any_time_that_its_filesystem_keeps(store: JobStore, moment: int) -> None:
    store.job("a")
    file = store.results("a") / "dem.tif"
    file.touch()
    os.utime(file, ns=(moment, moment))
    kept = file.stat().st_mtime_ns
    assert run_with_backups(store).successful.jobs == 1
    assert restored(store, "a").warnings == ()
    assert file.stat().st_mtime_ns == kept


def test_a_restore_without_a_record_leaves_nothing_that_it_unpacked(store: JobStore) -> None:
    store.job("bad")
    run_with_backups(store)
    refuse(store, "abort")
    with pytest.raises(RowError):
        restored(store, "bad")
    assert store.trash() == []


@pytest.mark.parametrize("suffix", ["", ".deleting"])
def test_a_run_removes_what_a_killed_restore_had_unpacked(store: JobStore, suffix: str) -> None:
    store.job("a")
    run_with_backups(store)
    trash = store.path / "results/.eemtcleanupd-trash"
    left = trash / f"backup-20260101T000000-0badf00d.1{suffix}" / "a/global"
    foreign = trash / "backups"
    for folder in (left, foreign):
        folder.mkdir(parents=True)
        (folder / "day_0.tif").write_text("unpacked")
    assert store.run().errors == 0
    assert store.trash() == [foreign.name]
    assert len(store.of(Warned)) == 1


def test_a_restore_removes_what_was_unpacked_whatever_else_has_its_name(store: JobStore) -> None:
    store.job("a")
    run_with_backups(store)
    for name in ("backup-x.1", "backup-x.1.deleting"):  # the owner of the store can create both
        (store.path / "results/.eemtcleanupd-trash" / name / "a").mkdir(parents=True)
    restored(store, "a")
    assert untouched(store, "a")
    assert store.trash() == []


def test_what_a_killed_run_left_in_the_trash_is_restored_from_there(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    store.job("a")
    monkeypatch.setattr(Pipeline, "submit", kill)
    with pytest.raises(Killed):
        run_with_backups(store)
    monkeypatch.undo()
    with pytest.raises(TrashError):
        restored(store, "a")
    request = RestoreRequest(store.config(), "a", (), True, "ann", NullHooks(), lambda: store.now)
    restore(request)
    assert run_with_backups(store).errors == 0
    assert untouched(store, "a")


def test_a_folder_that_cannot_be_created_for_a_restore_is_an_error(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.job("a")
    run_with_backups(store)
    mkdir = os.mkdir

    def refuse(path: str, *options: int, **more: int) -> None:
        if str(path).startswith("backup-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, *options, **more)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(BackupError):
        restored(store, "a")
    assert store.trash() == []


@pytest.mark.root
def test_a_restore_leaves_the_space_that_the_next_run_needs(
    store: JobStore, mount_tmpfs: Callable[[Path, str], None]
) -> None:
    (store.path / "results").rmdir()
    mount_tmpfs(store.path / "results", "30M")
    store.job("a")
    (store.results("a") / "large.tif").write_bytes(os.urandom(4 * MB))
    run_with_backups(store)
    other = store.path / "results/other"
    other.write_bytes(os.urandom(14 * MB))
    with pytest.raises(BackupError):
        restored(store, "a")
    assert store.trash() == []
    assert store.cleaned() == {"a"}
    other.unlink()
    restored(store, "a")
    assert store.results("a").exists()


class CopyDuringWhich(NullHooks):
    """Copies jobs; meanwhile a program writes into one of them."""

    read_jobs = True

    def __init__(self, store: JobStore, job_id: str) -> None:
        self.store, self.job_id = store, job_id

    def before_stage(self, job: Job, artifacts: Sequence[ArtifactPath]) -> str | None:
        moment = self.store.now.timestamp()
        folder = self.store.results(self.job_id) / "global"
        (folder / f"{job.id}.tif").write_bytes(b"new")
        os.utime(folder, (moment, moment))
        return None


def test_a_job_that_is_written_to_while_its_group_is_copied_stays(store: JobStore) -> None:
    for job_id in ("a", "b", "c"):
        store.job(job_id)
    config = store.config(safety__min_idle_minutes=60)
    hooks = CopyDuringWhich(store, "a")
    report = clean(config, RunRequest("tester"), emit=lambda _: None, clock=lambda: store.now, hooks=hooks)
    assert (report.successful.jobs, report.skipped, report.errors) == (2, 1, 0)
    assert store.cleaned() == {"b", "c"}
    assert (store.results("a") / "global/c.tif").exists()
    assert untouched(store, "a")
