"""Backups on the command line: a job is deleted only after its backup, which restores everything."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eemtcleanupd.backup import archive
from eemtcleanupd.backup.folder import BackupFolder
from eemtcleanupd.config.schema import BackupConfig
from eemtcleanupd.deletion.roots import open_root
from eemtcleanupd.events import RunFinished
from eemtcleanupd.model import RootName, Trigger
from eemtcleanupd.plugins.backup import BackupPlugin
from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli
from tests.notifiers.samples import report

CONFIG = "backup: {enabled: true}\ndatabase: {timezone: UTC}\n"


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path / "store", now=datetime.now(UTC))
    (store.path / "cleanup_config.yaml").write_text(CONFIG)
    store.job("a", dem="dem.tif")
    store.job("b", "failed")
    store.upload("dem.tif")
    return store


def contents(store: JobStore) -> dict[str, bytes | None]:
    return {path: data for path, data in store.snapshot().items() if ".eemtcleanupd" not in path}


def test_cleaned_jobs_are_restored_from_their_backups(store: JobStore, run_cli: RunCli) -> None:
    before = contents(store)
    assert run_cli("clean", cwd=store.path).returncode == 0
    assert store.cleaned() == {"a", "b"}
    listed = json.loads(run_cli("backup", "list", "--json", cwd=store.path).stdout)
    assert {each["job_id"] for each in listed} == {"a", "b"}
    assert "ok, 3 files, " in run_cli("backup", "verify", "a", cwd=store.path).stdout
    for job in ("a", "b"):
        done = run_cli("backup", "restore", job, cwd=store.path)
        assert done.returncode == 0, done.stderr
        assert f"Restored results/{job}/\n" in done.stdout
        assert f"Job {job} is held until " in done.stdout
    assert contents(store) == before
    assert store.cleaned() == set()
    assert store.trash() == []
    assert run_cli("clean", cwd=store.path).returncode == 0
    assert contents(store) == before  # held
    audit = (store.path / "logs" / "cleanup_audit.jsonl").read_text()
    assert f'"source": "from the backup {listed[0]["name"]}"' in audit


def test_an_upload_that_goes_after_its_jobs_is_restored_with_them(store: JobStore, run_cli: RunCli) -> None:
    store.job("c", days=1, dem="dem.tif")
    before = contents(store)
    assert run_cli("clean", cwd=store.path).returncode == 0
    assert (store.path / "uploads/dem.tif").exists()  # for c
    shutil.rmtree(store.results("c"))
    store.sql("DELETE FROM jobs WHERE id = 'c'")
    assert run_cli("clean", cwd=store.path).returncode == 0
    assert not (store.path / "uploads/dem.tif").exists()
    for job in ("a", "b"):
        done = run_cli("backup", "restore", job, cwd=store.path)
        assert done.returncode == 0, done.stderr
    assert contents(store) == {path: data for path, data in before.items() if "results/c" not in path}
    assert store.trash() == []


def test_what_only_an_older_backup_has_is_restored_if_its_place_is_free(
    store: JobStore, run_cli: RunCli
) -> None:
    before = contents(store)
    assert run_cli("clean", cwd=store.path).returncode == 0
    assert (
        run_cli("backup", "restore", "a", "--only", "results/a", "--no-hold", cwd=store.path).returncode == 0
    )
    assert run_cli("clean", cwd=store.path).returncode == 0
    (older, newest) = sorted((store.path / "backup").glob("a@*"))
    (store.path / "uploads/dem.tif").write_text("of another job")
    done = run_cli("backup", "restore", "a", "--no-hold", cwd=store.path)
    assert done.returncode == 0, done.stderr
    assert (store.path / "uploads/dem.tif").read_text() == "of another job"
    (store.path / "uploads/dem.tif").unlink()
    shutil.rmtree(store.results("a"))
    older.write_bytes(older.read_bytes()[:100])  # costs only what it alone has
    done = run_cli("backup", "restore", "a", "--no-hold", "--json", cwd=store.path)
    assert done.returncode == 0, done.stderr
    assert any(older.name in warning for warning in json.loads(done.stdout)["warnings"])
    assert store.results("a").exists()
    assert newest.exists()
    assert contents(store).items() <= before.items()


def test_a_job_whose_backup_fails_is_kept(store: JobStore, run_cli: RunCli) -> None:
    before = contents(store)
    (store.path / "backup").mkdir()
    (store.path / "backup").chmod(0o777)
    done = run_cli("clean", cwd=store.path)
    assert done.returncode == 1
    assert "backup: " in done.stdout + done.stderr
    assert str(store.path / "backup") in done.stdout + done.stderr
    assert contents(store) == before
    assert store.cleaned() == set()


def test_a_restore_never_overwrites_an_existing_file(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    (store.path / "uploads" / "dem.tif").write_text("a new one")
    done = run_cli("backup", "restore", "a", cwd=store.path)
    assert done.returncode == 1
    assert "uploads/dem.tif" in done.stderr
    assert not store.results("a").exists()
    assert run_cli("backup", "restore", "a", "--only", "results/a/", cwd=store.path).returncode == 0
    assert store.results("a").exists()
    assert (store.path / "uploads" / "dem.tif").read_text() == "a new one"


@pytest.mark.slow
def test_nothing_is_restored_from_a_damaged_backup(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    (archive,) = (store.path / "backup").glob("a@*")
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-30])
    verified = run_cli("backup", "verify", "--json", cwd=store.path)
    assert verified.returncode == 1
    assert {each["job_id"]: each["ok"] for each in json.loads(verified.stdout)} == {"a": False, "b": True}
    done = run_cli("backup", "restore", "a", cwd=store.path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert archive.name in done.stderr
    assert not store.results("a").exists()
    assert store.cleaned() == {"a", "b"}


@pytest.mark.parametrize(
    "change",
    ["DELETE FROM jobs WHERE id = 'a'", "UPDATE jobs SET status = 'running' WHERE id = 'a'"],
    ids=["unknown", "running"],
)
def test_a_live_or_unknown_job_is_not_restored(store: JobStore, run_cli: RunCli, change: str) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    store.sql(change)
    done = run_cli("backup", "restore", "a", cwd=store.path)
    assert done.returncode == 1
    assert "job a" in done.stderr.lower()
    assert not store.results("a").exists()


@pytest.mark.slow
def test_a_restore_removes_the_remains_of_an_interrupted_one(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    left = store.path / "results" / ".eemtcleanupd-trash" / "backup-20260101T000000-0badf00d.1"
    (left / "a").mkdir(parents=True)
    assert run_cli("backup", "restore", "a", cwd=store.path).returncode == 0
    assert store.trash() == []


@pytest.mark.slow
def test_a_run_deletes_expired_backups(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    (archive,) = (store.path / "backup").glob("a@*")
    old = store.now - timedelta(days=31)
    archive.rename(archive.with_name(f"a@{old:%Y%m%dT%H%M%S%f}Z.tar.zst"))
    assert run_cli("clean", "--dry-run", cwd=store.path).returncode == 0
    assert len(list((store.path / "backup").iterdir())) == 2
    assert run_cli("clean", cwd=store.path).returncode == 0
    assert [path.name[:2] for path in (store.path / "backup").iterdir()] == ["b@"]


def test_a_recovery_run_deletes_no_backup(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    (archive,) = (store.path / "backup").glob("a@*")
    old = store.now - timedelta(days=31)
    archive = archive.rename(archive.with_name(f"a@{old:%Y%m%dT%H%M%S%f}Z.tar.zst"))
    settings = BackupConfig(path=store.path / "backup")
    BackupPlugin().run_finished(RunFinished(report(trigger=Trigger.RECOVERY)), settings)
    assert archive.exists()
    BackupPlugin().run_finished(RunFinished(report()), settings)
    assert not archive.exists()


@pytest.mark.slow
def test_old_foreign_files_in_the_backup_folder_are_kept(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    folder = store.path / "backup"
    ours = folder / ".part.a@20200101T000000000000Z.tar.zst"
    theirs = [folder / ".part.thesis", folder / "thesis.tar.gz", folder / "a@2020.tar.gz"]
    for path in (ours, *theirs):
        path.write_text("old")
        os.utime(path, (0, 0))
    assert run_cli("clean", cwd=store.path).returncode == 0
    assert not ours.exists()
    assert all(path.exists() for path in theirs)


def test_without_backups_each_command_prints_one_line(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("backup", "list", cwd=store.path).stdout.count("\n") == 1
    verified = run_cli("backup", "verify", "a", cwd=store.path)
    assert (verified.returncode, verified.stdout.count("\n")) == (1, 1)
    assert str(store.path / "backup") in verified.stdout
    assert run_cli("backup", "verify", cwd=store.path).returncode == 0
    done = run_cli("backup", "restore", "a", cwd=store.path)
    assert done.returncode == 1
    assert str(store.path / "backup") in done.stderr


def test_blocking_the_backup_plugin_while_backups_are_enabled_is_an_error(
    store: JobStore, run_cli: RunCli
) -> None:
    (store.path / "cleanup_config.yaml").write_text(CONFIG + "blocked_plugins: [backup]\n")
    before = contents(store)
    done = run_cli("clean", cwd=store.path)
    assert done.returncode == 2
    assert "backup.enabled" in done.stderr
    assert contents(store) == before


def test_a_backup_without_files_of_an_artifact_is_not_restored(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    (path,) = (store.path / "backup").glob("a@*")
    head = replace(archive.read_head(path), artifacts=("results/a/", "uploads/dem.tif"))
    path.unlink()
    (store.path / "elsewhere" / "a").mkdir(parents=True)
    root = open_root(RootName.RESULTS, store.path / "elsewhere")
    try:
        BackupFolder(store.path / "backup").add(head, "tar.zst", store.now, [(root, "a")])
    finally:
        root.close()
    done = run_cli("backup", "restore", "a", cwd=store.path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "uploads/dem.tif" in done.stderr
    assert store.trash() == []
    assert not store.results("a").exists()
    assert run_cli("backup", "restore", "a", "--only", "results/a", cwd=store.path).returncode == 0
