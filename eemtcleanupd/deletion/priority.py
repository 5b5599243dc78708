"""The priority of one thread on processor and disk: Linux keeps both for each thread by itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

# ioprio_set(2), which the C library does not wrap: its number on each kind of machine, the one of
# ioprio_get is the next.
_IOPRIO_SET = {
    "x86_64": 251,
    "i386": 289,
    "i686": 289,
    "aarch64": 30,
    "riscv64": 30,
    "loongarch64": 30,
    "armv7l": 314,
    "armv6l": 314,
    "ppc64le": 273,
    "ppc64": 273,
    "s390x": 282,
}
_WHO_PROCESS = 1
_IDLE = 3 << 13
"""The class "idle": served when nobody else wants the disk."""


@dataclass(frozen=True, slots=True)
class Priority:
    """Niceness (setpriority(2)) and the disk's class and level, as ioprio_set(2) puts them in a number."""

    nice: int
    io: int

    @classmethod
    def of_this_thread(cls) -> Priority:
        """Return what the calling thread has."""
        return cls(os.getpriority(os.PRIO_PROCESS, 0), max(0, _ioprio(1, _WHO_PROCESS, 0)))

    def lowered(self, *, nice: int, idle_io: bool) -> Priority:
        """Return this priority, or a lower one where that is asked for: never a higher one."""
        return replace(self, nice=max(self.nice, nice), io=_IDLE if idle_io else self.io)

    def apply(self) -> str | None:
        """Give the calling thread this priority; returns in words what was refused."""
        now = Priority.of_this_thread()
        if now.nice != self.nice:
            try:
                os.setpriority(os.PRIO_PROCESS, 0, self.nice)
            except PermissionError:  # to lower it again takes a right (CAP_SYS_NICE) that a user lacks
                return f"performance.nice cannot go from {now.nice} to {self.nice} before the next run"
        if now.io != self.io and _ioprio(0, _WHO_PROCESS, 0, self.io) < 0:
            return "performance.io_priority has no effect: the system refuses it (ioprio_set)"
        return None


def _ioprio(offset: int, *arguments: int) -> int:
    import ctypes

    number = _IOPRIO_SET.get(os.uname().machine)
    return -1 if number is None else int(ctypes.CDLL(None).syscall(number + offset, *arguments))
