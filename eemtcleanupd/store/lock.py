"""The locks of a job store: one for a run, across processes and hosts, and one for the life of a daemon.

Each is an flock on a file beside the database, so that a crash lets go of it by itself.  The files stay:
removing one would let two programs lock two files of one name.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from eemtcleanupd.errors import LockHeldError, StoreError

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


@contextmanager
def run_lock(database: Path, run_id: str, now: datetime) -> Iterator[None]:
    """Hold the lock of a job store for a run.

    Args:
        database: the SQLite file; the lock lies beside it.
        run_id: told to whoever asks meanwhile.
        now: aware UTC, told as well.

    Raises:
        LockHeldError: another run holds it; the message says which process on which host.
        StoreError: the lock file cannot be opened or written.
    """
    with _locked(_run_lock_path(database), "run", database, run_id, now):
        yield


@contextmanager
def daemon_lock(database: Path, now: datetime) -> Iterator[None]:
    """Hold the lock of a job store for the life of a daemon; runs have another one.

    Raises:
        LockHeldError: another daemon holds it; the message says which process on which host.
        StoreError: the lock file cannot be opened or written.
    """
    with _locked(_daemon_lock_path(database), "daemon", database, "", now):
        yield


def daemon_of(database: Path) -> Holder | None:
    """Return the daemon that lives on a job store, None when there is none.

    Raises:
        StoreError: the lock file cannot be read.
    """
    return _holder_of(_daemon_lock_path(database))


def run_of(database: Path) -> Holder | None:
    """Return who holds the lock of a run on a job store, None when nobody does.

    Raises:
        StoreError: the lock file cannot be read.
    """
    return _holder_of(_run_lock_path(database))


def _holder_of(path: Path) -> Holder | None:
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


def _run_lock_path(database: Path) -> Path:
    return database.with_name(f"{database.name}.eemtcleanupd.lock")


def _daemon_lock_path(database: Path) -> Path:
    return database.with_name(f"{database.name}.eemtcleanupd.daemon.lock")


@contextmanager
def _locked(path: Path, what: str, database: Path, run_id: str, now: datetime) -> Iterator[None]:
    try:
        descriptor = os.open(path, _FLAGS, 0o644)
    except OSError as error:
        raise StoreError(f"the lock {path} cannot be opened ({error.strerror}); check its folder") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read_holder(descriptor) or "it has not said who it is yet"
            raise LockHeldError(f"another {what} works on {database}: {holder}") from error
        told = Holder(os.getpid(), socket.gethostname(), f"{now:%F %T} UTC", run_id)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(told)).encode(), 0)
        except OSError as error:
            raise StoreError(f"the lock {path} cannot be written ({error.strerror})") from error
        yield
    finally:
        os.close(descriptor)


def _read_holder(descriptor: int) -> Holder | None:
    try:
        told = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(int(told["pid"]), str(told["host"]), str(told["since"]), str(told["run"]))
    except (ValueError, KeyError, TypeError):
        return None
