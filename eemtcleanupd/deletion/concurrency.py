"""Finding how many workers serve best, by how much they get done: ``performance.max_workers: auto``.

What is in flight, divided by the latency of an unlink, is the throughput (Little's law); so more workers
serve exactly as long as latency grows more slowly than their number.  On a local disk that ends after a
few, on a network filesystem late.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

_START = 4
_WINDOW_SECONDS = 0.5
_WINDOW_FILES = 200  # with fewer, what is measured is chance
_BETTER = 1.1  # twice the workers must do so much more
_AS_GOOD = 0.95  # half the workers may do so much less
_HOLD_WINDOWS = 20  # how long a number that was found is kept, before its neighbours are tried again


class ConcurrencyTuner:
    """A hill climb in doublings and halvings; ``workers`` is the number for now.

    Args:
        limit: never more than this.
        now: seconds of any clock.
    """

    def __init__(self, limit: int, now: float) -> None:
        self._limit = limit
        self.workers = min(_START, limit)
        self._up = True
        self._before: tuple[int, float] | None = None  # the number that was left, and what it did
        self._hold = 0
        self._begin(0, now)

    def note(self, removed: int, now: float, *, busy: bool) -> None:
        """Note how much has been removed by now; when ``busy`` is false, there was not enough to do."""
        seconds, files = now - self._since, removed - self._removed
        if not busy:
            self._begin(removed, now)
        elif seconds >= _WINDOW_SECONDS and files >= _WINDOW_FILES:
            self._begin(removed, now)
            self._judge(files / seconds)

    def _begin(self, removed: int, now: float) -> None:
        self._removed, self._since = removed, now

    def _judge(self, rate: float) -> None:
        if self._before is not None:
            workers, rate_before = self._before
            if rate < rate_before * (_BETTER if self._up else _AS_GOOD):  # it was better before: go back
                self.workers, self._before, self._hold = workers, None, 0 if self._up else _HOLD_WINDOWS
                self._up = not self._up
                return
        if self._hold:
            self._hold -= 1
            return
        step = min(2 * self.workers, self._limit) if self._up else max(1, self.workers // 2)
        if step == self.workers:  # the end of the scale
            self._before, self._up, self._hold = None, not self._up, _HOLD_WINDOWS
            return
        self._before, self.workers = (self.workers, rate), step


class AdaptiveSemaphore:
    """Lets so many at a time go ahead as the climb says.

    Args:
        limit: the most workers.
        each: how many each worker does at a time.
        clock: seconds, for measuring.
    """

    def __init__(self, limit: int, each: int, clock: Callable[[], float]) -> None:
        self._climb = ConcurrencyTuner(limit, clock())
        self._each = each
        self._clock = clock
        self._taken = 0
        self._waiting = 0
        self._changed = threading.Condition()

    @property
    def workers(self) -> int:
        """How many workers are to work now."""
        return self._climb.workers

    def note(self, removed: int) -> None:
        """Note how much has been removed by now."""
        with self._changed:
            before = self._climb.workers
            self._climb.note(removed, self._clock(), busy=self._waiting > 0)
            if self._climb.workers > before:
                self._changed.notify_all()

    def __enter__(self) -> None:
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: self._taken < self._climb.workers * self._each)
            self._waiting -= 1
            self._taken += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._taken -= 1
            self._changed.notify()  # one: a hundred may wait, and each that wakes takes a moment from all
