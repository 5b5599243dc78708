"""The address of a job store: how to open its database, and where its lock and status files are."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from eemtcleanupd.config import Config
from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.owner import OWNER, require_owner

_DEFAULT_TAKEOVER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """The address of a job database.

    Attributes:
        address: path of a SQLite file, or a URL.
        folder: where our files are if the database is not a file.
        busy_timeout_seconds: how long to wait for a lock.
        lease_seconds: after how much silence a server releases a lock.
        run_as: whether a process of another user than the owner can open a SQLite file.
    """

    address: DatabaseAddress
    folder: Path
    busy_timeout_seconds: float
    lease_seconds: float = _DEFAULT_TAKEOVER_SECONDS / 2
    run_as: str = OWNER

    @classmethod
    def of(cls, config: Config) -> StoreAddress:
        """Return the address in a configuration."""
        takeover = config.ha.takeover_seconds or _DEFAULT_TAKEOVER_SECONDS
        return cls(
            DatabaseAddress(config.paths.database),
            config.paths.logs,
            config.database.busy_timeout_seconds,
            takeover / 2,
            config.run_as,
        )

    @classmethod
    def of_file(cls, file: Path, busy_timeout_seconds: float = 60) -> StoreAddress:
        """Return the address of a SQLite file."""
        return cls(DatabaseAddress(file), file.parent, busy_timeout_seconds)

    @classmethod
    def of_own_file(cls, path: Path, suffix: str) -> StoreAddress:
        """Return an address with the same :meth:`own_file`, whatever its database is."""
        return cls.of_file(path.with_name(path.name.removesuffix(f".eemtcleanupd.{suffix}")))

    @property
    def file(self) -> Path | None:
        """The SQLite file, or None for a server's database."""
        return self.address.file

    @property
    def label(self) -> str:
        """The database's name, without its folder or server."""
        return self.file.name if self.file is not None else self.address.rpartition("/")[2].partition("?")[0]

    def __str__(self) -> str:
        return self.address.redacted

    def open(self, busy_timeout_seconds: float | None = None) -> Database:
        """Open the database.  Without an argument the configured busy timeout applies.

        Raises:
            StoreError: the database cannot be opened, or belongs to another user.
        """
        timeout = self.busy_timeout_seconds if busy_timeout_seconds is None else busy_timeout_seconds
        if self.file is not None:
            from eemtcleanupd.store.sqlite import SqliteDatabase

            require_owner(self.file, self.run_as)
            return SqliteDatabase(self.file, busy_timeout_seconds=timeout)
        from eemtcleanupd.store.postgres import PostgresDatabase

        return PostgresDatabase(self.address, busy_timeout_seconds=timeout, lease_seconds=self.lease_seconds)

    def own_file(self, suffix: str) -> Path:
        """Return the path of one of our files: beside a SQLite file, else in ``paths.logs`` by host."""
        if self.file is not None:
            return self.file.with_name(f"{self.file.name}.eemtcleanupd.{suffix}")
        return self.folder / f"{socket.gethostname()}.eemtcleanupd.{suffix}"
