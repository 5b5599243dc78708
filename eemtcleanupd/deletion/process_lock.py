"""A lock that excludes other threads and other processes with the same file open."""

from __future__ import annotations

import errno
import fcntl
import threading
import time

_RETRY_SECONDS = 0.001


class InterProcessLock:
    """A lock that one thread of one process holds at a time; each process creates one for all its threads.

    Args:
        fd: the file.
        byte: which byte of the file is locked, so that one file serves several locks.  ``fcntl`` locks belong
            to a process, and the byte need not exist.
    """

    def __init__(self, fd: int, byte: int = 0) -> None:
        self._fd = fd
        self._byte = byte
        self._threads = threading.Lock()

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            self._lock()
        except BaseException:
            self._threads.release()
            raise

    def _lock(self) -> None:
        while True:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, self._byte)
            except OSError as error:
                # The kernel treats two threads of a process as one and so reports false deadlocks (fcntl(2),
                # EDEADLK).  A real one is impossible, because the holder of such a lock waits for nothing.
                if error.errno != errno.EDEADLK:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                return

    def __exit__(self, *_error: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, self._byte)
        self._threads.release()
