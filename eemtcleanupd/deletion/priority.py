"""CPU and disk priority of a single thread, which Linux keeps separately for each thread."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

# The number of ioprio_set(2) on each architecture; ioprio_get(2) has the next one.  The C library wraps
# neither.
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
"""The I/O class "idle": served only when no other process uses the disk."""


@dataclass(frozen=True, slots=True)
class Priority:
    """Niceness (setpriority(2)) and I/O priority (class and level as the number of ioprio_set(2))."""

    nice: int
    io: int

    @classmethod
    def of_thread(cls, thread_id: int = 0) -> Priority:
        """Return the priority of a thread; 0 is the calling thread."""
        io = _ioprio(1, _WHO_PROCESS, thread_id)
        return cls(os.getpriority(os.PRIO_PROCESS, thread_id), max(0, io))

    def lowered(self, *, nice: int, idle_io: bool) -> Priority:
        """Return this priority with the lower of both niceness values, and idle I/O if requested."""
        return replace(self, nice=max(self.nice, nice), io=_IDLE if idle_io else self.io)

    def apply(self) -> str | None:
        """Give the calling thread this priority; return a warning when the system refuses."""
        current = Priority.of_thread()
        if current.nice != self.nice:
            try:
                os.setpriority(os.PRIO_PROCESS, 0, self.nice)
            except PermissionError:  # decreasing the niceness requires CAP_SYS_NICE
                return (
                    f"performance.nice cannot change from {current.nice} to {self.nice} during a run. "
                    "The new value applies to the next run."
                )
        if current.io != self.io and _ioprio(0, _WHO_PROCESS, 0, self.io) < 0:
            return "performance.io_priority has no effect: the system refuses it (ioprio_set)."
        return None


def _ioprio(offset: int, *arguments: int) -> int:
    import ctypes

    number = _IOPRIO_SET.get(os.uname().machine)
    return -1 if number is None else int(ctypes.CDLL(None).syscall(number + offset, *arguments))
