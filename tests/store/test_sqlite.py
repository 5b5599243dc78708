"""A SQLite job database: waiting for locks, and clear errors when it is unusable."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, exc

from eemtcleanupd.errors import StoreError
from eemtcleanupd.store.sqlite import SqliteDatabase
from tests.hostile import time_limit


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


def test_a_commit_that_a_reader_prevents_raises_an_error_and_holds_no_lock(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(10_000)])
    database = SqliteDatabase(file, busy_timeout_seconds=0.2)
    with closing(sqlite3.connect(file)) as reader:
        reading = reader.execute("SELECT a FROM t")
        reading.fetchone()
        with pytest.raises(StoreError, match="busy_timeout_seconds"):
            insert(database)
        reading.close()
        assert count(file) == 10_000
        with closing(sqlite3.connect(file, timeout=0)) as writer, writer:
            writer.execute("DELETE FROM t")
    insert(database)
    assert count(file) == 1
    database.close()


def test_a_database_that_stays_locked_raises_an_error_and_nothing_is_written(file: Path) -> None:
    database = SqliteDatabase(file, busy_timeout_seconds=0.2)
    with closing(sqlite3.connect(file, isolation_level=None)) as locker:
        locker.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="busy_timeout_seconds"):
            insert(database)
    assert count(file) == 0
    database.close()


def test_a_read_after_a_write_that_failed_on_a_lock_is_a_transaction_again(file: Path) -> None:
    with closing(SqliteDatabase(file, busy_timeout_seconds=0.1)) as database:
        with closing(sqlite3.connect(file, isolation_level=None)) as locker:
            locker.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError):
                insert(database)
        with database.read() as connection, closing(sqlite3.connect(file, timeout=0)) as other:
            connection.exec_driver_sql("SELECT count(*) FROM t").scalar()
            with pytest.raises(sqlite3.OperationalError), other:  # a reading transaction blocks it
                other.execute("INSERT INTO t VALUES (1)")


def test_a_nested_use_and_a_use_after_close_are_refused(file: Path) -> None:
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


def test_a_write_that_sqlite_refuses_as_busy_is_retried(file: Path) -> None:
    database = SqliteDatabase(file, busy_timeout_seconds=20)
    attempts = itertools.count(1)

    def refused_twice(connection: Connection) -> int:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        if (attempt := next(attempts)) <= 2:
            raise exc.OperationalError("INSERT", None, sqlite3.OperationalError("database is locked"))
        return attempt

    assert database.write(refused_twice) == 3
    assert count(file) == 1
    database.close()


def test_a_failed_write_leaves_nothing_behind(file: Path) -> None:
    database = SqliteDatabase(file, busy_timeout_seconds=5)

    def fails(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        raise KeyError

    with pytest.raises(KeyError):
        database.write(fails)
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
    "content", [b"this is not a database, but it is long enough to be read as one", None]
)
def test_a_file_that_is_not_a_database_or_is_missing_raises_an_error(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "jobs.db"
    if content is not None:
        path.write_bytes(content * 20)
    with pytest.raises(StoreError, match=r"jobs\.db"):
        SqliteDatabase(path, busy_timeout_seconds=1)
    assert path.exists() is (content is not None)


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
def test_what_is_no_file_in_place_of_a_journal_is_refused(file: Path, suffix: str) -> None:
    """SQLite would wait for the writer of a FIFO and ignore all signals."""
    beside = file.with_name(file.name + suffix)
    os.mkfifo(beside)
    with pytest.raises(StoreError, match=beside.name):
        SqliteDatabase(file, busy_timeout_seconds=1)
    beside.unlink()
    with closing(SqliteDatabase(file, busy_timeout_seconds=1)) as database:
        os.mkfifo(beside)
        with pytest.raises(StoreError, match=beside.name):
            insert(database)
        with pytest.raises(StoreError, match=beside.name), database.read():
            pass


def test_what_takes_the_place_of_a_journal_after_the_check_makes_a_read_fail(file: Path) -> None:
    with closing(SqliteDatabase(file, busy_timeout_seconds=1)) as database, time_limit():
        with database.read() as connection:
            os.mkfifo(f"{file}-journal")
            with pytest.raises(exc.OperationalError):
                connection.exec_driver_sql("SELECT * FROM t").fetchall()
        Path(f"{file}-journal").unlink()
        with database.read() as connection:
            connection.exec_driver_sql("SELECT * FROM t").fetchall()


def test_a_damaged_database_raises_an_error_with_advice(file: Path) -> None:
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
def test_a_read_only_database_raises_an_error(file: Path) -> None:
    """As another user, because root can write everywhere."""
    file.chmod(0o444)
    for folder in (file.parent, *file.parents):
        if folder == Path("/tmp"):
            break
        folder.chmod(0o755)
    script = (
        "import os, sys; from pathlib import Path; from eemtcleanupd.store.sqlite import SqliteDatabase;"
        "d = SqliteDatabase(Path(sys.argv[1]), busy_timeout_seconds=1); d.close();"  # imports all modules
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
    assert "StoreError" in done.stderr
    assert "readonly" in done.stderr
    assert count(file) == 0


def test_another_program_gets_its_turn_between_transactions_that_follow_each_other(file: Path) -> None:
    transactions, waited, begun = itertools.count(), [], threading.Event()
    database = SqliteDatabase(file, busy_timeout_seconds=60)

    def write_as_the_web_interface() -> None:
        with closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as connection:
            for _ in range(9):
                begun.clear()
                begun.wait()
                before = next(transactions)
                connection.execute("INSERT INTO t VALUES (1)")
                waited.append(next(transactions) - before - 1)

    def work(connection: Connection) -> None:
        next(transactions)
        begun.set()
        connection.exec_driver_sql(
            "INSERT INTO t WITH RECURSIVE n (a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n WHERE a < 50000) "
            "SELECT count(*) FROM n"
        )

    other = threading.Thread(target=write_as_the_web_interface)
    other.start()
    while other.is_alive():
        database.write(work)
    database.close()
    assert sum(waited) <= 9 * 8, waited


def test_transactions_that_held_the_lock_for_a_turn_are_followed_by_a_pause(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, now, pauses = SqliteDatabase(file, busy_timeout_seconds=1), 1000.0, list[float]()

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    def pause(seconds: float) -> None:
        pauses.append(round(seconds, 6))
        pass_time(seconds)

    monkeypatch.setattr("eemtcleanupd.store.sqlite.monotonic_seconds", lambda: now)
    monkeypatch.setattr(time, "sleep", pause)
    for seconds in (0.006, 0.006, 0.050, 0.001):
        database.write(lambda _, seconds=seconds: pass_time(seconds))  # type: ignore[misc]
    assert pauses == [0.012, 0.01]  # each counts for 10 ms at most
    database.write(lambda _: pass_time(0.030))
    pass_time(0.030)  # meanwhile others could work
    database.write(lambda _: None)
    assert len(pauses) == 2
    database.close()


ENDLESS = """
CREATE TRIGGER endless AFTER INSERT ON t BEGIN
    SELECT count(*) FROM (WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n);
END
"""


@pytest.mark.parametrize("end", ["time limit", "signal"])
def test_a_trigger_that_works_forever_ends(file: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    with closing(sqlite3.connect(file)) as other:
        other.execute(ENDLESS)
        database = SqliteDatabase(file, busy_timeout_seconds=1)
        seconds = 0.1 if end == "time limit" else 60
        monkeypatch.setattr("eemtcleanupd.store.sqlite._LONGEST_WRITE_SECONDS", seconds)
        journal, main = file.with_name(f"{file.name}-journal"), threading.get_ident()

        def send_a_signal() -> None:
            while not journal.exists():  # it is when the statement works
                pass
            signal.pthread_kill(main, signal.SIGALRM)

        other_thread = threading.Thread(target=send_a_signal if end == "signal" else int)
        other_thread.start()
        with time_limit(60), pytest.raises(StoreError, match="interrupted"):
            insert(database)
        other_thread.join()
        assert count(file) == 0
        other.execute("DROP TRIGGER endless")
    insert(database)
    assert count(file) == 1
    database.close()


@pytest.mark.parametrize(
    "statement", ["SELECT RAISE(ABORT, '{}')", "DELETE FROM '{}'"], ids=["an error", "a table"]
)
def test_no_text_of_a_trigger_acts_on_a_terminal_or_forges_a_line(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as other:
        action = statement.format("\x1b[2J\nRun finished" + "x" * 100_000)
        other.execute(f"CREATE TRIGGER hostile AFTER INSERT ON t BEGIN {action}; END")
    database = SqliteDatabase(file, busy_timeout_seconds=1)
    with pytest.raises(StoreError) as caught:
        insert(database)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
    database.close()
