"""``backup`` as its user has it: nothing goes without a copy, and the copy brings all of it back."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli

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


def test_what_was_cleaned_comes_back_from_its_backup(store: JobStore, run_cli: RunCli) -> None:
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


def test_a_job_whose_backup_fails_stays(store: JobStore, run_cli: RunCli) -> None:
    before = contents(store)
    (store.path / "backup").mkdir()
    (store.path / "backup").chmod(0o777)
    done = run_cli("clean", cwd=store.path)
    assert done.returncode == 1
    assert "backup: " in done.stdout + done.stderr
    assert str(store.path / "backup") in done.stdout + done.stderr
    assert contents(store) == before
    assert store.cleaned() == set()


def test_it_is_never_put_over_what_is_there(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    (store.path / "uploads" / "dem.tif").write_text("a new one")
    done = run_cli("backup", "restore", "a", cwd=store.path)
    assert done.returncode == 1
    assert "uploads/dem.tif cannot be restored: there is one already" in done.stderr
    assert not store.results("a").exists()
    assert run_cli("backup", "restore", "a", "--only", "results/a/", cwd=store.path).returncode == 0
    assert store.results("a").exists()
    assert (store.path / "uploads" / "dem.tif").read_text() == "a new one"


def test_a_damaged_backup_is_refused_and_nothing_of_it_arrives(store: JobStore, run_cli: RunCli) -> None:
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
    assert "damaged" in done.stderr
    assert not store.results("a").exists()
    assert store.cleaned() == {"a", "b"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DELETE FROM jobs WHERE id = 'a'", "there is no job a in the database"),
        ("UPDATE jobs SET status = 'running' WHERE id = 'a'", "job a is running: wait until it has ended"),
    ],
)
def test_a_job_that_lives_or_is_unknown_gets_nothing(
    store: JobStore, run_cli: RunCli, change: str, words: str
) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    store.sql(change)
    done = run_cli("backup", "restore", "a", cwd=store.path)
    assert done.returncode == 1
    assert words in done.stderr
    assert not store.results("a").exists()


def test_what_an_interrupted_restore_left_is_removed_by_the_next(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    left = store.path / "results" / ".eemtcleanupd-trash" / "backup-20260101T000000-0badf00d.1"
    (left / "a").mkdir(parents=True)
    assert run_cli("backup", "restore", "a", cwd=store.path).returncode == 0
    assert store.trash() == []


def test_old_backups_go_after_a_run(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    (archive,) = (store.path / "backup").glob("a@*")
    old = store.now - timedelta(days=31)
    archive.rename(archive.with_name(f"a@{old:%Y%m%dT%H%M%S%f}Z.tar.zst"))
    assert run_cli("clean", "--dry-run", cwd=store.path).returncode == 0
    assert len(list((store.path / "backup").iterdir())) == 2
    assert run_cli("clean", cwd=store.path).returncode == 0
    assert [path.name[:2] for path in (store.path / "backup").iterdir()] == ["b@"]


def test_what_is_not_ours_in_the_folder_of_backups_stays_however_old(
    store: JobStore, run_cli: RunCli
) -> None:
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


def test_nothing_to_list_or_restore_is_said_in_a_line(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("backup", "list", cwd=store.path).stdout == "There are no backups.\n"
    assert run_cli("backup", "verify", "a", cwd=store.path).stdout == "There are no backups of job a.\n"
    done = run_cli("backup", "restore", "a", cwd=store.path)
    assert done.returncode == 1
    assert "there is no backup of job a in " in done.stderr


def test_blocking_the_plugin_of_a_backup_that_is_asked_for_is_an_error(
    store: JobStore, run_cli: RunCli
) -> None:
    (store.path / "cleanup_config.yaml").write_text(CONFIG + "blocked_plugins: [backup]\n")
    before = contents(store)
    done = run_cli("clean", cwd=store.path)
    assert done.returncode == 2
    assert "backup.enabled is true" in done.stderr
    assert contents(store) == before
