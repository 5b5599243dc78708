"""A job database in a SQLite file.

The web interface opens the file for every statement with a busy timeout of five seconds.  So each write is
one short ``BEGIN IMMEDIATE`` transaction, and the journal mode is never changed.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BindParameter,
    Connection,
    Engine,
    and_,
    bindparam,
    create_engine,
    event,
    exc,
    literal_column,
)
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import TypeEngine

from eemtcleanupd.clock import monotonic_seconds, unique_stamp
from eemtcleanupd.errors import NoDatabaseError, StoreError
from eemtcleanupd.files import replacing
from eemtcleanupd.formatting import printable
from eemtcleanupd.store.database import SCRATCH, Database, Result, trace_statements
from eemtcleanupd.store.fifo_watch import BESIDE, no_wait_for_fifo
from eemtcleanupd.store.lock import Holder, file_holder, file_lock
from eemtcleanupd.store.values import RawText

log = logging.getLogger("eemtcleanupd.store.database")

_BUSY_MESSAGES = ("database is locked", "database is busy", "database table is locked")
_TURN_SECONDS = 0.01
# A trigger can work forever.  Our longest transaction, that of `reset`, takes seconds for a million rows.
_LONGEST_WRITE_SECONDS = 300.0
# About 10 milliseconds of work.
_STEPS_PER_CHECK = 1_000_000
# No byte is higher, and no name of a file is longer.
_HIGHEST_NAME = "\udcff" * 256
_ADDED = {"time": "TIMESTAMP", "megabytes": "REAL DEFAULT 0", "text": "TEXT"}


class SqliteDatabase(Database):
    """One connection to a SQLite file.

    Args:
        file: its path.
        busy_timeout_seconds: how long to wait for a lock before failing.

    Raises:
        StoreError: the file does not exist or is not a SQLite database.
    """

    file: Path
    scratch_schema = "temp"
    _advice = {  # noqa: RUF012  (a class attribute, as in the base)
        "database is locked": "Another program locked it for longer than database.busy_timeout_seconds. "
        "`fuser` names the program.",
        "readonly": "It is readable but not writable. Check owner and mode of the file and its folder.",
        "file is not a database": "It is not a SQLite file, or it is damaged.",
        "interrupted": "A write took too long, or a signal ended it. Check the triggers of the database.",
        "malformed": "Run `sqlite3 FILE 'PRAGMA integrity_check'` and restore it from a backup.",
        "disk is full": "Free some space on its filesystem first.",
        "disk I/O error": "Check the kernel log for disk errors.",
        "unable to open": "Check owner and mode of the file and its folder.",
    }

    def __init__(self, file: Path, *, busy_timeout_seconds: float) -> None:
        super().__init__(str(file), busy_timeout_seconds=busy_timeout_seconds)
        if not file.exists():
            raise NoDatabaseError(f"There is no job database at {file}. Set --db-path or paths.database.")
        if not file.is_file():
            raise StoreError(f"The job database {file} is not a file. Set --db-path or paths.database.")
        self.file = file
        self._require_plain_files()
        self._identity = _identity(file)
        self._owed_seconds = 0.0
        self._released_at = 0.0
        self._write_ends = math.inf
        self._ledger_columns: tuple[int, set[tuple[str, str]]] | None = None
        """The columns of the ledger in a version of the schema."""
        engine = _engine(file.absolute(), busy_timeout_seconds, is_traced=log.isEnabledFor(logging.DEBUG))
        with self._translated():
            self._connection = engine.connect()
        # SQLite ignores signals: Python handles them when SQLite calls it.
        raw: Any = self._connection.connection.driver_connection
        raw.set_progress_handler(lambda: monotonic_seconds() > self._write_ends, _STEPS_PER_CHECK)
        with self.read() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").fetchone()

    @property
    def _executor(self) -> Connection:
        return self._connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        with no_wait_for_fifo(self.file), super()._translated():
            yield

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        self._require_same_file()
        self._require_single_use()
        try:
            yield self._connection
        finally:
            self._connection.rollback()

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run ``work`` in one write transaction, and retry it from its start while the database is locked.

        ``BEGIN IMMEDIATE`` acquires the write lock at the start.  A transaction that reads first and writes
        later would fail instead of waiting for another writer.  SQLite does not call its busy handler in
        every case, so a refused transaction is retried.
        """
        self._require_same_file()
        self._require_single_use()
        self._leave_a_turn()
        return super().write(work)

    def _leave_a_turn(self) -> None:
        """Pause if the lock was held for a turn or longer, in one transaction or in several.

        SQLite has no queue for its lock: programs that wait try again every few milliseconds.  Between
        transactions that follow each other at once, the web interface could wait for seconds.
        """
        now = monotonic_seconds()
        self._owed_seconds = max(0.0, self._owed_seconds - (now - self._released_at))
        self._released_at = now
        if self._owed_seconds >= _TURN_SECONDS:
            time.sleep(self._owed_seconds)
            self._owed_seconds = 0.0

    def _write_once(self, work: Callable[[Connection], Result]) -> Result:
        connection = self._connection.execution_options(begin="BEGIN IMMEDIATE")
        started = monotonic_seconds()
        try:
            with connection.begin():
                started = monotonic_seconds()
                self._write_ends = started + _LONGEST_WRITE_SECONDS
                return work(connection)
        except BaseException:
            self._write_ends = math.inf
            self._ledger_columns = None  # the version goes back too, and can come again for another schema
            # After a failed COMMIT, SQLite still has the transaction, but SQLAlchemy does not.
            raw: Any = connection.connection.driver_connection
            with suppress(sqlite3.Error):  # the BEGIN below meets it too, and SQLAlchemy words it
                raw.rollback()
            # After a failed BEGIN, SQLAlchemy still assumes an open transaction and would begin no other.
            # A successful BEGIN and ROLLBACK resets that.
            connection.execution_options(begin="BEGIN").begin().rollback()
            raise
        finally:
            self._write_ends = math.inf
            connection.execution_options(begin="BEGIN")
            self._released_at = monotonic_seconds()
            self._owed_seconds += min(self._released_at - started, _TURN_SECONDS)

    def _require_single_use(self) -> None:
        """Refuse a nested use, which would end the outer transaction, and a use after ``close``."""
        if self._connection.closed:
            raise StoreError(f"Job database {self.file} is already closed.")
        if self._connection.in_transaction():
            raise StoreError(f"Job database {self.file} is already in use by this program.")

    def _is_transient(self, error: BaseException) -> bool:
        return isinstance(error, exc.OperationalError) and any(
            message in str(error.orig) for message in _BUSY_MESSAGES
        )

    def _concerns_row(self, error: BaseException) -> bool:
        return isinstance(error, sqlite3.IntegrityError)

    def _require_same_file(self) -> None:
        """Refuse to continue after the file was replaced, for example by a restored backup.

        An open connection would still read and write the old file, which no other program sees.
        """
        if _identity(self.file) != self._identity:
            raise StoreError(
                f"Job database {self.file} was replaced or removed while it was in use. Nothing more was "
                "done."
            )
        self._require_plain_files()

    def _require_plain_files(self) -> None:
        """Refuse a FIFO in place of a journal: SQLite would wait for its writer, and ignore every signal."""
        for suffix in BESIDE:
            beside = f"{self.file}{suffix}"
            with suppress(OSError):
                if not stat.S_ISREG(os.lstat(beside).st_mode):
                    raise StoreError(
                        f"{printable(beside)} is not a regular file, so SQLite cannot use it. Remove it."
                    )

    # -- locks -----------------------------------------------------------------------------------

    def locked(self, what: str, holder: Holder) -> AbstractContextManager[None]:
        """Hold a lock of the job store on a file beside the database."""
        return file_lock(self._lock_file(what), what, self.name, holder)

    def holder(self, what: str) -> Holder | None:
        """Return the process that holds a lock of the job store, or None."""
        return file_holder(self._lock_file(what))

    def verify_lock(self) -> None:
        """Do nothing: a file's lock cannot be lost."""

    def _lock_file(self, what: str) -> Path:
        middle = "" if what == "run" else f"{what}."
        return self.file.with_name(f"{self.file.name}.eemtcleanupd.{middle}lock")

    # -- differences in SQL -------------------------------------------------------------------------

    def as_text(self, column: str) -> str:
        """Return the column.  SQLite compares text byte by byte by default."""
        return column

    def as_raw_name(self, column: str) -> str:
        """Return the column, and a BLOB as text."""
        return f"CAST({column} AS TEXT)"

    def is_blob(self, column: str) -> ColumnElement[bool]:
        """Return a range, which a search finds in the column's index: a BLOB orders after all else."""
        return literal_column(f"{column} >= x''")

    def is_key(self, column: str) -> ColumnElement[bool]:
        """Return the comparison with the types that are comparable with text: no text equals a BLOB."""
        return literal_column(f"typeof({column}) NOT IN ('null', 'blob')")

    def starts_with(self, column: str, start: str) -> ColumnElement[bool]:
        """Return the comparison with a range too, which a search finds in the column's index.

        No name of a file that starts this way is outside of it, in any collation of SQLite.
        """
        last = f"{start}{_HIGHEST_NAME}"
        low, high = (bindparam(None, end, type_=RawText(), unique=True) for end in (start, last))
        return and_(super().starts_with(column, start), literal_column(column).between(low, high))

    def is_not_ascii(self, column: str) -> ColumnElement[bool]:
        """Return the comparison with a pattern (GLOB)."""
        return literal_column(f"{column} GLOB '*[^ -~]*'")

    def ledger_columns(self, connection: Connection) -> set[tuple[str, str]]:
        """Return the table and name of each column of all tables ``cleanup_*``."""
        version = connection.exec_driver_sql("PRAGMA main.schema_version").scalar_one()
        if self._ledger_columns is None or self._ledger_columns[0] != version:
            rows = connection.exec_driver_sql(
                "SELECT m.name, c.name FROM main.sqlite_master AS m, pragma_table_info(m.name, 'main') AS c"
                " WHERE m.type = 'table' AND m.rootpage > 0 AND m.name GLOB 'cleanup_*'"
            )
            self._ledger_columns = version, {(table, column) for table, column in rows}
        return self._ledger_columns[1]

    def key_type(self, reflected: TypeEngine[Any]) -> TypeEngine[Any]:
        """Return text, which the column's affinity converts."""
        del reflected
        return RawText()

    def is_exactly(self, column: ColumnElement[Any], key: BindParameter[Any]) -> ColumnElement[bool]:
        """Return the comparison with collation BINARY."""
        return column.collate("BINARY") == key

    def added_column(self, form: str, completed_at: TypeEngine[Any]) -> str:
        """Return the SQL type of an added column."""
        del completed_at
        return _ADDED[form]

    def local_time(self, moment: datetime, local: str, completed_at: TypeEngine[Any]) -> str:
        """Return the local time."""
        del moment, completed_at
        return local

    # -- maintenance --------------------------------------------------------------------------------------

    def snapshot_before_reset(self, id_column: str, now: datetime) -> str:
        """Copy the complete database to a file beside it, and return its path."""
        del id_column
        copy = self.file.with_name(f"{self.file.name}.before-reset-{unique_stamp(now.astimezone())}")
        self.copy_to(copy)
        return printable(str(copy))

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy of the database while other programs use it.

        The copy has the same mode as the database.

        Raises:
            StoreError: the database is not readable, or the copy is not writable.  No copy is left.
        """
        try:
            mode = self.file.stat().st_mode & 0o777
            # SQLite opens files by path, and follows links.  In this folder nobody else can create one.
            with tempfile.TemporaryDirectory() as private:
                temporary = Path(private, "copy.db")
                with (
                    no_wait_for_fifo(self.file),
                    closing(self._open_second_connection()) as source,
                    closing(sqlite3.connect(temporary)) as copy,
                ):
                    source.backup(copy)
                with temporary.open("rb") as written, replacing(path, mode=mode, durable=True) as file:
                    shutil.copyfileobj(written, file)
        except (sqlite3.Error, OSError) as error:
            reason = printable(str(error))
            raise StoreError(f"Cannot copy job database {self.file} to {path}: {reason}.") from error

    def integrity_errors(self) -> list[str]:
        """Return the problems of the file (PRAGMA quick_check), none if it is intact.

        Raises:
            StoreError: the file is not readable.
        """
        with self.read() as connection:
            lines = [printable(str(row[0])) for row in connection.exec_driver_sql("PRAGMA quick_check")]
        return [] if lines == ["ok"] else lines

    def vacuum(self) -> None:
        """Return the space of deleted rows to the filesystem (VACUUM).

        Raises:
            StoreError: another program uses the database, or the disk is full.  No data is lost.
        """
        try:
            with no_wait_for_fifo(self.file), closing(self._open_second_connection()) as connection:
                connection.execute("VACUUM")
        except sqlite3.Error as error:
            raise StoreError(f"Cannot vacuum job database {self.file}: {printable(str(error))}.") from error

    def _open_second_connection(self) -> sqlite3.Connection:
        return _connect(self.file.absolute(), self._busy_timeout_seconds)

    def close(self) -> None:
        """Close the connection."""
        with no_wait_for_fifo(self.file):
            self._connection.close()


@lru_cache(maxsize=4)
def _engine(file: Path, busy_timeout_seconds: float, *, is_traced: bool) -> Engine:
    """Return the engine of a file.  All its connections share one cache of compiled statements."""
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
