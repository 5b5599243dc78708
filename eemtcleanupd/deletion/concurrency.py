"""Adaptive concurrency: finds the number of workers with the best throughput (``max_workers: auto``).

The number of unlinks in flight, divided by the latency of one, is the throughput (Little's law).  More
workers help as long as latency grows more slowly than their number.  That ends after a few workers on a local
disk, and late on a network filesystem.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

_START = 4
_WINDOW_SECONDS = 0.5
_WINDOW_FILES = 200  # with fewer, the measured rate is noise
_MIN_GAIN = 1.1  # twice the workers must raise the rate by this factor
_MAX_LOSS = 0.95  # half the workers must keep this part of the rate
_HOLD_WINDOWS = 20  # how long a number stays before its neighbours are tried again


class ConcurrencyTuner:
    """A hill climb in doublings and halvings; ``workers`` is the current number.

    Args:
        limit: the largest number of workers.
        now: seconds of any clock.
    """

    def __init__(self, limit: int, now: float) -> None:
        self._limit = limit
        self.workers = min(_START, limit)
        self._is_rising = True
        self._previous: tuple[int, float] | None = None  # the number before the last step, and its rate
        self._hold = 0
        self._start_window(0, now)

    def note(self, removed: int, now: float, *, busy: bool) -> None:
        """Note the total removed so far; when ``busy`` is false, there was not enough work to measure."""
        seconds, files = now - self._window_start, removed - self._removed_before
        if not busy:
            self._start_window(removed, now)
        elif seconds >= _WINDOW_SECONDS and files >= _WINDOW_FILES:
            self._start_window(removed, now)
            self._adjust(files / seconds)

    def _start_window(self, removed: int, now: float) -> None:
        self._removed_before, self._window_start = removed, now

    def _adjust(self, rate: float) -> None:
        if self._previous is not None:
            workers, previous_rate = self._previous
            if rate < previous_rate * (_MIN_GAIN if self._is_rising else _MAX_LOSS):  # go back
                self.workers, self._previous = workers, None
                self._hold = 0 if self._is_rising else _HOLD_WINDOWS
                self._is_rising = not self._is_rising
                return
        if self._hold:
            self._hold -= 1
            return
        step = min(2 * self.workers, self._limit) if self._is_rising else max(1, self.workers // 2)
        if step == self.workers:  # the end of the scale
            self._previous, self._is_rising, self._hold = None, not self._is_rising, _HOLD_WINDOWS
            return
        self._previous, self.workers = (self.workers, rate), step


class AdaptiveSemaphore:
    """A semaphore whose size follows a ``ConcurrencyTuner``.

    Args:
        limit: the largest number of workers.
        per_worker: how many tasks each worker runs at a time.
        clock: returns seconds.
    """

    def __init__(self, limit: int, per_worker: int, clock: Callable[[], float]) -> None:
        self._tuner = ConcurrencyTuner(limit, clock())
        self._per_worker = per_worker
        self._clock = clock
        self._acquired = 0
        self._waiting = 0
        self._changed = threading.Condition()

    @property
    def workers(self) -> int:
        """The current number of workers."""
        return self._tuner.workers

    def note(self, removed: int) -> None:
        """Note the total removed so far."""
        with self._changed:
            before = self._tuner.workers
            self._tuner.note(removed, self._clock(), busy=self._waiting > 0)
            if self._tuner.workers > before:
                self._changed.notify_all()

    def __enter__(self) -> None:
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: self._acquired < self._tuner.workers * self._per_worker)
            self._waiting -= 1
            self._acquired += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._acquired -= 1
            self._changed.notify()  # one: waking a hundred waiters would delay all of them
