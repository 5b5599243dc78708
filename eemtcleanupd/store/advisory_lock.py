"""Advisory locks of PostgreSQL, with a table of their holders and a lease.

A lock belongs to the session that does the work, so a process that loses its connection loses the lock and
cannot write as if it still held it.  The row in ``cleanup_locks`` names the holder and counts how often the
lock was acquired (its generation).  After a lost connection the holder continues only if no other process had
the lock meanwhile.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from eemtcleanupd.errors import LockHeldError
from eemtcleanupd.formatting import printable
from eemtcleanupd.store.lock import Holder, lock_held
from eemtcleanupd.store.values import is_storable

Execute = Callable[..., Any]
"""Executes SQL with parameters and returns a cursor: a method of psycopg's or SQLAlchemy's connection."""

CREATE_TABLE: Final = """
CREATE TABLE IF NOT EXISTS cleanup_locks (
    name TEXT PRIMARY KEY, generation BIGINT NOT NULL, backend INTEGER NOT NULL,
    pid INTEGER NOT NULL, host TEXT NOT NULL, since TEXT NOT NULL, run TEXT NOT NULL
)"""
TABLE_EXISTS: Final = "SELECT to_regclass('cleanup_locks') IS NOT NULL"
_TRY_LOCK: Final = "SELECT pg_try_advisory_lock(%s, %s)"
_SAVE_HOLDER: Final = """
INSERT INTO cleanup_locks (name, generation, backend, pid, host, since, run)
VALUES (%s, 1, pg_backend_pid(), %s, %s, %s, %s)
ON CONFLICT (name) DO UPDATE SET generation = cleanup_locks.generation + 1, backend = excluded.backend,
    pid = excluded.pid, host = excluded.host, since = excluded.since, run = excluded.run
RETURNING generation"""
# The row might be left by a dead process.  It is valid while the session that it names holds the lock.
_FIND_HOLDER: Final = """
SELECT l.pid, l.host, l.since, l.run, l.backend, l.generation
FROM cleanup_locks AS l JOIN pg_locks AS p ON p.pid = l.backend
WHERE l.name = %s AND p.locktype = 'advisory' AND p.granted AND p.classid = %s AND p.objid = %s
    AND p.objsubid = 2 AND p.database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
_UPDATE_BACKEND: Final = (
    "UPDATE cleanup_locks SET backend = pg_backend_pid() WHERE name = %s AND generation = %s"
)
_CLASS: Final = zlib.crc32(b"eemtcleanupd")
_FIRST_VERSION_WITH_SESSION_TIMEOUT: Final = 140_000


@dataclass(frozen=True, slots=True)
class _LockSession:
    """The session that holds a lock: its process, its backend on the server, and the lock's generation."""

    holder: Holder
    backend: int
    generation: int


@dataclass(frozen=True, slots=True)
class AdvisoryLock:
    """A lock of one job store.

    Attributes:
        what: its name.
        schema: the schema of the job store.  Advisory locks alone would apply to the complete database.
        database: the database's name in messages.
    """

    what: str
    schema: str
    database: str

    def acquire(self, execute: Execute, holder: Holder) -> int:
        """Acquire the lock and save its holder.

        Returns:
            The generation of the lock.

        Raises:
            LockHeldError: another session holds the lock.
        """
        # A session can acquire its own lock again, and a pooler can give a session to several programs.
        held = self.holder(execute)
        if held is not None or not execute(_TRY_LOCK, self._signed_key).fetchone()[0]:
            raise lock_held(self.what, self.database, held or self.holder(execute))
        run = holder.run if is_storable(holder.run) else printable(holder.run)
        values = (self.what, holder.pid, holder.host, holder.since, run)
        return int(execute(_SAVE_HOLDER, values).fetchone()[0])

    def reacquire(self, execute: Execute, generation: int, timeout_seconds: float) -> None:
        """Acquire the lock on a new connection, unless another process has or had it.

        Raises:
            LockHeldError: another process has or had the lock.
        """
        deadline = time.monotonic() + timeout_seconds
        while not execute(_TRY_LOCK, self._signed_key).fetchone()[0]:
            session = self._session(execute)
            if session is None or session.generation != generation or time.monotonic() >= deadline:
                raise self._lost(None if session is None else session.holder)
            # The server has not noticed yet that this process's previous session is dead.
            execute("SELECT pg_terminate_backend(%s)", (session.backend,))
            time.sleep(0.05)
        if execute(_UPDATE_BACKEND, (self.what, generation)).rowcount != 1:
            raise self._lost(None)

    def _session(self, execute: Execute) -> _LockSession | None:
        """Return the session that holds the lock, or None."""
        row = execute(_FIND_HOLDER, (self.what, _CLASS, self._key)).fetchone()
        if row is None:
            return None
        pid, *texts, backend, generation = row
        return _LockSession(Holder(pid, *(printable(str(text)) for text in texts)), backend, generation)

    def holder(self, execute: Execute) -> Holder | None:
        """Return the process that holds the lock, or None."""
        session = self._session(execute)
        return None if session is None else session.holder

    @property
    def _key(self) -> int:
        return zlib.crc32(f"{self.schema}.{self.what}".encode())

    @property
    def _signed_key(self) -> tuple[int, int]:
        return _signed(_CLASS), _signed(self._key)

    def _lost(self, holder: Holder | None) -> LockHeldError:
        return LockHeldError(
            f"The connection to {self.database} was lost, and with it the lock of this {self.what}. Another "
            f"process acquired it meanwhile{f' ({holder})' if holder else ''}. Nothing more was done."
        )


def start_lease(execute: Execute, lease_seconds: float) -> None:
    """Make the server end this session after ``lease_seconds`` of inactivity."""
    version = int(execute("SELECT current_setting('server_version_num')").fetchone()[0])
    timeout_ms = int(lease_seconds * 1000)
    execute(f"SET idle_in_transaction_session_timeout = {timeout_ms}")
    if version >= _FIRST_VERSION_WITH_SESSION_TIMEOUT:
        execute(f"SET idle_session_timeout = {timeout_ms}")


def release_all(execute: Execute) -> None:
    """Release the locks of this session and end its lease."""
    execute("SELECT pg_advisory_unlock_all()")
    execute("RESET idle_session_timeout")
    execute("RESET idle_in_transaction_session_timeout")


def _signed(number: int) -> int:
    """Convert an unsigned 32-bit number to a signed one."""
    return number - 2**32 if number >= 2**31 else number
