"""A job database in a SQLite file.

The web interface opens the file afresh for every statement with a busy timeout of five seconds, so writes are
one short ``BEGIN IMMEDIATE`` each, and the journal mode is left alone.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.pool import NullPool
from sqlalchemy.types import TypeEngine

from eemtcleanupd.errors import StoreError
from eemtcleanupd.formatting import printable
from eemtcleanupd.store.database import SCRATCH, Database, RawText, Result, trace_statements
from eemtcleanupd.store.lock import Holder, file_holder, file_lock

log = logging.getLogger("eemtcleanupd.store.database")

_BUSY_WORDS = ("database is locked", "database is busy", "database table is locked")
_ADDED = {"time": "TIMESTAMP", "megabytes": "REAL DEFAULT 0", "text": "TEXT"}


class SqliteDatabase(Database):
    """One connection to a SQLite file.

    Args:
        file: its path.
        busy_timeout_seconds: how long to wait for a lock before giving up.

    Raises:
        StoreError: there is no such file, or it is not a SQLite database.
    """

    file: Path
    scratch_schema = "temp"
    _advice = {  # noqa: RUF012  (of the class, as in the base)
        "database is locked": "; another program kept it locked for longer than "
        "database.busy_timeout_seconds (`fuser` names the program)",
        "readonly": "; it can be read but not written: check its owner, its mode and its folder's",
        "file is not a database": "; it is not a SQLite file, or it is damaged",
        "malformed": "; run `sqlite3 FILE 'PRAGMA integrity_check'` and restore it from a backup",
        "disk is full": "; free some space on the database's filesystem first",
        "disk I/O error": "; look for errors of its disk in the kernel's log",
        "unable to open": "; check its owner, its mode and its folder's",
    }

    def __init__(self, file: Path, *, busy_timeout_seconds: float) -> None:
        super().__init__(str(file), busy_timeout_seconds=busy_timeout_seconds)
        if not file.exists():
            raise StoreError(f"there is no job database at {file}; name it with --db-path or paths.database")
        if not file.is_file():
            raise StoreError(f"{file} is not a file, so it cannot be the job database")
        self.file = file
        self._identity = _identity(file)
        engine = _engine(file.absolute(), busy_timeout_seconds, is_traced=log.isEnabledFor(logging.DEBUG))
        with self._translated():
            self._connection = engine.connect()
        with self.read() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").fetchone()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        self._require_same_file()
        self._require_single_use()
        try:
            yield self._connection
        finally:
            self._connection.rollback()

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run ``work`` in one write transaction, again from its start while the database is locked.

        The write lock is taken at once (``BEGIN IMMEDIATE``): a transaction that reads first and wants to
        write later fails against a busy writer instead of waiting for it.  SQLite's own busy handler waits,
        but is not asked in every case, so what it refuses is tried again.
        """
        self._require_same_file()
        self._require_single_use()
        return super().write(work)

    def _write_once(self, work: Callable[[Connection], Result]) -> Result:
        connection = self._connection.execution_options(begin="BEGIN IMMEDIATE")
        try:
            with connection.begin():
                return work(connection)
        except BaseException:
            # A BEGIN that failed leaves SQLAlchemy believing that one is under way, and then it begins none;
            # one that succeeds ends that.
            connection.execution_options(begin="BEGIN").begin().rollback()
            raise
        finally:
            connection.execution_options(begin="BEGIN")

    def _require_single_use(self) -> None:
        """Refuse a use amid another one, whose transaction it would end, and one after the end."""
        if self._connection.closed:
            raise StoreError(f"the job database {self.file} is closed already")
        if self._connection.in_transaction():
            raise StoreError(f"the job database {self.file} is in use by this program already")

    def _is_transient(self, error: BaseException) -> bool:
        return isinstance(error, exc.OperationalError) and any(
            word in str(error.orig) for word in _BUSY_WORDS
        )

    def _require_same_file(self) -> None:
        """Refuse to go on with a file that another has taken the place of (a restored copy, say).

        An open connection would go on with the old one, and delete and record by rows that nobody sees.
        """
        if _identity(self.file) != self._identity:
            raise StoreError(
                f"the job database {self.file} was replaced or removed while it was in use; nothing more "
                "was done"
            )

    # -- locks: flocks on files beside it ------------------------------------------------------------

    def locked(self, what: str, holder: Holder) -> AbstractContextManager[None]:
        """Hold a lock of the job store, on a file beside it."""
        return file_lock(self._lock_file(what), what, self.name, holder)

    def holder(self, what: str) -> Holder | None:
        """Return who holds a lock of the job store, None when nobody does."""
        return file_holder(self._lock_file(what))

    def _lock_file(self, what: str) -> Path:
        middle = "" if what == "run" else f"{what}."
        return self.file.with_name(f"{self.file.name}.eemtcleanupd.{middle}lock")

    # -- what differs in SQL: types hardly matter ----------------------------------------------------

    def as_text(self, column: str) -> str:
        """Return the column: text is compared byte by byte unless a table says otherwise."""
        return column

    def as_raw_name(self, column: str) -> str:
        """Return the column."""
        return column

    def ledger_columns(self, connection: Connection) -> set[tuple[str, str]]:
        """Return table and column of all whose table has a name like ours."""
        rows = connection.exec_driver_sql(
            "SELECT m.name, c.name FROM main.sqlite_master AS m, pragma_table_info(m.name, 'main') AS c"
            " WHERE m.type = 'table' AND m.rootpage > 0 AND m.name GLOB 'cleanup_*'"
        )
        return {(table, column) for table, column in rows}

    def key_type(self, reflected: TypeEngine[Any]) -> TypeEngine[Any]:
        """Return text: the column's affinity makes of it what it holds."""
        del reflected
        return RawText()

    def added_column(self, form: str, completed_at: TypeEngine[Any]) -> str:
        """Return the SQL type of a column that we append."""
        del completed_at
        return _ADDED[form]

    def local_time(self, moment: datetime, local: str, completed_at: TypeEngine[Any]) -> str:
        """Return the local time."""
        del moment, completed_at
        return local

    # -- care --------------------------------------------------------------------------------------

    def snapshot_before_reset(self, id_column: str, now: datetime) -> str:
        """Copy the whole database to a file beside it; returns its path."""
        del id_column
        copy = self.file.with_name(f"{self.file.name}.before-reset-{now.astimezone():%Y%m%dT%H%M%S}")
        self.copy_to(copy)
        return printable(str(copy))

    def copy_to(self, path: Path) -> None:
        """Write a copy of the whole database as it is at one moment, while others use it.

        Nobody may read it who may not read the database.

        Raises:
            StoreError: it cannot be read, or the copy cannot be written; there is none then.
        """
        temporary = path.with_name(f"{path.name}.part")
        try:
            mode = self.file.stat().st_mode & 0o777
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode))
            with (
                closing(self._open_second_connection()) as source,
                closing(sqlite3.connect(temporary)) as copy,
            ):
                source.backup(copy)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        except (sqlite3.Error, OSError) as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(f"the job database {self.file} cannot be copied to {path}: {error}") from error

    def integrity_errors(self) -> list[str]:
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
            with closing(self._open_second_connection()) as connection:
                connection.execute("VACUUM")
        except sqlite3.Error as error:
            raise StoreError(f"the job database {self.file} cannot be vacuumed: {error}") from error

    def _open_second_connection(self) -> sqlite3.Connection:
        return _connect(self.file.absolute(), self._busy_timeout_seconds)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@lru_cache(maxsize=4)
def _engine(file: Path, busy_timeout_seconds: float, *, is_traced: bool) -> Engine:
    """Return what makes the connections to a file, and remembers the SQL of statements for all of them."""
    engine = create_engine(
        "sqlite+pysqlite://",
        creator=partial(_connect, file, busy_timeout_seconds),
        poolclass=NullPool,
        execution_options={"schema_translate_map": {SCRATCH: SqliteDatabase.scratch_schema}},
    )
    event.listen(engine, "begin", _begin)
    if is_traced:
        trace_statements(engine)
    return engine


def _connect(file: Path, busy_timeout_seconds: float) -> sqlite3.Connection:
    # mode=rw: a mistyped path must not create an empty database.
    connection = sqlite3.connect(
        f"{file.as_uri()}?mode=rw",
        uri=True,
        timeout=busy_timeout_seconds,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    return connection


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino)
