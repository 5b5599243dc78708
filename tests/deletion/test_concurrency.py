"""The number of workers that ``auto`` finds, on machines modelled by their throughput with each number."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from eemtcleanupd.deletion.concurrency import AdaptiveSemaphore, ConcurrencyTuner

_LEVELS = [1, 2, 4, 8, 16]


def tune(rate: Callable[[int], float], limit: int = 16, windows: int = 200) -> list[int]:
    """Return the number of workers in each window, on a machine that removes ``rate(workers)`` per second."""
    now, removed, seen = 0.0, 0.0, []
    tuner = ConcurrencyTuner(limit, now)
    for _ in range(windows):
        now += 0.5
        removed += rate(tuner.workers) * 0.5
        seen.append(tuner.workers)
        tuner.note(int(removed), now, busy=True)
    return seen


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ([1000, 2000, 4000, 8000, 16000], {16}),  # a network filesystem: latency is all
        ([1000, 1900, 3500, 6000, 6100], {8}),
        ([1000, 1900, 3500, 3500, 3400], {4}),
        ([1000, 1900, 1950, 1900, 1800], {2}),  # two cores and a filesystem in memory
        ([1000, 900, 800, 700, 600], {1}),  # a disk that seeks
        ([1000, 1000, 1000, 1000, 1000], {1}),  # one is as good and the most polite
    ],
)
def test_the_tuner_settles_on_the_smallest_number_with_the_best_rate(
    rates: list[int], best: set[int]
) -> None:
    seen = tune(lambda workers: rates[_LEVELS.index(workers)])
    late = seen[50:]
    assert sum(workers in best for workers in late) >= 0.85 * len(late), seen


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 16, 100])
def test_the_number_stays_between_one_and_the_limit(limit: int) -> None:
    for rate in (lambda n: 1000.0 * n, lambda n: 1000.0 / n, lambda _: 1000.0):
        seen = tune(rate, limit)
        assert 1 <= min(seen) <= max(seen) <= limit
    assert max(tune(lambda n: 1000.0 * n, limit)) == limit


def test_the_number_follows_a_change_of_the_machine() -> None:
    windows = iter(range(400))
    seen = tune(lambda n: 1000.0 * min(n, 2 if next(windows) < 200 else 16), windows=400)
    assert seen[150:200].count(2) > 40
    assert seen[300:].count(16) > 80


def test_few_files_or_an_idle_period_do_not_change_the_number() -> None:
    tuner = ConcurrencyTuner(16, 0.0)
    tuner.note(150, 10.0, busy=True)  # too few
    tuner.note(100_000, 11.0, busy=False)  # there was not enough work
    tuner.note(100_199, 12.0, busy=True)
    assert tuner.workers == 4
    tuner.note(100_200, 12.1, busy=True)
    assert tuner.workers == 8


def test_the_semaphore_admits_as_many_threads_as_the_tuner_allows() -> None:
    semaphore = AdaptiveSemaphore(2, 3, lambda: 0.0)
    admitted = threading.Semaphore(0)

    def work() -> None:
        with semaphore:
            admitted.release()

    for _ in range(6):
        semaphore.__enter__()
    thread = threading.Thread(target=work)
    thread.start()
    assert not admitted.acquire(timeout=0.2)
    semaphore.__exit__(None, None, None)
    assert admitted.acquire(timeout=60)
    thread.join()
