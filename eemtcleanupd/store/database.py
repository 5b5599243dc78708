"""The connection to the job database, which belongs to the EEMT web interface and is only borrowed.

Nothing here holds a lock for longer than milliseconds: reads are short statements, writes one short
transaction each.  What SQLite and PostgreSQL do differently is in :mod:`~eemtcleanupd.store.sqlite` and
:mod:`~eemtcleanupd.store.postgres`; everything else is SQL that both understand.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sqlalchemy import Connection, Engine, String, cast, event, exc
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from eemtcleanupd.errors import CleanupError, StoreError
from eemtcleanupd.formatting import printable

if TYPE_CHECKING:
    from eemtcleanupd.store.lock import Holder

log = logging.getLogger(__name__)
Result = TypeVar("Result")

SCRATCH = "scratch"
"""The schema of tables that only this connection sees, as SQLAlchemy knows it."""


class TempTablesLostError(StoreError):
    """The connection that temporary tables belonged to is gone, and they are with it."""


class RawText(TypeDecorator[str]):
    """Text of ours that may hold a file name's bytes that are not UTF-8, carried by surrogateescape.

    Python's sqlite3 refuses to bind such a string; bytes that SQLite itself casts to text pass unchanged.
    PostgreSQL has no place for them, so there they are written as a log would write them.
    """

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        """Return the bytes to bind (SQLite), or the text as it can be stored."""
        if value is None:
            return None
        if dialect.name == "sqlite":
            return value.encode("utf-8", "surrogateescape")
        return value if is_storable(value) else printable(value)

    def bind_expression(self, bindparam: BindParameter[str]) -> ColumnElement[str]:
        """Cast what is bound to text."""
        return cast(bindparam, String)


class RawName(RawText):
    """The name of a file, byte for byte: PostgreSQL keeps it in hexadecimal digits."""

    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        """Return the bytes to bind (SQLite), or their digits."""
        raw = None if value is None else value.encode("utf-8", "surrogateescape")
        return raw if raw is None or dialect.name == "sqlite" else raw.hex()

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        """Return the name."""
        if value is None or dialect.name == "sqlite":
            return None if value is None else str(value)
        return bytes.fromhex(value).decode("utf-8", "surrogateescape")


def is_storable(text: str) -> bool:
    """Tell whether PostgreSQL can store a text: valid Unicode without a NUL."""
    return "\0" not in text and not any("\ud800" <= each <= "\udfff" for each in text)


class Database(ABC):
    """One connection to the job database, for one thread.

    Args:
        name: what messages call it; without a password.
        busy_timeout_seconds: how long to wait for a lock before giving up.
    """

    file: Path | None = None
    """The file of a SQLite database, None for a server's."""
    session = 1
    """Counts the connections: with each, temporary tables begin anew."""
    scratch_schema: ClassVar[str]
    """The schema of temporary tables, in SQL."""
    _advice: ClassVar[dict[str, str]]

    def __init__(self, name: str, *, busy_timeout_seconds: float) -> None:
        self.name = name
        self._busy_timeout_seconds = busy_timeout_seconds

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection for a short read; a lock that another program holds is waited for.

        Raises:
            StoreError: the database cannot be read.
        """
        with self._translated(), self._reading() as connection:
            yield connection

    @contextmanager
    def scratch(self, session: int | None = None) -> Iterator[Connection]:
        """Give a connection for work on temporary tables, which a lost connection takes with it.

        Args:
            session: of which connection the tables are; None: they are made now.

        Raises:
            ScratchLostError: they are gone.
            StoreError: the database cannot be read.
        """
        del session  # a file has one connection for good
        with self.read() as connection:
            yield connection

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run ``work`` in one write transaction, again from its start while something is in its way.

        Raises:
            StoreError: the database stayed locked, is read-only, full or damaged; nothing was written.
        """
        deadline = time.monotonic() + self._busy_timeout_seconds
        with self._translated():
            try:
                return self._write_once(work)
            except exc.DBAPIError as error:
                if not self._is_transient(error) or time.monotonic() >= deadline:
                    raise
            from tenacity import (
                Retrying,
                retry_if_exception,
                stop_after_delay,
                wait_random_exponential,
            )

            patiently = Retrying(
                retry=retry_if_exception(self._is_transient),
                wait=wait_random_exponential(multiplier=0.02, max=1),
                stop=stop_after_delay(max(0.0, deadline - time.monotonic())),
                reraise=True,
            )
            result: Result = patiently(self._write_once, work)
            return result

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Connection]:
        """Give a connection for reading."""

    @abstractmethod
    def _write_once(self, work: Callable[[Connection], Result]) -> Result:
        """Run ``work`` in one transaction."""

    @abstractmethod
    def _is_transient(self, error: BaseException) -> bool:
        """Tell whether what a write failed with may be gone at the next attempt."""

    # -- locks -------------------------------------------------------------------------------------

    @abstractmethod
    def locked(self, what: str, holder: Holder) -> AbstractContextManager[None]:
        """Hold a lock of the job store; ``holder`` is told to whoever asks meanwhile.

        Raises:
            LockHeldError: another holds it; the message says which process on which host.
            StoreError: it cannot be asked for.
        """

    @abstractmethod
    def holder(self, what: str) -> Holder | None:
        """Return who holds a lock of the job store, None when nobody does."""

    def verify_lock(self) -> None:  # noqa: B027  (nobody can take an flock away)
        """Insist that the lock is still held.

        Raises:
            LockHeldError: another took it while the server could not be reached.
            StoreError: the server cannot be reached.
        """

    # -- what differs in SQL -----------------------------------------------------------------------

    @abstractmethod
    def as_text(self, column: str) -> str:
        """Return SQL for a column of ``jobs`` as text that is compared byte by byte."""

    @abstractmethod
    def as_raw_name(self, column: str) -> str:
        """Return SQL for a column of ``jobs`` in the form of a :class:`RawName`."""

    @abstractmethod
    def ledger_columns(self, connection: Connection) -> set[tuple[str, str]]:
        """Return table and column of all whose table has a name like ours (``cleanup_...``)."""

    @abstractmethod
    def key_type(self, reflected: TypeEngine[Any]) -> TypeEngine[Any]:
        """Return the type with which a column of ``jobs`` is compared with text of ours.

        What the column cannot hold is equal to nothing there.
        """

    @abstractmethod
    def added_column(self, form: str, completed_at: TypeEngine[Any]) -> str:
        """Return the SQL type of a column that we append: ``time``, ``megabytes`` or ``text``."""

    @abstractmethod
    def local_time(self, moment: datetime, local: str, completed_at: TypeEngine[Any]) -> str:
        """Return what to write into ``data_cleaned_at``: ``local``, or ``moment`` with its zone."""

    # -- care --------------------------------------------------------------------------------------

    @abstractmethod
    def snapshot_before_reset(self, id_column: str, now: datetime) -> str:
        """Keep a copy of what ``reset`` forgets; returns where it is.

        Raises:
            StoreError: it cannot be kept; there is no copy then.
        """

    @abstractmethod
    def integrity_errors(self) -> list[str]:
        """Return what is wrong with the database itself, nothing when it is whole."""

    @abstractmethod
    def vacuum(self) -> None:
        """Give back the space of what was deleted.

        Raises:
            StoreError: another program uses the database, or there is no room for it; nothing is lost.
        """

    def sessions(self) -> list[str]:
        """Return who else is connected to a server's database; of a file the system knows it."""
        return []

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what SQLAlchemy raises into one clear error of ours."""
        try:
            yield
        except exc.DBAPIError as error:
            raise self._error(error.orig) from error
        except exc.StatementError as error:
            if isinstance(error.orig, CleanupError):  # a new connection was refused
                raise error.orig from None
            raise

    def _error(self, error: BaseException | None) -> StoreError:
        reason = str(error).strip()
        advice = next((say for word, say in self._advice.items() if word in reason), "")
        return StoreError(f"the job database {self.name}: {reason}{advice}")

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""


def trace_statements(engine: Engine) -> None:
    """Log each statement of an engine, and how long it took."""

    @event.listens_for(engine, "before_cursor_execute")
    def before(connection: Connection, *_: object) -> None:
        connection.info["began"] = time.perf_counter()

    @event.listens_for(engine, "after_cursor_execute")
    def after(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        elapsed_ms = (time.perf_counter() - connection.info["began"]) * 1000
        log.debug("SQL %.1f ms: %s", elapsed_ms, " ".join(statement.split()))
