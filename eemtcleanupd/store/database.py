"""The interface to the job database, which SQLite and PostgreSQL implement.

The database belongs to the EEMT web interface, so no lock is held for longer than milliseconds: reads are
short statements, and each write is one short transaction.  :mod:`~eemtcleanupd.store.sqlite` and
:mod:`~eemtcleanupd.store.postgres` contain the differences.  All other SQL works on both.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sqlalchemy import (
    BindParameter,
    Column,
    Connection,
    Engine,
    MetaData,
    SelectBase,
    Subquery,
    Table,
    bindparam,
    event,
    exc,
    false,
    func,
    literal_column,
)
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.visitors import replacement_traverse
from sqlalchemy.types import TypeEngine

from eemtcleanupd.errors import CleanupError, RowError, StoreError
from eemtcleanupd.formatting import printable, shortened
from eemtcleanupd.store.values import RawText

if TYPE_CHECKING:
    from eemtcleanupd.store.lock import Holder

log = logging.getLogger(__name__)
Result = TypeVar("Result")

_MOST_CHARACTERS = 1000
SCRATCH = "scratch"
"""SQLAlchemy's name for the schema of temporary tables."""


@lru_cache
def _creation(table: Table, schema: str, dialect: Dialect) -> str:
    return str(CreateTable(table.to_metadata(MetaData(), schema=schema)).compile(dialect=dialect))


class TempTablesLostError(StoreError):
    """The connection was lost, and its temporary tables with it."""


class _RehearsedError(Exception):
    """Ends a rehearsal, with its result."""

    def __init__(self, result: Any) -> None:
        self.result = result


class Database(ABC):
    """One connection to the job database, for one thread.

    Args:
        name: its name in messages, without a password.
        busy_timeout_seconds: how long to wait for a lock before failing.
    """

    file: Path | None = None
    """The file of a SQLite database, or None for a server's."""
    session = 1
    """The number of the connection.  Each new connection starts without temporary tables."""
    scratch_schema: ClassVar[str]
    """SQL name of the schema of temporary tables."""
    _advice: ClassVar[dict[str, str]]

    def __init__(self, name: str, *, busy_timeout_seconds: float) -> None:
        self.name = name
        self._busy_timeout_seconds = busy_timeout_seconds
        self._stand_ins: Mapping[str, Subquery] | None = None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Provide a connection for a short read.  It waits while another program holds a lock.

        Raises:
            StoreError: the database is not readable.
        """
        with self._translated(), self._reading() as connection:
            yield connection

    @contextmanager
    def scratch(self, session: int | None = None) -> Iterator[Connection]:
        """Provide a connection for work on temporary tables, which are lost with it.

        Args:
            session: the connection that created the tables, or None to create them now.

        Raises:
            TempTablesLostError: the connection was lost.
            StoreError: the database is not readable.
        """
        del session  # a file has a single connection
        with self.read() as connection:
            yield connection

    def create_scratch(self, connection: Connection, *tables: Table) -> None:
        """Create temporary tables, in place of those of earlier work."""
        for table in tables:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {self.scratch_schema}.{table.name}")
            connection.exec_driver_sql(_creation(table, self.scratch_schema, connection.dialect))

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run ``work`` in one write transaction, and retry it from its start after a transient error.

        Raises:
            StoreError: the database stayed locked, is read-only, full or damaged.  Nothing was written.
        """
        deadline = time.monotonic() + self._busy_timeout_seconds
        with self._translated():
            try:
                return self._write_once(work)
            except exc.DBAPIError as error:
                if not self._is_transient(error) or time.monotonic() >= deadline:
                    raise
            from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

            retrying = Retrying(
                retry=retry_if_exception(self._is_transient),
                wait=wait_random_exponential(multiplier=0.02, max=1),
                stop=stop_after_delay(max(0.0, deadline - time.monotonic())),
                reraise=True,
            )
            result: Result = retrying(self._write_once, work)
            return result

    def rehearse(self, work: Callable[[Connection], Result]) -> Result:
        """Run ``work`` in a write transaction that is always rolled back.

        Raises:
            RowError, StoreError: the database would refuse it.
        """

        def attempt(connection: Connection) -> None:
            result = work(connection)
            self._check_deferred(connection)
            raise _RehearsedError(result)

        try:
            self.write(attempt)
        except _RehearsedError as end:
            result: Result = end.result
            return result
        raise AssertionError

    def _check_deferred(self, connection: Connection) -> None:  # noqa: B027  (SQLite defers nothing for us)
        """Check now what the database would check at the commit."""

    def read_instead(self, stand_ins: Mapping[str, Subquery]) -> None:
        """Let every query that names one of these tables read its stand-in, until the next call."""
        if self._stand_ins is None:
            if not stand_ins:
                return
            event.listen(self._executor, "before_execute", self._with_stand_ins, retval=True)
        self._stand_ins = stand_ins

    def _with_stand_ins(
        self, _: Connection, statement: Any, multiparams: Any, params: Any, _options: Any
    ) -> tuple[Any, Any, Any]:
        stand_ins = self._stand_ins or {}

        def stand_in(element: Any, **_: object) -> Any:
            if isinstance(element, Column):
                found = stand_ins.get(getattr(element.table, "name", ""))
                return None if found is None else found.c[element.name]
            return stand_ins.get(element.name) if isinstance(element, Table) else None

        if stand_ins and isinstance(statement, SelectBase):
            statement = replacement_traverse(statement, {}, stand_in)
        return statement, multiparams, params

    @property
    @abstractmethod
    def _executor(self) -> Connection | Engine:
        """What executes all statements."""

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Connection]:
        """Provide a connection for reading."""

    @abstractmethod
    def _write_once(self, work: Callable[[Connection], Result]) -> Result:
        """Run ``work`` in one transaction."""

    @abstractmethod
    def _is_transient(self, error: BaseException) -> bool:
        """Return whether a failed write can succeed at the next attempt."""

    # -- locks -------------------------------------------------------------------------------------

    @abstractmethod
    def locked(self, what: str, holder: Holder) -> AbstractContextManager[None]:
        """Hold a lock of the job store.  Other processes see ``holder``.

        Raises:
            LockHeldError: another process holds it.  The message names its process and host.
            StoreError: the lock is not accessible.
        """

    @abstractmethod
    def holder(self, what: str) -> Holder | None:
        """Return the process that holds a lock of the job store, or None."""

    @abstractmethod
    def verify_lock(self) -> None:
        """Check that the lock is still held.

        Raises:
            LockHeldError: another process took it while the server was unreachable.
            StoreError: the server is unreachable.
        """

    # -- differences in SQL --------------------------------------------------------------------------

    @abstractmethod
    def as_text(self, column: str) -> str:
        """Return SQL for a column of ``jobs`` as text, compared byte by byte."""

    @abstractmethod
    def as_raw_name(self, column: str) -> str:
        """Return SQL for a column of ``jobs`` in the form of a ``RawName``."""

    def is_blob(self, column: str) -> ColumnElement[bool]:  # noqa: ARG002
        """Return SQL that is true where a column of ``jobs`` has bytes, which are equal to no text."""
        return false()

    def is_key(self, column: str) -> ColumnElement[bool]:
        """Return SQL that is true where a column of ``jobs`` has a value that can be equal to an id."""
        return literal_column(column).is_not(None)

    def starts_with(self, column: str, start: str) -> ColumnElement[bool]:
        """Return SQL that is true where a column of ``jobs``, as text, starts with a text byte for byte."""
        beginning = func.substr(literal_column(self.as_text(column)), 1, len(start))
        return beginning == bindparam(None, start, type_=RawText(), unique=True)

    @abstractmethod
    def is_not_ascii(self, column: str) -> ColumnElement[bool]:
        """Return SQL that is true where a column of ``jobs`` has other characters than ASCII."""

    @abstractmethod
    def ledger_columns(self, connection: Connection) -> set[tuple[str, str]]:
        """Return the table and name of each column of all tables ``cleanup_*``."""

    @abstractmethod
    def key_type(self, reflected: TypeEngine[Any]) -> TypeEngine[Any]:
        """Return the type that compares a column of ``jobs`` with text from this program.

        Text that the column cannot contain is equal to no row.
        """

    @abstractmethod
    def is_exactly(self, column: ColumnElement[Any], key: BindParameter[Any]) -> ColumnElement[bool]:
        """Return SQL that is true where an id is byte for byte equal to a key, whatever its collation."""

    @abstractmethod
    def added_column(self, form: str, completed_at: TypeEngine[Any]) -> str:
        """Return the SQL type of an added column.  ``form`` is ``time``, ``megabytes`` or ``text``."""

    @abstractmethod
    def local_time(self, moment: datetime, local: str, completed_at: TypeEngine[Any]) -> str:
        """Return the value for ``data_cleaned_at``: ``local``, or ``moment`` with its zone."""

    # -- maintenance --------------------------------------------------------------------------------------

    @abstractmethod
    def snapshot_before_reset(self, id_column: str, now: datetime) -> str:
        """Copy the records that ``reset`` deletes, and return where the copy is.

        Raises:
            StoreError: there is no copy.
        """

    @abstractmethod
    def integrity_errors(self) -> list[str]:
        """Return the problems of the database itself, none if it is intact."""

    @abstractmethod
    def vacuum(self) -> None:
        """Return the space of deleted rows to the filesystem.

        Raises:
            StoreError: another program uses the database, or the disk is full.  No data is lost.
        """

    def sessions(self) -> list[str]:
        """Return the other connections to a server's database, none for a file."""
        return []

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Convert SQLAlchemy's errors into a StoreError with advice."""
        try:
            yield
        except exc.DBAPIError as error:
            raise self._error(error.orig) from error
        except exc.StatementError as error:
            if isinstance(error.orig, CleanupError):  # a new connection was refused
                raise error.orig from None
            raise

    def _error(self, error: BaseException | None) -> StoreError:
        # A trigger of the web application can raise any text, and a message of a server has several lines.
        reason = shortened(printable(" ".join(str(error).split())), _MOST_CHARACTERS)
        advice = next((advice for pattern, advice in self._advice.items() if pattern in reason), "")
        kind = RowError if error is not None and self._concerns_row(error) else StoreError
        return kind(f"Job database {self.name}: {reason.removesuffix('.')}. {advice}".rstrip())

    @abstractmethod
    def _concerns_row(self, error: BaseException) -> bool:
        """Return whether the database refused the values of a row: another row can be written."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""


def trace_statements(engine: Engine) -> None:
    """Log each statement of an engine with its duration."""

    @event.listens_for(engine, "before_cursor_execute")
    def before(connection: Connection, *_: object) -> None:
        connection.info["started"] = time.perf_counter()

    @event.listens_for(engine, "after_cursor_execute")
    def after(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        elapsed_ms = (time.perf_counter() - connection.info["started"]) * 1000
        log.debug("SQL %.1f ms: %s", elapsed_ms, " ".join(statement.split()))
