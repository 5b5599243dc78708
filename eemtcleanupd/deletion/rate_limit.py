"""How fast a run may delete, and how politely; the same for all its threads and helper processes.

The limits lie in memory that all of them share, so that a reload reaches a folder of a million files in
its middle.  Two buckets lie beside them, of files and of bytes: who removes something pays first, and waits
until the bucket, which fills at the rate that is allowed, holds what was paid.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from dataclasses import dataclass
from functools import cache

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.deletion.priority import Priority
from eemtcleanupd.deletion.process_lock import InterProcessLock

_BURST_SECONDS = 0.1  # what a bucket holds: smaller, and short sleeps would not be made up for
_WORTH_SECONDS = 1e-5  # for less, nobody is sent to sleep
_SLICE_SECONDS = 0.05  # how late a stop or a new limit may be noticed

# The words of the memory, 64 bits each: one is read or written as a whole.
_GENERATION, _DELETES, _BYTES, _CHUNK, _NICE, _IDLE, _OWN_NICE, _OWN_IO, _MARK = range(9)
_LEVELS = {_DELETES: 9, _BYTES: 11}  # the level of each bucket; when it was so is the word behind
_WORDS = 13
_BUCKETS_BYTE = 0
# One lock for all would be waited for by all where each file has several links.
_LINKS_LOCKS = 64


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What ``performance:`` says of how fast to delete; 0: no limit, and ``nice`` as the process is."""

    deletes_per_second: int = 0
    bytes_per_second: int = 0
    truncate_chunk_bytes: int = 0
    nice: int = 0
    idle_io: bool = False


class _ThreadState(threading.local):
    """Which limits a thread has taken its priority from."""

    generation = 0.0


class DeletionControls:
    """What those who delete in one run share: when to stop, how fast to go, locks for hard links.

    Args:
        stop: ends the work.
        fd: the memory that another process shares (``fd`` of its controls); else a new one.
        one_hand: False where others whom no lock reaches work on the same tree; then files that all must
            agree on are left to one of them.

    Attributes:
        fd: the memory, for other processes to inherit.
        mark: begins the names of files that one of those who share this is freeing.
    """

    def __init__(self, stop: StopFlag, fd: int | None = None, *, one_hand: bool = True) -> None:
        self.stop = stop
        self.one_hand = one_hand
        self._is_first = fd is None
        self.fd = os.memfd_create("limits") if fd is None else fd
        if self._is_first:
            os.ftruncate(self.fd, 8 * _WORDS)
        self._links = [InterProcessLock(self.fd, _BUCKETS_BYTE + 1 + at) for at in range(_LINKS_LOCKS)]
        self._buckets = InterProcessLock(self.fd, _BUCKETS_BYTE)
        self._memory = mmap.mmap(self.fd, 8 * _WORDS)
        self._words = memoryview(self._memory).cast("d")
        self._mine = _ThreadState()
        if self._is_first:
            own = Priority.of_this_thread()
            self._words[_OWN_NICE], self._words[_OWN_IO] = own.nice, own.io
            self._words[_MARK] = int.from_bytes(os.urandom(6))
        self.mark = f"{int(self._words[_MARK]):012x}."

    def close(self) -> None:
        """Let go of the memory; nobody may be at work."""
        self._words.release()
        self._memory.close()
        os.close(self.fd)

    def link_lock(self, inode: int) -> InterProcessLock:
        """Return what is held while one of several links of an inode is removed."""
        return self._links[inode % _LINKS_LOCKS]

    def apply(self, limits: RateLimits) -> None:
        """Put limits in force, for those too who are at work; once all is done, that is too late."""
        words = self._words
        with contextlib.suppress(ValueError):  # released: a reload met the end of a run
            words[_DELETES] = limits.deletes_per_second
            words[_BYTES] = limits.bytes_per_second
            words[_CHUNK] = limits.truncate_chunk_bytes
            words[_NICE] = limits.nice
            words[_IDLE] = limits.idle_io
            words[_GENERATION] += 1

    @property
    def limits(self) -> RateLimits:
        """The limits in force."""
        words = self._words
        return RateLimits(
            int(words[_DELETES]),
            int(words[_BYTES]),
            int(words[_CHUNK]),
            int(words[_NICE]),
            bool(words[_IDLE]),
        )

    @property
    def chunk_bytes(self) -> int:
        """How much of a big file goes in one step; 0: all."""
        return int(self._words[_CHUNK])

    def acquire(self, size_bytes: int) -> bool:
        """Wait until one more file or folder of this size may go; False when all is to stop.

        The thread that asks gets the priority that is in force.
        """
        words = self._words
        if self._mine.generation != words[_GENERATION]:
            self._take_priority()
        if words[_DELETES] and not self._wait_for_tokens(_DELETES, 1):
            return False
        return self.acquire_bytes(size_bytes)

    def acquire_bytes(self, size_bytes: int) -> bool:
        """Wait until so many more bytes may be freed; False when all is to stop."""
        if self._words[_BYTES] and size_bytes:
            return self._wait_for_tokens(_BYTES, size_bytes)
        return True

    def _wait_for_tokens(self, rate: int, cost: float) -> bool:
        owed = self._charge(rate, cost)
        before = monotonic_seconds()
        while (per_second := self._words[rate]) and owed > per_second * _WORTH_SECONDS:
            if self.stop.is_set():
                return False
            time.sleep(min(owed / per_second, _SLICE_SECONDS))
            now = monotonic_seconds()
            owed -= (now - before) * per_second
            before = now
        return True

    def _charge(self, rate: int, cost: float) -> float:
        """Take what is to be removed out of its bucket; returns how much that was more than it held."""
        words, at = self._words, _LEVELS[rate]
        with self._buckets:
            now, per_second = monotonic_seconds(), words[rate]
            full = max(1.0, per_second * _BURST_SECONDS)
            words[at] = min(full, words[at] + (now - words[at + 1]) * per_second) - cost
            words[at + 1] = now
            return -words[at]

    def _take_priority(self) -> None:
        words = self._words
        self._mine.generation = words[_GENERATION]
        own = Priority(int(words[_OWN_NICE]), int(words[_OWN_IO]))
        refusal = own.lowered(nice=int(words[_NICE]), idle_io=bool(words[_IDLE])).apply()
        if refusal and self._is_first:  # one process tells it for all
            _tell(refusal)


@cache
def _tell(words: str) -> None:
    import logging

    logging.getLogger(__name__).warning("%s", words)
