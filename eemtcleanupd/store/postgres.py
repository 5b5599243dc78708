"""A job database on a PostgreSQL server: connections, reconnection, and a lease on the lock that is held.

A lost connection is replaced by a new one, and an interrupted read is repeated.  While a lock is held, the
session has a lease: the server ends the session after ``lease_seconds`` of silence, whether its process was
killed, frozen or cut off.  :mod:`~eemtcleanupd.store.advisory_lock` contains the locks themselves.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    Connection,
    DateTime,
    Engine,
    Integer,
    Numeric,
    String,
    Uuid,
    cast,
    create_engine,
    event,
    exc,
    literal_column,
    make_url,
    true,
)
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.pool import StaticPool
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import TypeEngine

from eemtcleanupd.clock import unique_stamp
from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.errors import CleanupError, StoreError
from eemtcleanupd.formatting import printable
from eemtcleanupd.installation import Page, add_extra
from eemtcleanupd.privileges import exceeds_user
from eemtcleanupd.store import advisory_lock
from eemtcleanupd.store.advisory_lock import AdvisoryLock, Execute
from eemtcleanupd.store.database import SCRATCH, Database, Result, TempTablesLostError, trace_statements
from eemtcleanupd.store.lock import Holder
from eemtcleanupd.store.values import IntegerKey, TextKey, UuidKey

log = logging.getLogger("eemtcleanupd.store.database")

DIALECTS: Final = ("postgresql", "postgres", "postgresql+psycopg")
_LOCK_TIMEOUT = "2s"  # a waiting ALTER TABLE blocks all other programs, so retry it instead
_CONNECT_SECONDS: Final = 10
_PAGE: Final = Page.POSTGRESQL.reference()
_ATTEMPTS: Final = 3
_BACKEND: Final = "SELECT pg_backend_pid()"
_SESSION_PROBES: Final = 2
# A role whose triggers, rules, policies and functions would work with the rights of a superuser.  It owns our
# tables, their schema or the database, or can add triggers and functions there (0 is PUBLIC).  All names are
# of pg_catalog, because such a role can add functions and operators, and can change the search path.
_OWNER_OF_CODE: Final = (
    "WITH place (owner, acl) AS ("
    "SELECT relowner, relacl FROM pg_catalog.pg_class"
    " WHERE relname OPERATOR(pg_catalog.~) '^(jobs$|cleanup_)' AND pg_catalog.pg_table_is_visible(oid)"
    " UNION ALL SELECT nspowner, nspacl FROM pg_catalog.pg_namespace"
    " WHERE nspname OPERATOR(pg_catalog.=) ANY (pg_catalog.current_schemas(false))"
    " UNION ALL SELECT datdba, datacl FROM pg_catalog.pg_database"
    " WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()"
    "), found (oid) AS ("
    "SELECT owner FROM place"
    " UNION ALL SELECT entry.grantee FROM place, pg_catalog.aclexplode(place.acl) AS entry"
    " WHERE entry.privilege_type OPERATOR(pg_catalog.=) ANY (ARRAY['TRIGGER', 'CREATE'])"
    ") SELECT role.rolname FROM pg_catalog.pg_roles AS own, pg_catalog.pg_roles AS role, found"
    " WHERE own.rolname OPERATOR(pg_catalog.=) session_user AND own.rolsuper AND NOT role.rolsuper"
    " AND role.rolname OPERATOR(pg_catalog.<>) 'pg_database_owner'"  # its member is datdba
    " AND (role.oid OPERATOR(pg_catalog.=) found.oid"
    " OR (found.oid OPERATOR(pg_catalog.=) 0::pg_catalog.oid AND role.rolcanlogin))"
)
# Serialization failures, deadlocks, lock timeouts, a server that is starting, and two programs that create
# the same table, column or row.
_TRANSIENT_SQLSTATES: Final = frozenset({"40001", "40P01", "55P03", "57P03", "23505", "42P07", "42701"})

# Data exceptions, integrity constraints, check options, and exceptions of triggers.
_ROW_SQLSTATE_CLASSES: Final = frozenset({"22", "23", "44", "P0"})


class _CitextKey(TextKey):
    """A ``citext`` column, compared as it compares itself: another case is equal."""

    cache_ok = True

    def bind_expression(self, bindparam: BindParameter[str]) -> ColumnElement[str]:
        """Cast the bound value to ``citext``."""
        return cast(bindparam, CITEXT)


class _ReconnectingConnection(Connection):
    """A connection for reading, which repeats a statement on a new connection if the old one was lost."""

    def execute(self, *args: Any, **options: Any) -> Any:
        return self._retry(super().execute, *args, **options)

    def exec_driver_sql(self, *args: Any, **options: Any) -> Any:
        return self._retry(super().exec_driver_sql, *args, **options)

    def _retry(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        for retries_left in reversed(range(_ATTEMPTS)):
            try:
                return call(*args, **options)
            except exc.DBAPIError as error:
                if not error.connection_invalidated or not retries_left:
                    raise
                self.rollback()  # the next statement opens a new connection
        raise AssertionError


class PostgresDatabase(Database):
    """One connection to a PostgreSQL database, which is reopened if it is lost.

    Args:
        address: the URL.
        busy_timeout_seconds: how long to wait for a lock, or for an unreachable server.
        lease_seconds: after how much silence the server ends a session that holds a lock.

    Raises:
        StoreError: the driver is missing, or the server is unreachable or refuses the login.
    """

    scratch_schema = "pg_temp"
    _advice = {  # noqa: RUF012  (a class attribute, as in the base)
        "password authentication failed": "Check user and password in paths.database.",
        "no password supplied": "Add the password to paths.database (${VARIABLE} keeps it out of the file).",
        "pg_hba.conf": "Allow this host and user in the server's pg_hba.conf.",
        "Connection refused": "Check that the server is running and listens there (listen_addresses).",
        "failed to resolve host": "Check the host in paths.database.",
        "could not translate host": "Check the host in paths.database.",
        "timeout expired": "Check that the server is running and that no firewall blocks it.",
        "must be owner of table jobs": f"Its owner can append the columns once. See {_PAGE}.",
        "permission denied": f"Grant the permission. See {_PAGE}.",
        "row-level security": "A policy hides rows of jobs from this role, so their files would look "
        "unused. Grant it BYPASSRLS, or make it the owner of the table. "
        f"See {_PAGE}.",
        "read-only transaction": "This is a read-only replica. Use the primary server in paths.database.",
        "lock timeout": "Another program locked a row or table for longer than "
        "database.busy_timeout_seconds. pg_locks names it.",
    }

    def __init__(
        self, address: DatabaseAddress, *, busy_timeout_seconds: float, lease_seconds: float
    ) -> None:
        super().__init__(address.redacted, busy_timeout_seconds=busy_timeout_seconds)
        try:
            import psycopg  # noqa: F401  (an extra)
        except ImportError as error:
            raise StoreError(
                f"The PostgreSQL driver for paths.database ({self.name}) is missing. {add_extra('postgres')}"
            ) from error
        url = _url(address, self.name)
        self._password = url.password or ""
        self._lease_seconds = lease_seconds
        self._using = threading.RLock()
        self._held: tuple[AdvisoryLock, int] | None = None  # with its generation
        self._identity: tuple[object, ...] | None = None
        self.session = 0
        keepalive_seconds = max(1, int(lease_seconds / 3))
        defaults = {
            "application_name": "eemtcleanupd",
            "client_encoding": "UTF8",
            "connect_timeout": _CONNECT_SECONDS,
            "keepalives_idle": keepalive_seconds,
            "keepalives_interval": keepalive_seconds,
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
        """Open a connection.  After a lost one, wait for the server and reacquire the lock."""
        from psycopg import OperationalError

        self._require_no_library(parameters)
        deadline = time.monotonic() + self._busy_timeout_seconds
        while True:
            try:
                connect = partial(dialect.connect, *args, **parameters)
                raw: Any = connect()
                try:
                    self._require_no_code_of_others(raw)
                    self._require_own_session(raw, connect)
                    self._prepare(raw)
                except BaseException:
                    raw.close()
                    raise
            except OperationalError as error:
                if self.session == 0 or time.monotonic() >= deadline:
                    raise
                log.debug("%s is unreachable (%s); retrying", self.name, self._error(error))
                time.sleep(min(0.2, self._busy_timeout_seconds))
            else:
                self.session += 1
                return raw

    def _require_no_library(self, parameters: Mapping[str, object]) -> None:
        """Refuse an address with which libpq could load a library of the user of this process.

        The part of ``sslkey`` before a colon names an engine of OpenSSL, also by the path of a library.  The
        file of a service can be in the home of the user, and can have this parameter too.
        """
        if not exceeds_user():
            return
        names = {"conninfo", "service", "servicefile"} & parameters.keys()
        if names or "PGSERVICE" in os.environ or ":" in str(parameters.get("sslkey", "")):
            raise StoreError(
                f"Job database {self.name} is not opened, because this process can change files that user "
                f"{os.geteuid()} cannot. A service or an engine (a colon in sslkey) could load code that "
                "does so. Write the parameters and a path instead, or run as that user."
            )

    def _require_no_code_of_others(self, raw: Any) -> None:
        """Refuse to work as superuser where another role can add code, before that code can run."""
        raw.autocommit = True
        if (owner := raw.execute(_OWNER_OF_CODE).fetchone()) is not None:
            raise StoreError(
                f"Job database {self.name} is not opened as superuser, because role "
                f"{printable(owner[0])} can add triggers or functions. They would have the rights of the "
                "superuser, who can run programs on the server. Use a role without other rights. "
                f"See {_PAGE}."
            )

    def _require_own_session(self, raw: Any, connect: Callable[[], Any]) -> None:
        """Refuse a pooler that gives the session of this connection to others between two transactions.

        They would then hold our locks, and work with our settings.  Only a pooler tells a client another
        process id than that of its backend.
        """
        backends = {raw.execute(_BACKEND).fetchone()[0]}
        if backends == {raw.info.backend_pid}:
            return
        backends |= {raw.execute(_BACKEND).fetchone()[0] for _ in range(_SESSION_PROBES)}
        with closing(connect()) as other:  # in a transaction, so it keeps its backend
            taken = other.execute(_BACKEND).fetchone()[0]
            backends.add(raw.execute(_BACKEND).fetchone()[0])
        if len(backends) > 1 or taken in backends:
            raise StoreError(
                f"Job database {self.name} is behind a connection pooler in transaction mode. It gives the "
                "lock of a run to other programs. Set paths.database to the address of the server itself, or "
                "of a pooler in session mode."
            )

    def _prepare(self, raw: Any) -> None:
        encoding = raw.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise StoreError(f"Job database {self.name} has encoding {encoding}. Only UTF8 is supported.")
        keepalive_seconds = max(1, int(self._lease_seconds / 3))
        raw.execute(
            "SELECT set_config(name, value, false) FROM (VALUES ('TimeZone', 'UTC'),"
            " ('DateStyle', 'ISO, YMD'), ('row_security', 'off'), ('lock_timeout', %s),"
            " ('tcp_keepalives_idle', %s), ('tcp_keepalives_interval', %s),"
            " ('tcp_keepalives_count', '2'), ('tcp_user_timeout', %s)) AS settings (name, value)",
            (
                _LOCK_TIMEOUT,
                str(keepalive_seconds),
                str(keepalive_seconds),
                str(int(self._lease_seconds * 1000)),
            ),
        )
        identity = raw.execute(
            "SELECT system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database()),"
            " current_schema() FROM pg_control_system()"
        ).fetchone()
        if self._identity not in {None, identity}:
            raise StoreError(
                f"Job database {self.name} is not the same database as before the connection was lost. "
                "Nothing more was done."
            )
        self._identity = identity
        if self._held is not None:
            self._reacquire_lock(raw.execute, *self._held)
        raw.autocommit = False

    @property
    def _executor(self) -> Engine:
        return self._engine

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._using, _ReconnectingConnection(self._engine) as connection:
            yield connection

    @contextmanager
    def scratch(self, session: int | None = None) -> Iterator[Connection]:
        """Provide a connection for work on temporary tables, which are lost with it."""
        lost = TempTablesLostError(f"The connection to {self.name} was lost.")
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
                    transaction_id = connection.exec_driver_sql(
                        "SELECT txid_current_if_assigned()"
                    ).scalar_one()
                except BaseException:
                    transaction.close()
                    raise
                try:
                    transaction.commit()
                except exc.DBAPIError as error:
                    if transaction_id is None or not error.connection_invalidated:
                        raise
                    lost = error
            # The connection was lost during the commit, so ask the server whether it was committed.
            if lost is not None and not self._was_committed(transaction_id):
                raise lost
            return result

    def _was_committed(self, transaction_id: int) -> bool:
        deadline = time.monotonic() + self._busy_timeout_seconds
        while True:
            with self._reading() as connection:
                state = connection.exec_driver_sql("SELECT txid_status(%s)", (transaction_id,)).scalar_one()
            if state != "in progress" or time.monotonic() >= deadline:
                return bool(state == "committed")
            time.sleep(0.05)

    def _is_transient(self, error: BaseException) -> bool:
        if not isinstance(error, exc.DBAPIError):
            return False
        return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _TRANSIENT_SQLSTATES

    def _error(self, error: BaseException | None) -> StoreError:
        result = super()._error(error)
        password = printable(" ".join(self._password.split()))
        return type(result)(str(result).replace(password, "***")) if password else result

    def _concerns_row(self, error: BaseException) -> bool:
        return (getattr(error, "sqlstate", None) or "")[:2] in _ROW_SQLSTATE_CLASSES

    # -- locks -------------------------------------------------------------------------------------

    @contextmanager
    def locked(self, what: str, holder: Holder) -> Iterator[None]:
        """Hold a lock of the job store, at most one per object."""
        with self._translated(), self._using:
            lock = self._lock(what)
            self._held = lock, self._acquire_lock(lock, holder)
            with self.read() as connection:
                # The connection might have been lost since: then the row exists, but the lock does not.
                self._reacquire_lock(connection.exec_driver_sql, *self._held)
                connection.commit()
        stop = threading.Event()
        renewing = threading.Thread(
            target=self._renew_lease, args=(stop,), name=f"lease ({what})", daemon=True
        )
        renewing.start()
        try:
            yield
        finally:
            stop.set()
            renewing.join()
            with self._using, suppress(exc.SQLAlchemyError, CleanupError):
                self._held = None
                with self._engine.connect() as connection:
                    advisory_lock.release_all(connection.exec_driver_sql)
                    connection.commit()

    def verify_lock(self) -> None:
        """Check that the lock is held, and reacquire it if the connection was lost.

        Raises:
            LockHeldError: another process acquired it.
            StoreError: the server is unreachable.
        """
        with self.read() as connection:
            connection.exec_driver_sql("SELECT 1")

    def holder(self, what: str) -> Holder | None:
        """Return the process that holds a lock of the job store, or None."""
        with self.read() as connection:
            if not connection.exec_driver_sql(advisory_lock.TABLE_EXISTS).scalar_one():
                return None
            return self._lock(what).holder(connection.exec_driver_sql)

    def _lock(self, what: str) -> AdvisoryLock:
        schema = None if self._identity is None else self._identity[2]
        return AdvisoryLock(what, str(schema), self.name)

    def _acquire_lock(self, lock: AdvisoryLock, holder: Holder) -> int:
        with self.read() as connection:
            exists = connection.exec_driver_sql(advisory_lock.TABLE_EXISTS).scalar_one()
        if not exists:
            self.write(lambda c: c.exec_driver_sql(advisory_lock.CREATE_TABLE))
        return self.write(lambda c: lock.acquire(c.exec_driver_sql, holder))

    def _reacquire_lock(self, execute: Execute, lock: AdvisoryLock, generation: int) -> None:
        lock.reacquire(execute, generation, self._busy_timeout_seconds)
        advisory_lock.start_lease(execute, self._lease_seconds)

    def _renew_lease(self, stop: threading.Event) -> None:
        """Renew the lease while the connection is idle.  The next use of the connection raises any error."""
        while not stop.wait(self._lease_seconds / 3):
            if self._using.acquire(blocking=False):
                try:
                    self.verify_lock()
                except CleanupError as error:
                    log.debug("The lease was lost: %s", error)
                finally:
                    self._using.release()

    # -- differences in SQL --------------------------------------------------------------------------

    def as_text(self, column: str) -> str:
        """Return SQL for a column as text, ordered by bytes (times are in ISO 8601)."""
        return f'CAST({column} AS TEXT) COLLATE "C"'

    def as_raw_name(self, column: str) -> str:
        """Return SQL for a column's bytes in hexadecimal."""
        return f"encode(convert_to({column}, 'UTF8'), 'hex')"

    def is_not_ascii(self, column: str) -> ColumnElement[bool]:
        """Return the comparison with a pattern."""
        return literal_column(f"{self.as_text(column)} ~ '[^ -~]'")

    def ledger_columns(self, connection: Connection) -> set[tuple[str, str]]:
        """Return the table and name of each column of all tables ``cleanup_*``."""
        rows = connection.exec_driver_sql(
            "SELECT c.relname, a.attname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid"
            " WHERE pg_table_is_visible(c.oid) AND left(c.relname, 8) = 'cleanup_'"
            " AND c.relkind IN ('r', 'p', 'f') AND a.attnum > 0 AND NOT a.attisdropped"
        )
        return {(table, column) for table, column in rows}

    def key_type(self, reflected: TypeEngine[Any]) -> TypeEngine[Any]:
        """Return the type that compares a column of ``jobs`` with text from this program."""
        if isinstance(reflected, Integer | Numeric):
            return IntegerKey()
        if isinstance(reflected, Uuid):
            return UuidKey()
        return _CitextKey() if isinstance(reflected, CITEXT) else TextKey()

    def _check_deferred(self, connection: Connection) -> None:
        """Check deferred constraints and triggers."""
        connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")

    def is_exactly(self, column: ColumnElement[Any], key: BindParameter[Any]) -> ColumnElement[bool]:
        """Return the comparison as text with collation "C"; numbers and UUIDs have one spelling."""
        if not isinstance(column.type, TextKey):
            return true()
        return cast(column, String).collate("C") == key

    def added_column(self, form: str, completed_at: TypeEngine[Any]) -> str:
        """Return the SQL type of an added column.

        A time has the type of ``completed_at``, or is text if that type cannot contain a time.
        """
        if form == "time" and isinstance(completed_at, DateTime | String):
            return completed_at.compile(self._engine.dialect)
        return {"megabytes": "DOUBLE PRECISION DEFAULT 0"}.get(form, "TEXT")

    def local_time(self, moment: datetime, local: str, completed_at: TypeEngine[Any]) -> str:
        """Return the local time, or ``moment`` for a column with time zones."""
        has_zone = isinstance(completed_at, DateTime) and completed_at.timezone
        return moment.isoformat() if has_zone else local

    # -- maintenance --------------------------------------------------------------------------------------

    def snapshot_before_reset(self, id_column: str, now: datetime) -> str:
        """Copy the records that ``reset`` deletes into two tables, and return their names."""
        prefix = f"cleanup_before_reset_{unique_stamp(now.astimezone()).lower().replace('-', '_')}"
        jobs, lines = f"{prefix}_jobs", f"{prefix}_log"

        def copy(connection: Connection) -> None:
            connection.exec_driver_sql(
                f"CREATE TABLE {jobs} AS SELECT {id_column}, data_cleaned_at, data_size_mb, cleanup_summary"
                " FROM jobs WHERE data_cleaned_at IS NOT NULL"
            )
            connection.exec_driver_sql(f"CREATE TABLE {lines} AS SELECT * FROM cleanup_log")

        self.write(copy)
        return f"tables {jobs} and {lines}"

    def integrity_errors(self) -> list[str]:
        """Return no problems: the server checks its own files."""
        return []

    def vacuum(self) -> None:
        """Do nothing: the server's autovacuum does this."""

    def sessions(self) -> list[str]:
        """Return the other connections to the database."""
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
        raise StoreError(f"paths.database ({name}) is not a valid URL.") from error
    if url.drivername not in DIALECTS:
        raise StoreError(
            f"paths.database ({name}) has the unsupported type {url.drivername}. Use the path of a SQLite "
            "file, or postgresql://user:password@host/database."
        )
    return url.set(drivername="postgresql+psycopg")
