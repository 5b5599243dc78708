"""Locks: only one run at a time."""

from __future__ import annotations

import fcntl
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from eemtcleanupd.errors import LockHeldError, StoreError
from eemtcleanupd.store.lock import run_lock
from eemtcleanupd.store.sqlite import SqliteDatabase

NOW = datetime(2026, 1, 20, 2, tzinfo=UTC)


def open_database(folder: Path, name: str = "jobs") -> SqliteDatabase:
    file = folder / f"{name}.db"
    file.touch()
    return SqliteDatabase(file, busy_timeout_seconds=1)


def test_the_lock_of_a_dead_run_is_free(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        run_lock(open_database(tmp_path), "dead", NOW).__enter__()
        os._exit(0)
    os.waitpid(child, 0)
    with run_lock(open_database(tmp_path), "next", NOW):
        pass


def test_others_read_who_holds_a_lock_and_since_when(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    with run_lock(database, "first", NOW):
        holder = database.holder("run")
        assert holder is not None
        assert (holder.pid, holder.run, holder.began_at) == (os.getpid(), "first", NOW)


def test_a_look_at_a_lock_makes_no_run_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = open_database(tmp_path)
    with run_lock(database, "first", NOW):
        pass
    with (tmp_path / "jobs.db.eemtcleanupd.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as a process that looks whether it is held
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(lock, fcntl.LOCK_UN))
        with run_lock(database, "second", NOW):
            pass


def test_two_databases_have_two_locks(tmp_path: Path) -> None:
    with run_lock(open_database(tmp_path, "a"), "a", NOW), run_lock(open_database(tmp_path, "b"), "b", NOW):
        pass


def test_a_lock_file_without_a_holder_is_still_locked(tmp_path: Path) -> None:
    with run_lock(open_database(tmp_path), "first", NOW):
        (tmp_path / "jobs.db.eemtcleanupd.lock").write_text("")
        with (
            pytest.raises(LockHeldError, match="jobs"),
            run_lock(open_database(tmp_path), "second", NOW),
        ):
            pass


@pytest.mark.parametrize(
    "text",
    [
        "[" * 4000,
        '{"pid": 1e999, "host": "\\ud800", "since": "", "run": ""}',
        '{"pid": 1, "host": "", "since": "", "run": "\\u001b[2J"}',
    ],
    ids=["deep", "no UTF-8", "terminal"],
)
def test_what_a_lock_file_says_can_be_printed(tmp_path: Path, text: str) -> None:
    database = open_database(tmp_path)
    with run_lock(database, "first", NOW):
        (tmp_path / "jobs.db.eemtcleanupd.lock").write_text(text)
        holder = database.holder("run")
        assert holder is not None
        assert holder.pid == os.getpid()
        assert str(holder).isprintable()


def test_a_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("keep")
    (tmp_path / "jobs.db.eemtcleanupd.lock").symlink_to("victim")
    with (
        pytest.raises(StoreError, match=r"jobs\.db\.eemtcleanupd\.lock"),
        run_lock(open_database(tmp_path), "run", NOW),
    ):
        pass
    assert (tmp_path / "victim").read_text() == "keep"
