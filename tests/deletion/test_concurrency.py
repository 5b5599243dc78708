"""How many workers ``auto`` settles on, for machines that are given by how fast they go with each number."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from eemtcleanupd.deletion.concurrency import AdaptiveSemaphore, ConcurrencyTuner

_LEVELS = [1, 2, 4, 8, 16]


def climb(rate: Callable[[int], float], limit: int = 16, windows: int = 200) -> list[int]:
    """Return the numbers of workers of all windows on a machine that removes ``rate(workers)`` a second."""
    now, removed, seen = 0.0, 0.0, []
    found = ConcurrencyTuner(limit, now)
    for _ in range(windows):
        now += 0.5
        removed += rate(found.workers) * 0.5
        seen.append(found.workers)
        found.note(int(removed), now, busy=True)
    return seen


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ([1000, 2000, 4000, 8000, 16000], {16}),  # a network filesystem: latency is all
        ([1000, 1900, 3500, 6000, 6100], {8}),
        ([1000, 1900, 3500, 3500, 3400], {4}),
        ([1000, 1900, 1950, 1900, 1800], {2}),  # two cores and a filesystem in memory
        ([1000, 900, 800, 700, 600], {1}),  # a disk that seeks
        ([1000, 1000, 1000, 1000, 1000], {1}),  # as good with one: kindest
    ],
)
def test_it_settles_on_the_number_beyond_which_more_do_not_help(rates: list[int], best: set[int]) -> None:
    seen = climb(lambda workers: rates[_LEVELS.index(workers)])
    late = seen[50:]
    assert sum(workers in best for workers in late) >= 0.85 * len(late), seen


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 16, 100])
def test_it_never_goes_beyond_the_limit_nor_below_one(limit: int) -> None:
    for rate in (lambda n: 1000.0 * n, lambda n: 1000.0 / n, lambda _: 1000.0):
        seen = climb(rate, limit)
        assert 1 <= min(seen) <= max(seen) <= limit
    assert max(climb(lambda n: 1000.0 * n, limit)) == limit


def test_it_follows_a_machine_that_changes() -> None:
    windows = iter(range(400))
    seen = climb(lambda n: 1000.0 * min(n, 2 if next(windows) < 200 else 16), windows=400)
    assert seen[150:200].count(2) > 40
    assert seen[300:].count(16) > 80


def test_nothing_is_concluded_from_few_files_or_from_an_idle_time() -> None:
    found = ConcurrencyTuner(16, 0.0)
    found.note(150, 10.0, busy=True)  # too few
    found.note(100_000, 11.0, busy=False)  # there was no more to do
    found.note(100_199, 12.0, busy=True)
    assert found.workers == 4
    found.note(100_200, 12.1, busy=True)
    assert found.workers == 8


def test_slots_let_as_many_go_ahead_as_the_climb_says() -> None:
    slots = AdaptiveSemaphore(2, 3, lambda: 0.0)
    for _ in range(6):
        slots.__enter__()
    assert slots._taken == 6
    slots.__exit__(None, None, None)
    with slots:
        assert slots._taken == 6
