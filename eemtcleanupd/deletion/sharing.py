"""A lock that keeps out other threads and other processes that have the same file open."""

from __future__ import annotations

import fcntl
import threading


class SharedLock:
    """Held by one thread of one process at a time; each process makes one for all its threads.

    Args:
        fd: the file.
        byte: which byte of it is locked, so that one file serves several locks (``fcntl`` locks belong to
            a process, and need no such byte to exist).
    """

    def __init__(self, fd: int, byte: int = 0) -> None:
        self._fd = fd
        self._byte = byte
        self._threads = threading.Lock()

    def __enter__(self) -> None:
        self._threads.acquire()
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, self._byte)

    def __exit__(self, *_error: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, self._byte)
        self._threads.release()
