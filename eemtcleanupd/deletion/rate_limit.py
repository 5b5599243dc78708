"""Rate limits and priority of deletion, shared by all threads and helper processes of a run.

The limits are in shared memory, so a reload reaches a process in the middle of a folder of a million files.
The memory also contains two token buckets, one for files and one for bytes.  A thread that removes something
charges the bucket first.  It then waits until the bucket, which refills at the allowed rate, covers the debt.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from dataclasses import astuple, dataclass
from functools import cache

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.deletion.priority import Priority
from eemtcleanupd.deletion.process_lock import InterProcessLock

_BURST_SECONDS = 0.1  # the capacity of a bucket; less would not make up for short sleeps
_MIN_SLEEP_SECONDS = 1e-5
_SLICE_SECONDS = 0.05  # the longest delay until a stop or a new limit takes effect

# The slots of the shared memory, 64 bits each, which are read and written atomically.  Slots 1 to 5 are the
# fields of RateLimits in their order.
_GENERATION, _DELETES, _BYTES, _CHUNK, _NICE, _IDLE, _OWN_NICE, _OWN_IO, _PREFIX = range(9)
_LEVELS = {_DELETES: 9, _BYTES: 11}  # the level of each bucket; the next slot has its time
_SLOTS = 13
_BUCKETS_BYTE = 0
# With a single lock, all threads would wait for it wherever every file has several links.
_LINK_LOCKS = 64


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The limits of ``performance:``; 0 means no limit, and for ``nice`` the niceness of the process."""

    deletes_per_second: int = 0
    bytes_per_second: int = 0
    truncate_chunk_bytes: int = 0
    nice: int = 0
    idle_io: bool = False


class _ThreadState(threading.local):
    """The generation of limits that set a thread's current priority."""

    generation = 0.0


class DeletionControls:
    """State shared by everything that deletes in one run: the stop flag, rate limits, locks for hard links.

    Args:
        stop: ends the work.
        fd: the memory of another process (``fd`` of its controls); None creates new memory.
        exclusive: False when workers that no lock reaches (other machines) delete in the same tree.  Files
            that require such a lock are then left to one of them.

    Attributes:
        fd: the memory, for other processes to inherit.
        in_progress_prefix: the start of the names of files that a thread or process of this run is removing.
    """

    def __init__(self, stop: StopFlag, fd: int | None = None, *, exclusive: bool = True) -> None:
        self.stop = stop
        self.exclusive = exclusive
        self._is_first = fd is None
        self.fd = os.memfd_create("limits") if fd is None else fd
        if self._is_first:
            os.ftruncate(self.fd, 8 * _SLOTS)
        self._links = [InterProcessLock(self.fd, _BUCKETS_BYTE + 1 + number) for number in range(_LINK_LOCKS)]
        self._buckets = InterProcessLock(self.fd, _BUCKETS_BYTE)
        self._memory = mmap.mmap(self.fd, 8 * _SLOTS)
        self._slots = memoryview(self._memory).cast("d")
        self._thread = _ThreadState()
        if self._is_first:
            own = Priority.of_thread()
            self._slots[_OWN_NICE], self._slots[_OWN_IO] = own.nice, own.io
            self._slots[_PREFIX] = int.from_bytes(os.urandom(6))
        self.in_progress_prefix = f"{int(self._slots[_PREFIX]):012x}."

    def close(self) -> None:
        """Release the memory; no thread may still use it."""
        self._slots.release()
        self._memory.close()
        os.close(self.fd)

    def link_lock(self, inode: int) -> InterProcessLock:
        """Return the lock to hold while one of several links of an inode is removed."""
        return self._links[inode % _LINK_LOCKS]

    def apply(self, limits: RateLimits) -> None:
        """Put limits into force, also for running deletions; after ``close`` this has no effect."""
        with contextlib.suppress(ValueError):  # released: the run ended during a reload
            for slot, value in enumerate(astuple(limits), _DELETES):
                self._slots[slot] = value
            self._slots[_GENERATION] += 1

    @property
    def limits(self) -> RateLimits:
        """The limits in force."""
        deletes, size, chunk, nice, idle = map(int, self._slots[_DELETES : _IDLE + 1].tolist())
        return RateLimits(deletes, size, chunk, nice, bool(idle))

    @property
    def chunk_bytes(self) -> int:
        """The size of one truncation step for a big file; 0 means no steps."""
        return int(self._slots[_CHUNK])

    def acquire(self, size_bytes: int) -> bool:
        """Wait until one more file or folder of this size can be removed; return False on a stop.

        The calling thread also gets the priority in force.
        """
        slots = self._slots
        if self._thread.generation != slots[_GENERATION]:
            self._apply_priority()
        if slots[_DELETES] and not self._wait_for_tokens(_DELETES, 1):
            return False
        return self.acquire_bytes(size_bytes)

    def acquire_bytes(self, size_bytes: int) -> bool:
        """Wait until this many more bytes can be freed; return False on a stop."""
        if self._slots[_BYTES] and size_bytes:
            return self._wait_for_tokens(_BYTES, size_bytes)
        return True

    def _wait_for_tokens(self, rate: int, cost: float) -> bool:
        owed = self._charge(rate, cost)
        before = monotonic_seconds()
        while (per_second := self._slots[rate]) and owed > per_second * _MIN_SLEEP_SECONDS:
            if self.stop.is_set():
                return False
            time.sleep(min(owed / per_second, _SLICE_SECONDS))
            now = monotonic_seconds()
            owed -= (now - before) * per_second
            before = now
        return True

    def _charge(self, rate: int, cost: float) -> float:
        """Charge a bucket; return how far the cost exceeded its level."""
        slots, level = self._slots, _LEVELS[rate]
        with self._buckets:
            now, per_second = monotonic_seconds(), slots[rate]
            capacity = max(1.0, per_second * _BURST_SECONDS)
            slots[level] = min(capacity, slots[level] + (now - slots[level + 1]) * per_second) - cost
            slots[level + 1] = now
            return -slots[level]

    def _apply_priority(self) -> None:
        slots = self._slots
        self._thread.generation = slots[_GENERATION]
        own = Priority(int(slots[_OWN_NICE]), int(slots[_OWN_IO]))
        warning = own.lowered(nice=int(slots[_NICE]), idle_io=bool(slots[_IDLE])).apply()
        if warning and self._is_first:  # one process logs it for all
            _warn_once(warning)


@cache
def _warn_once(warning: str) -> None:
    import logging

    logging.getLogger(__name__).warning("%s", warning)
