"""The request to stop, as a flag that a signal handler may set.

``threading.Event.set`` takes a lock, which a handler that interrupts its holder would wait for for ever;
setting a byte does not.
"""

from __future__ import annotations

import mmap
import os


class StopFlag:
    """Set once; whoever works looks at it between two system calls."""

    def __init__(self) -> None:
        self._bytes: list[bytearray | mmap.mmap] = [bytearray(1)]

    def set(self) -> None:
        """Ask for the work to end after the system call at hand."""
        for each in self._bytes:
            each[0] = 1

    def is_set(self) -> bool:
        """Tell whether the work is to end."""
        return self._bytes[0][0] != 0

    def share(self) -> int:
        """Put a copy that is set with the flag where other processes can ``attach`` it.

        Returns:
            A descriptor of that memory, for the caller to close.
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
        """Return the flag that another process shares."""
        flag = cls()
        flag._bytes = [mmap.mmap(fd, 1)]
        return flag
