"""A job database on a PostgreSQL server: locks, a lease on them, and connections that get lost.

A lock of the job store is an advisory lock of the session that does the work, so whoever loses the connection
loses the lock, and cannot write as if it still had it.  While it is held the session has a lease: the server
ends it when nothing was heard for ``lease_seconds``, whether its process was killed, frozen or cut off.  The
row of ``cleanup_locks`` says who holds a lock, and counts how often it was taken: one that comes back after a
lost connection goes on only if nobody had the lock in between.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Integer,
    Numeric,
    Uuid,
    create_engine,
    event,
    exc,
    make_url,
)
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.pool import StaticPool
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.errors import CleanupError, LockHeldError, StoreError
from eemtcleanupd.formatting import printable
from eemtcleanupd.store.database import (
    SCRATCH,
    Database,
    RawText,
    Result,
    TempTablesLostError,
    is_storable,
    trace_statements,
)
from eemtcleanupd.store.lock import Holder

log = logging.getLogger("eemtcleanupd.store.database")

DIALECTS: Final = ("postgresql", "postgres", "postgresql+psycopg")
_OLDEST_WITH_LEASE: Final = 140_000
_LOCK_TIMEOUT = "2s"  # an ALTER TABLE that waits makes all others wait behind it: try again instead
_CONNECT_SECONDS: Final = 10
_RETRIES: Final = 3
# What may be gone at the next attempt: serialization failures, deadlocks, a lock that was not given in time,
# a server that starts; two that create a table, a column or a row at once.
_TRANSIENT_SQLSTATES: Final = frozenset({"40001", "40P01", "55P03", "57P03", "23505", "42P07", "42701"})
_CLASS: Final = zlib.crc32(b"eemtcleanupd")

_CREATE_LOCKS = """
CREATE TABLE IF NOT EXISTS cleanup_locks (
    name TEXT PRIMARY KEY, generation BIGINT NOT NULL, backend INTEGER NOT NULL,
    pid INTEGER NOT NULL, host TEXT NOT NULL, since TEXT NOT NULL, run TEXT NOT NULL
)"""
_ACQUIRE = """
INSERT INTO cleanup_locks (name, generation, backend, pid, host, since, run)
VALUES (%s, 1, pg_backend_pid(), %s, %s, %s, %s)
ON CONFLICT (name) DO UPDATE SET generation = cleanup_locks.generation + 1, backend = excluded.backend,
    pid = excluded.pid, host = excluded.host, since = excluded.since, run = excluded.run
RETURNING generation"""
# A row alone may be a dead one's: it counts while its very session holds the lock.
_HOLDER = """
SELECT l.pid, l.host, l.since, l.run, l.backend, l.generation
FROM cleanup_locks AS l JOIN pg_locks AS p ON p.pid = l.backend
WHERE l.name = %s AND p.locktype = 'advisory' AND p.granted AND p.classid = %s AND p.objid = %s
    AND p.objsubid = 2 AND p.database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


class _ForeignText(RawText):
    """Text of a column that is not ours: what cannot be stored is equal to nothing there."""

    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return value if value is not None and is_storable(value) else None


class _IntegerKey(TypeDecorator[str]):
    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        if value is None or re.fullmatch(r"0|-?[1-9][0-9]{0,18}", value) is None:
            return None
        number = int(value)
        return number if -(2**63) <= number < 2**63 else None

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else str(value)


class _UuidKey(TypeDecorator[str]):
    impl = Uuid(as_uuid=False)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        shape = r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}"
        return value if value is not None and re.fullmatch(shape, value) else None


@dataclass(frozen=True, slots=True)
class _Held:
    what: str
    generation: int


class _ReconnectingConnection(Connection):
    """A connection for reading: a statement whose connection was lost is asked again on a new one."""

    def execute(self, *args: Any, **options: Any) -> Any:
        return self._again(super().execute, *args, **options)

    def exec_driver_sql(self, *args: Any, **options: Any) -> Any:
        return self._again(super().exec_driver_sql, *args, **options)

    def _again(self, ask: Callable[..., Any], *args: Any, **options: Any) -> Any:
        for left in reversed(range(_RETRIES)):
            try:
                return ask(*args, **options)
            except exc.DBAPIError as error:
                if not error.connection_invalidated or not left:
                    raise
                self.rollback()  # so that it takes a new connection
        raise AssertionError


class PostgresDatabase(Database):
    """One connection to a PostgreSQL database; a lost one is made anew.

    Args:
        address: the URL.
        busy_timeout_seconds: how long to wait for a lock, or for a server that went away.
        lease_seconds: after how much silence the server ends a session that holds a lock of ours.

    Raises:
        StoreError: the driver is missing, or the server cannot be reached or does not let us in.
    """

    scratch_schema = "pg_temp"
    _advice = {  # noqa: RUF012  (of the class, as in the base)
        "password authentication failed": "; check user and password in paths.database",
        "no password supplied": "; put it into paths.database (${VARIABLE} keeps it out of the file)",
        "pg_hba.conf": "; let this host and user in, in the server's pg_hba.conf",
        "Connection refused": "; is the server running, and does it listen there (listen_addresses)?",
        "failed to resolve host": "; check the host in paths.database",
        "could not translate host": "; check the host in paths.database",
        "timeout expired": "; is the server running, and no firewall in between?",
        "must be owner of table jobs": "; its owner can append the columns once, see docs/postgresql.md",
        "permission denied": "; grant it, see docs/postgresql.md",
        "read-only transaction": "; it is a read-only copy of the database: name the server that is written",
        "lock timeout": "; another program kept a row or table locked for longer than "
        "database.busy_timeout_seconds (pg_locks names it)",
    }

    def __init__(
        self, address: DatabaseAddress, *, busy_timeout_seconds: float, lease_seconds: float
    ) -> None:
        super().__init__(address.redacted, busy_timeout_seconds=busy_timeout_seconds)
        try:
            import psycopg  # noqa: F401  (an extra)
        except ImportError as error:
            raise StoreError(
                f"paths.database is {self.name}, and the driver of PostgreSQL is missing: "
                "pip install 'eemtcleanupd[postgres]'"
            ) from error
        url = _url(address, self.name)
        self._password = url.password or ""
        self._lease_seconds = lease_seconds
        self._using = threading.RLock()
        self._held: _Held | None = None
        self._identity: tuple[object, ...] | None = None
        self.session = 0
        quiet = max(1, int(lease_seconds / 3))
        defaults = {
            "application_name": "eemtcleanupd",
            "client_encoding": "UTF8",
            "connect_timeout": _CONNECT_SECONDS,
            "keepalives_idle": quiet,
            "keepalives_interval": quiet,
            "keepalives_count": 2,
            "tcp_user_timeout": int(lease_seconds * 1000),
        }
        self._engine = create_engine(
            url,
            poolclass=StaticPool,
            connect_args={name: value for name, value in defaults.items() if name not in url.query},
            execution_options={"schema_translate_map": {SCRATCH: self.scratch_schema}},
        )
        event.listen(self._engine, "do_connect", self._connect)
        if log.isEnabledFor(logging.DEBUG):
            trace_statements(self._engine)
        with self.read() as connection:
            connection.exec_driver_sql("SELECT 1")

    # -- connections -------------------------------------------------------------------------------

    def _connect(self, dialect: Dialect, _record: object, args: Any, parameters: Any) -> Any:
        """Make a connection; when one was lost, patiently, and with the lock that it held."""
        from psycopg import OperationalError

        deadline = time.monotonic() + self._busy_timeout_seconds
        while True:
            try:
                raw: Any = dialect.connect(*args, **parameters)
                try:
                    self._prepare(raw)
                except BaseException:
                    raw.close()
                    raise
            except OperationalError as error:
                if self.session == 0 or time.monotonic() >= deadline:
                    raise
                log.debug("%s is not there (%s), asking again", self.name, self._error(error))
                time.sleep(min(0.2, self._busy_timeout_seconds))
            else:
                self.session += 1
                return raw

    def _prepare(self, raw: Any) -> None:
        encoding = raw.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise StoreError(f"the job database {self.name} is encoded in {encoding}; only UTF8 is supported")
        raw.autocommit = True
        quiet = max(1, int(self._lease_seconds / 3))
        raw.execute(
            "SELECT set_config(name, value, false) FROM (VALUES ('TimeZone', 'UTC'),"
            " ('DateStyle', 'ISO, YMD'), ('lock_timeout', %s), ('tcp_keepalives_idle', %s),"
            " ('tcp_keepalives_interval', %s),"
            " ('tcp_keepalives_count', '2'), ('tcp_user_timeout', %s)) AS settings (name, value)",
            (_LOCK_TIMEOUT, str(quiet), str(quiet), str(int(self._lease_seconds * 1000))),
        )
        identity = raw.execute(
            "SELECT system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database()),"
            " current_schema() FROM pg_control_system()"
        ).fetchone()
        if self._identity not in {None, identity}:
            raise StoreError(
                f"the job database {self.name} is another one than before the connection was lost; nothing "
                "more was done"
            )
        self._identity = identity
        if self._held is not None:
            self._reacquire_lock(raw.execute, self._held)
        raw.autocommit = False

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._using, _ReconnectingConnection(self._engine) as connection:
            yield connection

    @contextmanager
    def scratch(self, session: int | None = None) -> Iterator[Connection]:
        """Give a connection for work on temporary tables, which a lost connection takes with it."""
        lost = TempTablesLostError(f"the connection to {self.name} was lost")
        with self._using, self._translated():
            try:
                with self._engine.connect() as connection:
                    if session not in {None, self.session}:
                        raise lost
                    yield connection
            except exc.DBAPIError as error:
                if error.connection_invalidated:
                    raise lost from error
                raise

    def _write_once(self, work: Callable[[Connection], Result]) -> Result:
        with self._using:
            lost: exc.DBAPIError | None = None
            with self._engine.connect() as connection:
                transaction = connection.begin()
                try:
                    result = work(connection)
                    number = connection.exec_driver_sql("SELECT txid_current_if_assigned()").scalar_one()
                except BaseException:
                    transaction.close()
                    raise
                try:
                    transaction.commit()
                except exc.DBAPIError as error:
                    if number is None or not error.connection_invalidated:
                        raise
                    lost = error
            # Lost amid the commit: the server knows whether it came to be.
            if lost is not None and not self._was_committed(number):
                raise lost
            return result

    def _was_committed(self, number: int) -> bool:
        deadline = time.monotonic() + self._busy_timeout_seconds
        while True:
            with self._reading() as connection:
                state = connection.exec_driver_sql("SELECT txid_status(%s)", (number,)).scalar_one()
            if state != "in progress" or time.monotonic() >= deadline:
                return bool(state == "committed")
            time.sleep(0.05)

    def _is_transient(self, error: BaseException) -> bool:
        if not isinstance(error, exc.DBAPIError):
            return False
        return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _TRANSIENT_SQLSTATES

    def _error(self, error: BaseException | None) -> StoreError:
        told = super()._error(error)
        return StoreError(str(told).replace(self._password, "***")) if self._password else told

    # -- locks -------------------------------------------------------------------------------------

    @contextmanager
    def locked(self, what: str, holder: Holder) -> Iterator[None]:
        """Hold a lock of the job store; at most one for each object."""
        with self._translated(), self._using:
            self._held = _Held(what, self._acquire_lock(what, holder))
            with self.read() as connection:
                # Once more: the connection may have been lost since, with the lock but not with its row.
                self._reacquire_lock(connection.exec_driver_sql, self._held)
                connection.commit()
        stop = threading.Event()
        beating = threading.Thread(
            target=self._renew_lease, args=(stop,), name=f"lease ({what})", daemon=True
        )
        beating.start()
        try:
            yield
        finally:
            stop.set()
            beating.join()
            with self._using, suppress(exc.SQLAlchemyError, CleanupError):
                self._held = None
                with self._engine.connect() as connection:
                    connection.exec_driver_sql("SELECT pg_advisory_unlock_all()")
                    connection.exec_driver_sql("RESET idle_session_timeout")
                    connection.exec_driver_sql("RESET idle_in_transaction_session_timeout")
                    connection.commit()

    def verify_lock(self) -> None:
        """Insist that the lock is held, taking it again if the connection was lost.

        Raises:
            LockHeldError: another took it.
            StoreError: the server cannot be reached.
        """
        with self.read() as connection:
            connection.exec_driver_sql("SELECT 1")

    def _acquire_lock(self, what: str, holder: Holder) -> int:
        with self.read() as connection:
            exists = connection.exec_driver_sql("SELECT to_regclass('cleanup_locks')").scalar_one()
        if exists is None:
            self.write(lambda c: c.exec_driver_sql(_CREATE_LOCKS))

        def take(connection: Connection) -> int:
            lock = connection.exec_driver_sql(
                "SELECT pg_try_advisory_lock(%s, %s)", (_signed(_CLASS), _signed(self._key(what)))
            )
            if not lock.scalar_one():
                told = self._holder(connection.exec_driver_sql, what)
                named = told[0] if told else "it has not said who it is yet"
                raise LockHeldError(f"another {what} works on {self.name}: {named}")
            values = (
                what,
                holder.pid,
                holder.host,
                holder.since,
                holder.run if is_storable(holder.run) else printable(holder.run),
            )
            return int(connection.exec_driver_sql(_ACQUIRE, values).scalar_one())

        return self.write(take)

    def _reacquire_lock(self, execute: Callable[..., Any], held: _Held) -> None:
        """Take the lock that a lost connection held, unless another has, or had it."""
        deadline = time.monotonic() + self._busy_timeout_seconds
        key = (_signed(_CLASS), _signed(self._key(held.what)))
        while not execute("SELECT pg_try_advisory_lock(%s, %s)", key).fetchone()[0]:
            told = self._holder(execute, held.what)
            if told is None or told[2] != held.generation or time.monotonic() >= deadline:
                raise LockHeldError(self._lock_lost(held.what, told[0] if told else None))
            # It is our own session, of which the server has not noticed yet that it is dead.
            execute("SELECT pg_terminate_backend(%s)", (told[1],))
            time.sleep(0.05)
        mine = "UPDATE cleanup_locks SET backend = pg_backend_pid() WHERE name = %s AND generation = %s"
        if execute(mine, (held.what, held.generation)).rowcount != 1:
            raise LockHeldError(self._lock_lost(held.what, None))
        self._begin_lease(execute)

    def _lock_lost(self, what: str, holder: Holder | None) -> str:
        return (
            f"the connection to {self.name} was lost, and with it the lock of this {what}; another has it, "
            f"or had it meanwhile{f' ({holder})' if holder else ''}: nothing more is done here"
        )

    def _begin_lease(self, execute: Callable[..., Any]) -> None:
        version = int(execute("SELECT current_setting('server_version_num')").fetchone()[0])
        timeout_ms = int(self._lease_seconds * 1000)
        execute(f"SET idle_in_transaction_session_timeout = {timeout_ms}")
        if version >= _OLDEST_WITH_LEASE:
            execute(f"SET idle_session_timeout = {timeout_ms}")

    def _renew_lease(self, stop: threading.Event) -> None:
        """Keep the lease while the connection is not used; whoever uses it next hears what went wrong."""
        while not stop.wait(self._lease_seconds / 3):
            if self._using.acquire(blocking=False):
                try:
                    self.verify_lock()
                except CleanupError as error:
                    log.debug("The lease is lost: %s", error)
                finally:
                    self._using.release()

    def holder(self, what: str) -> Holder | None:
        """Return who holds a lock of the job store, None when nobody does."""
        with self.read() as connection:
            exists = connection.exec_driver_sql("SELECT to_regclass('cleanup_locks')").scalar_one()
            told = None if exists is None else self._holder(connection.exec_driver_sql, what)
        return None if told is None else told[0]

    def _holder(self, execute: Callable[..., Any], what: str) -> tuple[Holder, int, int] | None:
        """Return who holds a lock, with the process id of its session and which taking of it this is."""
        row = execute(_HOLDER, (what, _CLASS, self._key(what))).fetchone()
        return None if row is None else (Holder(*row[:4]), row[4], row[5])

    def _key(self, what: str) -> int:
        """Return the number of a lock: advisory locks are a database's, job stores a schema's."""
        schema = None if self._identity is None else self._identity[2]
        return zlib.crc32(f"{schema}.{what}".encode())

    # -- what differs in SQL -----------------------------------------------------------------------

    def as_text(self, column: str) -> str:
        """Return SQL for a column as text, in the order of its bytes (times are written in ISO 8601)."""
        return f'CAST({column} AS TEXT) COLLATE "C"'

    def as_raw_name(self, column: str) -> str:
        """Return SQL for a column's bytes in hexadecimal digits."""
        return f"encode(convert_to({column}, 'UTF8'), 'hex')"

    def ledger_columns(self, connection: Connection) -> set[tuple[str, str]]:
        """Return table and column of all whose table has a name like ours."""
        rows = connection.exec_driver_sql(
            "SELECT c.relname, a.attname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid"
            " WHERE pg_table_is_visible(c.oid) AND left(c.relname, 8) = 'cleanup_'"
            " AND c.relkind IN ('r', 'p', 'f') AND a.attnum > 0 AND NOT a.attisdropped"
        )
        return {(table, column) for table, column in rows}

    def key_type(self, reflected: TypeEngine[Any]) -> TypeEngine[Any]:
        """Return the type with which text of ours is compared with a column."""
        if isinstance(reflected, Integer | Numeric):
            return _IntegerKey()
        return _UuidKey() if isinstance(reflected, Uuid) else _ForeignText()

    def added_column(self, form: str, completed_at: TypeEngine[Any]) -> str:
        """Return the SQL type of a column that we append: times as ``completed_at`` has them."""
        if form == "time" and not isinstance(completed_at, NullType):
            return completed_at.compile(self._engine.dialect)
        return {"megabytes": "DOUBLE PRECISION DEFAULT 0"}.get(form, "TEXT")

    def local_time(self, moment: datetime, local: str, completed_at: TypeEngine[Any]) -> str:
        """Return the local time, or for a column that knows zones the moment itself."""
        has_zone = isinstance(completed_at, DateTime) and completed_at.timezone
        return moment.isoformat() if has_zone else local

    # -- care --------------------------------------------------------------------------------------

    def snapshot_before_reset(self, id_column: str, now: datetime) -> str:
        """Copy what reset forgets into two tables; returns their names."""
        jobs, lines = (
            f"cleanup_before_reset_{now.astimezone():%Y%m%dt%H%M%S}_{each}" for each in ("jobs", "log")
        )

        def copy(connection: Connection) -> None:
            connection.exec_driver_sql(
                f"CREATE TABLE {jobs} AS SELECT {id_column}, data_cleaned_at, data_size_mb, cleanup_summary"
                " FROM jobs WHERE data_cleaned_at IS NOT NULL"
            )
            connection.exec_driver_sql(f"CREATE TABLE {lines} AS SELECT * FROM cleanup_log")

        self.write(copy)
        return f"tables {jobs} and {lines}"

    def integrity_errors(self) -> list[str]:
        """Return nothing: the server looks after its files itself, and answers."""
        return []

    def vacuum(self) -> None:
        """Leave it to the server's autovacuum."""

    def sessions(self) -> list[str]:
        """Return who else is connected to the database."""
        with self.read() as connection:
            rows = connection.exec_driver_sql(
                "SELECT coalesce(nullif(application_name, ''), 'a client'), pid FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY 1, 2"
            ).all()
        return [f"{name}[{pid}]" for name, pid in rows]

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()


def _url(address: DatabaseAddress, name: str) -> URL:
    try:
        url = make_url(str(address))
    except (exc.ArgumentError, ValueError) as error:
        raise StoreError(f"paths.database is {name}, which is no URL that can be read") from error
    if url.drivername not in DIALECTS:
        raise StoreError(
            f"paths.database is {name}, and {url.drivername} is not supported: name the path of a SQLite "
            "file, or postgresql://user:password@host/database"
        )
    return url.set(drivername="postgresql+psycopg")


def _signed(number: int) -> int:
    """Return 32 bits as PostgreSQL's integer."""
    return number - 2**32 if number >= 2**31 else number
