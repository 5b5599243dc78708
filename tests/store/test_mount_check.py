"""A job database that is mounted without its folder, as with a bind mount of one file in Docker."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from eemtcleanupd.deletion.roots import open_root
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.model import RootName
from eemtcleanupd.store.mount_check import is_mounted_alone
from tests.conftest import Aged

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare"),
]


@pytest.fixture
def store(sample_store: Path, aged: Aged) -> Path:
    return aged(sample_store, 10)


def run_mounted(store: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a folder `app` where the database and the folders are mounted one by one."""
    app = store.with_name("app")
    for name in ("uploads", "results"):
        (app / name).mkdir(parents=True, exist_ok=True)
    (app / "jobs.db").touch()
    script = f"""
      set -e
      for name in jobs.db uploads results; do mount --bind "{store}/$name" "{app}/$name"; done
      cd "{app}"; {before}
      exec "{sys.executable}" -m eemtcleanupd "$@"
    """
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *arguments],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_a_run_warns_and_cleans(store: Path) -> None:
    done = run_mounted(store, "clean")
    assert done.returncode == 0, done.stderr
    assert "[WARNING]" in done.stdout
    assert "docs/how-to/docker.md" in done.stdout
    with closing(sqlite3.connect(store / "jobs.db")) as connection:
        cleaned = connection.execute("SELECT count(*) FROM jobs WHERE data_cleaned_at IS NOT NULL").fetchone()
    assert cleaned == (6,)
    assert "docs/how-to/docker.md" in run_mounted(store, "doctor").stdout
    assert not is_mounted_alone(store / "jobs.db")


@pytest.mark.slow
def test_a_run_through_the_other_mount_is_refused_by_the_lock_of_the_trash(store: Path) -> None:
    root = open_root(RootName.RESULTS, store / "results")
    trash = Trash(root)  # as a run whose lock file is in another folder
    done = run_mounted(store, "clean")
    trash.close()
    root.close()
    assert done.returncode == 4, done.stdout
    assert "app/results" in done.stderr
    with closing(sqlite3.connect(store / "jobs.db")) as connection:
        assert connection.execute("SELECT count(*) FROM cleanup_intents").fetchone() == (0,)


@pytest.mark.slow
def test_a_database_in_wal_mode_is_refused_because_its_data_might_be_outdated(store: Path) -> None:
    with closing(sqlite3.connect(store / "jobs.db")) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("UPDATE jobs SET status = 'running'")
        writer.commit()  # the change is in jobs.db-wal, which is not mounted
        for arguments in (["clean", "--dry-run"], ["clean"], ["run"]):
            done = run_mounted(store, *arguments)
            assert done.returncode == 3, done.stdout
            assert "WAL" in done.stderr


def test_a_run_is_refused_if_the_folder_is_not_writable(store: Path) -> None:
    before = f"""
      mkdir logs; mount --bind . . && mount -o remount,bind,ro . && cd "$PWD"; mount -t tmpfs none logs
      for name in uploads results jobs.db; do mount --bind "{store}/$name" $name; done
    """
    done = run_mounted(store, "clean", before=before)
    assert done.returncode == 3, done.stdout
    assert "docs/how-to/docker.md" in done.stderr
