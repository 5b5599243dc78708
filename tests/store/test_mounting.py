"""A job database that is mounted alone into another folder, as the document's compose file does it."""

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


def mounted(store: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a folder `app` into which the database and the folders are mounted one by one."""
    app = store.with_name("app")
    for name in ("uploads", "results"):
        (app / name).mkdir(parents=True, exist_ok=True)
    (app / "jobs.db").touch()
    script = f"""
      set -e
      for each in jobs.db uploads results; do mount --bind "{store}/$each" "{app}/$each"; done
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


def test_it_is_warned_of_and_works(store: Path) -> None:
    done = mounted(store, "clean")
    assert done.returncode == 0, done.stderr
    assert "[WARNING]" in done.stdout
    assert "jobs.db is mounted without its folder: other programs do not see SQLite's journal" in done.stdout
    with closing(sqlite3.connect(store / "jobs.db")) as connection:
        cleaned = connection.execute("SELECT count(*) FROM jobs WHERE data_cleaned_at IS NOT NULL").fetchone()
    assert cleaned == (6,)
    looked = mounted(store, "doctor")
    assert "jobs.db is mounted without its folder" in looked.stdout
    assert not is_mounted_alone(store / "jobs.db")


def test_a_run_in_the_other_folder_is_kept_out_by_the_one_here(store: Path) -> None:
    root = open_root(RootName.RESULTS, store / "results")
    trash = Trash(root)  # as a run that holds the lock beside its own view of the database
    done = mounted(store, "clean")
    trash.close()
    root.close()
    assert done.returncode == 4, done.stdout
    assert "app/results" in done.stderr
    with closing(sqlite3.connect(store / "jobs.db")) as connection:
        assert connection.execute("SELECT count(*) FROM cleanup_intents").fetchone() == (0,)


def test_a_database_in_wal_mode_is_refused_since_what_is_read_may_be_old(store: Path) -> None:
    with closing(sqlite3.connect(store / "jobs.db")) as writing:
        writing.execute("PRAGMA journal_mode = WAL")
        writing.execute("UPDATE jobs SET status = 'running'")
        writing.commit()  # it is in jobs.db-wal, which is not mounted
        for arguments in (["clean", "--dry-run"], ["clean"], ["run"]):
            done = mounted(store, *arguments)
            assert done.returncode == 3, done.stdout
            assert "its journal mode is WAL" in done.stderr


def test_where_the_folder_cannot_be_written_it_says_what_to_mount(store: Path) -> None:
    before = f"""
      mkdir logs; mount --bind . . && mount -o remount,bind,ro . && cd "$PWD"; mount -t tmpfs none logs
      for each in uploads results jobs.db; do mount --bind "{store}/$each" $each; done
    """
    done = mounted(store, "clean", before=before)
    assert done.returncode == 3, done.stdout
    assert "SQLite's journal and our lock lie beside the database; mount the folder" in done.stderr
