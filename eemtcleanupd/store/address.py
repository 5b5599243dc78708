"""Where the job database is: how it is opened, and where the files lie that belong to a daemon on it."""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from eemtcleanupd.config import Config
from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.lock import Holder, file_holder, file_lock, holder_here

_USUAL_TAKEOVER_SECONDS = 30.0
_QUICK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """The job database's address.

    ``folder`` is where our files lie when the database is no file; ``lease_seconds`` after how much silence
    a server gives a lock to another.
    """

    address: DatabaseAddress
    folder: Path
    busy_timeout_seconds: float
    lease_seconds: float = _USUAL_TAKEOVER_SECONDS / 2

    @classmethod
    def of(cls, config: Config) -> StoreAddress:
        """Return that of a configuration."""
        takeover = config.ha.takeover_seconds or _USUAL_TAKEOVER_SECONDS
        return cls(
            DatabaseAddress(config.paths.database),
            config.paths.logs,
            config.database.busy_timeout_seconds,
            takeover / 2,
        )

    @classmethod
    def of_file(cls, file: Path, busy_timeout_seconds: float = 60) -> StoreAddress:
        """Return that of a SQLite file."""
        return cls(DatabaseAddress(file), file.parent, busy_timeout_seconds)

    @property
    def file(self) -> Path | None:
        """The SQLite file, None for a server's database."""
        return self.address.file

    @property
    def label(self) -> str:
        """The database's name, without where it is."""
        return self.file.name if self.file is not None else self.address.rpartition("/")[2].partition("?")[0]

    def __str__(self) -> str:
        return self.address.redacted

    def open(self, busy_timeout_seconds: float | None = None) -> Database:
        """Open the database; without an argument locks are waited for as long as the configuration says.

        Raises:
            StoreError: it cannot be opened.
        """
        patience = self.busy_timeout_seconds if busy_timeout_seconds is None else busy_timeout_seconds
        if self.file is not None:
            from eemtcleanupd.store.sqlite import SqliteDatabase

            return SqliteDatabase(self.file, busy_timeout_seconds=patience)
        from eemtcleanupd.store.postgres import PostgresDatabase

        return PostgresDatabase(self.address, busy_timeout_seconds=patience, lease_seconds=self.lease_seconds)

    def own_file(self, suffix: str) -> Path:
        """Return the path of a file of ours: beside the database's file, else in ``paths.logs`` by host."""
        if self.file is not None:
            return self.file.with_name(f"{self.file.name}.eemtcleanupd.{suffix}")
        return self.folder / f"{socket.gethostname()}.eemtcleanupd.{suffix}"


def daemon_lock(location: StoreAddress, now: datetime) -> AbstractContextManager[None]:
    """Hold the lock of a daemon for its life: one for each file, or for each host; runs have another.

    Raises:
        LockHeldError: another daemon holds it; the message says which process on which host.
        StoreError: the lock file cannot be opened or written.
    """
    if location.file is None:
        location.folder.mkdir(parents=True, exist_ok=True)
    return file_lock(location.own_file("daemon.lock"), "daemon", str(location), holder_here(now))


def find_daemon(location: StoreAddress) -> Holder | None:
    """Return the daemon that lives on a job store, the one on this host first; None when there is none.

    Raises:
        StoreError: the lock cannot be looked at.
    """
    here = file_holder(location.own_file("daemon.lock"))
    return here if here is not None or location.file is not None else find_active_daemon(location)


def find_active_daemon(location: StoreAddress) -> Holder | None:
    """Return the daemon that cleans, which may be on another host; None when there is none.

    Raises:
        StoreError: the lock cannot be looked at.
    """
    if location.file is not None:
        return find_daemon(location)
    database = location.open(_QUICK_SECONDS)
    try:
        return database.holder("daemon")
    finally:
        database.close()


class StoreLock:
    """A lock of a job store that is held beside all else, until it is closed.

    Args:
        location: the job store.
        what: the lock.
        now: told to whoever asks who holds it.

    Raises:
        LockHeldError: another holds it.
        StoreError: it cannot be asked for.
    """

    def __init__(self, location: StoreAddress, what: str, now: datetime) -> None:
        self._stack = ExitStack()
        self._database: Database | None = None
        with ExitStack() as stack:
            if location.file is None:
                self._database = location.open(min(location.busy_timeout_seconds, location.lease_seconds))
                stack.callback(self._database.close)
                stack.enter_context(self._database.locked(what, holder_here(now)))
            else:
                lock = location.own_file(f"{what}.lock")
                stack.enter_context(file_lock(lock, what, str(location), holder_here(now)))
            self._stack = stack.pop_all()

    def verify(self) -> None:
        """Insist that it is still held.

        Raises:
            LockHeldError: another took it while the server could not be reached.
            StoreError: the server cannot be reached.
        """
        if self._database is not None:
            self._database.verify_lock()

    def close(self) -> None:
        """Let go of it."""
        self._stack.close()
