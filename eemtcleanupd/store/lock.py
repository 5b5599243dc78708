"""The locks of a job store: one for a run, across processes and hosts, and one for the life of a daemon.

Beside a SQLite file each is an flock on a file of its own, so that a crash lets go of it by itself.  The
files stay: removing one would let two programs lock two files of one name.  A database on a server keeps the
lock of a run itself (:mod:`~eemtcleanupd.store.postgres`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from eemtcleanupd.errors import LockHeldError, StoreError

if TYPE_CHECKING:
    from eemtcleanupd.store.database import Database

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock; ``run`` is empty for a daemon, ``since`` is UTC in words."""

    pid: int
    host: str
    since: str
    run: str = ""

    def __str__(self) -> str:
        run = f"run {self.run}, " if self.run else ""
        return f"{run}process {self.pid} on {self.host}, since {self.since}"


def run_lock(database: Database, run_id: str, now: datetime) -> AbstractContextManager[None]:
    """Hold the lock of a job store for a run.

    Args:
        database: the job database, open; on a server its connection holds the lock.
        run_id: told to whoever asks meanwhile.
        now: aware UTC, told as well.

    Raises:
        LockHeldError: another run holds it; the message says which process on which host.
        StoreError: the lock cannot be asked for.
    """
    return database.locked("run", holder_here(now, run_id))


def holder_here(now: datetime, run_id: str = "") -> Holder:
    """Return what this process says of itself when it holds a lock."""
    return Holder(os.getpid(), socket.gethostname(), f"{now:%F %T} UTC", run_id)


def file_holder(path: Path) -> Holder | None:
    """Return who holds a lock file, None when nobody does.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"the lock {path} cannot be read ({error.strerror}); check its mode") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read_holder(descriptor)
    finally:
        os.close(descriptor)
    return None


@contextmanager
def file_lock(path: Path, what: str, database: str, told: Holder) -> Iterator[None]:
    """Hold an flock on a file, which says who holds it; ``what`` and ``database`` are for messages.

    Raises:
        LockHeldError: another process holds it; the message says which one on which host.
        StoreError: the file cannot be opened or written.
    """
    try:
        descriptor = os.open(path, _FLAGS, 0o644)
    except OSError as error:
        raise StoreError(
            f"the lock {path} cannot be opened ({error.strerror}); {_advice(error, 'check its folder')}"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read_holder(descriptor) or "it has not said who it is yet"
            raise LockHeldError(f"another {what} works on {database}: {holder}") from error
        try:
            # Over what stood there, which takes no more room on most filesystems.
            os.ftruncate(descriptor, os.pwrite(descriptor, json.dumps(asdict(told)).encode(), 0))
        except OSError as error:
            advice = _advice(error, "check its disk")
            raise StoreError(f"the lock {path} cannot be written ({error.strerror}); {advice}") from error
        yield
    finally:
        os.close(descriptor)


def _advice(error: OSError, otherwise: str) -> str:
    return "free a few MB there first" if error.errno in {errno.ENOSPC, errno.EDQUOT} else otherwise


def _read_holder(descriptor: int) -> Holder | None:
    try:
        told = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(int(told["pid"]), str(told["host"]), str(told["since"]), str(told["run"]))
    except (ValueError, KeyError, TypeError):
        return None
