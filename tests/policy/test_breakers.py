"""Safety breakers."""

from datetime import UTC, datetime, timedelta

import pytest

from eemtcleanupd.policy.breakers import clock_problem, is_too_many

LAST = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("elapsed", "trusted"),
    [
        (timedelta(hours=24), True),
        (timedelta(seconds=-30), True),
        (timedelta(days=90), True),
        (timedelta(days=91), False),
        (timedelta(days=3650), False),
        (timedelta(hours=-1), False),
    ],
)
def test_a_clock_that_jumped_or_moved_backwards_is_not_trusted(elapsed: timedelta, trusted: bool) -> None:
    assert (clock_problem(LAST + elapsed, LAST, 90) is None) is trusted


def test_the_first_run_has_no_clock_to_compare_with() -> None:
    assert clock_problem(LAST, None, 90) is None


@pytest.mark.parametrize(
    ("would_clean", "uncleaned", "refused"),
    [(91, 101, True), (90, 101, False), (100, 100, False), (101, 101, True), (0, 5000, False)],
)
def test_a_run_that_would_clean_nearly_all_of_many_jobs_is_refused(
    would_clean: int, uncleaned: int, refused: bool
) -> None:
    assert is_too_many(would_clean, uncleaned, 0.9, 100) is refused
