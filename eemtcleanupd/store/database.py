"""The connection to the job database, which belongs to the EEMT web interface and is only borrowed.

The web interface opens the file afresh for every statement with a busy timeout of five seconds, so nothing
here holds a lock for longer than milliseconds: reads are short statements, writes are one short
``BEGIN IMMEDIATE`` each, and the journal mode is left alone.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, String, cast, create_engine, event, exc
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.pool import StaticPool
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.types import TypeDecorator

from eemtcleanupd.errors import StoreError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

_BUSY_WORDS = ("database is locked", "database is busy", "database table is locked")


class RawText(TypeDecorator[str]):
    """Text that may hold a file name's bytes that are not UTF-8, carried by surrogateescape.

    Python's sqlite3 refuses to bind such a string; bytes that SQLite itself casts to text pass unchanged.
    """

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        """Return the bytes to bind (SQLite), or the text as it is."""
        if value is None or dialect.name != "sqlite":
            return value
        return value.encode("utf-8", "surrogateescape")

    def bind_expression(self, bindparam: BindParameter[str]) -> ColumnElement[str]:
        """Cast what is bound to text."""
        return cast(bindparam, String)


class Database:
    """One connection to the job database, for one thread.

    Args:
        target: the path of a SQLite file.
        busy_timeout_seconds: how long to wait for a lock before giving up.

    Raises:
        StoreError: there is no such file, or it is not a SQLite database.
    """

    def __init__(self, target: Path, *, busy_timeout_seconds: float) -> None:
        if "://" in str(target) or ":/" in str(target):
            raise StoreError(
                "paths.database is a URL, but this version works on SQLite files only: name the file's path"
            )
        if not target.exists():
            raise StoreError(
                f"there is no job database at {target}; name it with --db-path or paths.database"
            )
        if not target.is_file():
            raise StoreError(f"{target} is not a file, so it cannot be the job database")
        self.path = target
        self._busy_timeout_seconds = busy_timeout_seconds
        self._engine = create_engine("sqlite+pysqlite://", creator=self._connect, poolclass=StaticPool)
        event.listen(self._engine, "begin", self._begin)
        if log.isEnabledFor(logging.DEBUG):
            self._trace_statements()
        self._identity = _identity(target)
        with self.read() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").fetchone()

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: a mistyped path must not create an empty database.
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(
            uri, uri=True, timeout=self._busy_timeout_seconds, isolation_level=None, check_same_thread=False
        )
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        return connection

    def _begin(self, connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection for a short read; a lock that another program holds is waited for.

        Raises:
            StoreError: the database cannot be read.
        """
        self._insist_on_same_file()
        with self._translated(), self._engine.connect() as connection:
            yield connection

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run ``work`` in one write transaction, again from its start while the database is locked.

        The write lock is taken at once (``BEGIN IMMEDIATE``): a transaction that reads first and wants to
        write later fails against a busy writer instead of waiting for it.  SQLite's own busy handler waits,
        but is not asked in every case, so what it refuses is tried again.

        Raises:
            StoreError: the database stayed locked, is read-only, full or damaged; nothing was written.
        """
        deadline = time.monotonic() + self._busy_timeout_seconds
        self._insist_on_same_file()
        with self._translated():
            try:
                return self._write_once(work)
            except exc.OperationalError as error:
                if not _is_busy(error) or time.monotonic() >= deadline:
                    raise
            from tenacity import (  # noqa: PLC0415  (late: rarely needed)
                Retrying,
                retry_if_exception,
                stop_after_delay,
                wait_random_exponential,
            )

            patiently = Retrying(
                retry=retry_if_exception(_is_busy),
                wait=wait_random_exponential(multiplier=0.02, max=1),
                stop=stop_after_delay(max(0.0, deadline - time.monotonic())),
                reraise=True,
            )
            result: Result = patiently(self._write_once, work)
            return result

    def _write_once(self, work: Callable[[Connection], Result]) -> Result:
        with self._engine.connect() as plain:
            connection = plain.execution_options(begin="BEGIN IMMEDIATE")
            with connection.begin():
                return work(connection)

    def _insist_on_same_file(self) -> None:
        """Refuse to go on with a file that another has taken the place of (a restored copy, say).

        An open connection would go on with the old one, and delete and record by rows that nobody sees.
        """
        if _identity(self.path) != self._identity:
            raise StoreError(
                f"the job database {self.path} was replaced or removed while it was in use; nothing more "
                "was done"
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what SQLAlchemy raises into one clear error of ours."""
        try:
            yield
        except exc.DBAPIError as error:
            reason = str(error.orig)
            advice = next((say for word, say in _ADVICE.items() if word in reason), "")
            raise StoreError(f"the job database {self.path}: {reason}{advice}") from error

    def copy_to(self, path: Path) -> None:
        """Write a copy of the whole database as it is at one moment, while others use it.

        Nobody may read it who may not read the database.

        Raises:
            StoreError: it cannot be read, or the copy cannot be written; there is none then.
        """
        temporary = path.with_name(f"{path.name}.part")
        try:
            mode = self.path.stat().st_mode & 0o777
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode))
            with closing(self._connect()) as source, closing(sqlite3.connect(temporary)) as copy:
                source.backup(copy)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        except (sqlite3.Error, OSError) as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(f"the job database {self.path} cannot be copied to {path}: {error}") from error

    def faults(self) -> list[str]:
        """Return what is wrong with the file itself (PRAGMA quick_check), nothing when it is whole.

        Raises:
            StoreError: it cannot be read.
        """
        with self.read() as connection:
            lines = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA quick_check")]
        return [] if lines == ["ok"] else lines

    def vacuum(self) -> None:
        """Give back the space of what was deleted (VACUUM).

        Raises:
            StoreError: another program uses the database, or there is no room for it; nothing is lost.
        """
        try:
            with closing(self._connect()) as connection:
                connection.execute("VACUUM")
        except sqlite3.Error as error:
            raise StoreError(f"the job database {self.path} cannot be vacuumed: {error}") from error

    def _trace_statements(self) -> None:
        started: list[float] = []

        @event.listens_for(self._engine, "before_cursor_execute")
        def before(*_: object) -> None:
            started.append(time.perf_counter())

        @event.listens_for(self._engine, "after_cursor_execute")
        def after(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            elapsed_ms = (time.perf_counter() - started.pop()) * 1000
            log.debug("SQL %.1f ms: %s", elapsed_ms, " ".join(statement.split()))

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()


_ADVICE = {
    "database is locked": "; another program kept it locked for longer than database.busy_timeout_seconds "
    "(`fuser` names the program)",
    "readonly": "; it can be read but not written: check its owner, its mode and its folder's",
    "file is not a database": "; it is not a SQLite file, or it is damaged",
    "malformed": "; run `sqlite3 FILE 'PRAGMA integrity_check'` and restore it from a backup",
    "disk is full": "; free some space on the database's filesystem first",
    "disk I/O error": "; look for errors of its disk in the kernel's log",
    "unable to open": "; check its owner, its mode and its folder's",
}


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, exc.OperationalError) and any(word in str(error.orig) for word in _BUSY_WORDS)
