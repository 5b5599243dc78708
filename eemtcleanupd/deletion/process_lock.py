"""A lock that keeps out other threads and other processes that have the same file open."""

from __future__ import annotations

import errno
import fcntl
import threading
import time

_PAUSE_SECONDS = 0.001


class InterProcessLock:
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
                # The kernel takes two threads of a process for one (fcntl(2), EDEADLK), and a deadlock for
                # what is none: whoever holds one of our locks waits for nothing.
                if error.errno != errno.EDEADLK:
                    raise
                time.sleep(_PAUSE_SECONDS)
            else:
                return

    def __exit__(self, *_error: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, self._byte)
        self._threads.release()
