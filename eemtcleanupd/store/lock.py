"""The lock that lets one run at a time work on a job store, across processes and hosts.

An flock on a file beside the database.  The file stays: removing it would let two runs lock two files of
one name.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from eemtcleanupd.errors import LockHeldError, StoreError


@contextmanager
def run_lock(database: Path, run_id: str, now: datetime) -> Iterator[None]:
    """Hold the lock of a job store.

    Args:
        database: the SQLite file; the lock lies beside it.
        run_id: told to whoever asks meanwhile.
        now: aware UTC, told as well.

    Raises:
        LockHeldError: another run holds it; the message says which process on which host.
        StoreError: the lock file cannot be opened or written.
    """
    path = database.with_name(f"{database.name}.eemtcleanupd.lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        raise StoreError(f"the lock {path} cannot be opened ({error.strerror}); check its folder") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _describe(os.pread(descriptor, 4096, 0))
            raise LockHeldError(f"another run works on {database}: {holder}") from error
        told = {"pid": os.getpid(), "host": socket.gethostname(), "run": run_id, "since": f"{now:%F %T} UTC"}
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(told).encode(), 0)
        except OSError as error:
            raise StoreError(f"the lock {path} cannot be written ({error.strerror})") from error
        yield
    finally:
        os.close(descriptor)


def _describe(content: bytes) -> str:
    try:
        told = json.loads(content)
        return f"run {told['run']}, process {told['pid']} on {told['host']}, since {told['since']}"
    except (ValueError, KeyError, TypeError):
        return "it has not said who it is yet"
