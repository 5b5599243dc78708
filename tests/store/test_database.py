"""The borrowed database: waited for when locked, never created, and clear words when it cannot be used."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from eemtcleanupd.errors import StoreError
from eemtcleanupd.store.sqlite import SqliteDatabase


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (a)")
    return path


def insert(database: SqliteDatabase) -> None:
    database.write(lambda connection: connection.exec_driver_sql("INSERT INTO t VALUES (1)"))


def count(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        number: int = connection.execute("SELECT count(*) FROM t").fetchone()[0]
        return number


def test_a_locked_database_is_waited_for(file: Path) -> None:
    locker = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    locker.execute("BEGIN IMMEDIATE")
    database = SqliteDatabase(file, busy_timeout_seconds=20)
    release = threading.Timer(0.3, lambda: locker.execute("COMMIT"))
    release.start()
    insert(database)
    release.join()
    locker.close()
    assert count(file) == 1
    database.close()


def test_a_database_that_stays_locked_is_a_clear_error_and_nothing_is_written(file: Path) -> None:
    database = SqliteDatabase(file, busy_timeout_seconds=0.2)
    with closing(sqlite3.connect(file, isolation_level=None)) as locker:
        locker.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="kept it locked for longer than"):
            insert(database)
    assert count(file) == 0
    database.close()


def test_after_a_write_that_found_it_locked_a_read_sees_one_moment_again(file: Path) -> None:
    with closing(SqliteDatabase(file, busy_timeout_seconds=0.1)) as database:
        with closing(sqlite3.connect(file, isolation_level=None)) as locker:
            locker.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError):
                insert(database)
        with database.read() as connection, closing(sqlite3.connect(file, timeout=0)) as other:
            connection.exec_driver_sql("SELECT count(*) FROM t").scalar()
            with pytest.raises(sqlite3.OperationalError), other:  # a reader in a transaction is in its way
                other.execute("INSERT INTO t VALUES (1)")


def test_a_use_amid_another_or_after_the_end_is_refused(file: Path) -> None:
    database = SqliteDatabase(file, busy_timeout_seconds=1)
    with pytest.raises(StoreError, match="in use"):
        database.write(lambda _: database.read().__enter__())
    with database.read() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM t").scalar()
        with pytest.raises(StoreError, match="in use"):
            insert(database)
    database.close()
    with pytest.raises(StoreError, match="closed"):
        insert(database)
    assert count(file) == 0


def test_what_sqlite_refuses_at_once_is_tried_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy import exc

    database = SqliteDatabase(file, busy_timeout_seconds=20)
    once, failures = SqliteDatabase._write_once, [0]

    def refuse_twice(self: SqliteDatabase, work: object) -> object:
        failures[0] += 1
        if failures[0] <= 2:
            raise exc.OperationalError("BEGIN", None, sqlite3.OperationalError("database is locked"))
        return once(self, work)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(SqliteDatabase, "_write_once", refuse_twice)
    insert(database)
    assert (failures[0], count(file)) == (3, 1)
    database.close()


def test_a_failed_write_leaves_nothing_behind(file: Path) -> None:
    database = SqliteDatabase(file, busy_timeout_seconds=5)

    def half(connection: object) -> None:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")  # type: ignore[attr-defined]  # a Connection
        raise KeyError

    with pytest.raises(KeyError):
        database.write(half)
    assert count(file) == 0
    database.close()


def test_no_lock_is_held_between_statements(file: Path) -> None:
    database = SqliteDatabase(file, busy_timeout_seconds=5)
    with database.read() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM t").fetchall()
    insert(database)
    with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
    database.close()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is not a database, but it is long enough to be read as one", "not a SQLite file"),
        (None, "no job"),
    ],
)
def test_what_is_no_database_is_a_clear_error(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "jobs.db"
    if content is not None:
        path.write_bytes(content * 20)
    with pytest.raises(StoreError, match=words):
        SqliteDatabase(path, busy_timeout_seconds=1)
    assert path.exists() is (content is not None)


def test_a_damaged_database_is_a_clear_error(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,) for _ in range(100)])
    with file.open("r+b") as raw:
        raw.seek(4096)
        raw.write(b"\xff" * 8192)
    database = SqliteDatabase(file, busy_timeout_seconds=1)
    with pytest.raises(StoreError, match="integrity_check"), database.read() as reader:
        reader.exec_driver_sql("SELECT sum(length(a)) FROM t").fetchall()
    database.close()


@pytest.mark.root
def test_a_database_that_may_only_be_read_is_a_clear_error(file: Path) -> None:
    """As another user: root may write everywhere."""
    file.chmod(0o444)
    for folder in (file.parent, *file.parents):
        if folder == Path("/tmp"):
            break
        folder.chmod(0o755)
    script = (
        "import os, sys; from pathlib import Path; from eemtcleanupd.store.sqlite import SqliteDatabase;"
        "os.setgid(65534); os.setuid(65534); d = SqliteDatabase(Path(sys.argv[1]), busy_timeout_seconds=1);"
        "d.write(lambda c: c.exec_driver_sql('INSERT INTO t VALUES (1)'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert "it can be read but not written" in done.stderr
    assert count(file) == 0
