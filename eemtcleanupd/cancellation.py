"""A stop flag that a signal handler can set.

``threading.Event.set`` takes a lock, so a handler that interrupts the lock's holder would deadlock.
Setting a byte cannot.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class StopFlag:
    """A flag that is set once.  Workers check it between two system calls."""

    def __init__(self) -> None:
        self._bytes: list[bytearray | mmap.mmap] = [bytearray(1)]

    def set(self) -> None:
        """Request that work stops after the current system call."""
        for byte in self._bytes:
            byte[0] = 1

    def is_set(self) -> bool:
        """Return whether work is to stop."""
        return self._bytes[0][0] != 0

    def share(self) -> int:
        """Create a copy that is set with the flag and that other processes can ``attach``.

        Returns:
            A descriptor of the shared memory.  The caller closes it.
        """
        fd = os.memfd_create("stop")
        os.ftruncate(fd, 1)
        copy = mmap.mmap(fd, 1)
        self._bytes.append(copy)
        if self.is_set():
            copy[0] = 1
        return fd

    @classmethod
    def attach(cls, fd: int) -> StopFlag:
        """Return the flag that another process shares through descriptor ``fd``."""
        flag = cls()
        flag._bytes = [mmap.mmap(fd, 1)]
        return flag


_current: ContextVar[StopFlag | None] = ContextVar("stop_flag", default=None)


@contextmanager
def stoppable_by(flag: StopFlag) -> Iterator[None]:
    """Make a flag the current one, for hooks that have no argument for it."""
    token = _current.set(flag)
    try:
        yield
    finally:
        _current.reset(token)


def current_stop_flag() -> StopFlag:
    """Return the flag of the run that called a hook; outside of a run, one that nothing sets."""
    return _current.get() or StopFlag()
