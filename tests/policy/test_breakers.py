"""When a run refuses."""

from datetime import UTC, datetime, timedelta

import pytest

from eemtcleanupd.policy.breakers import clock_problem, is_too_many

LAST = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("elapsed", "words"),
    [
        (timedelta(hours=24), None),
        (timedelta(seconds=-30), None),
        (timedelta(days=90), None),
        (timedelta(days=91), "91.0 days after the last run"),
        (timedelta(days=3650), "more than safety.max_clock_leap_days (90)"),
        (timedelta(hours=-1), "went backwards"),
    ],
)
def test_a_clock_that_leapt_or_went_backwards_is_not_trusted(elapsed: timedelta, words: str | None) -> None:
    fault = clock_problem(LAST + elapsed, LAST, 90)
    assert (fault is None) if words is None else (fault is not None and words in fault)


def test_the_first_run_has_no_clock_to_compare_with() -> None:
    assert clock_problem(LAST, None, 90) is None


@pytest.mark.parametrize(
    ("would_take", "uncleaned", "refused"),
    [(91, 101, True), (90, 101, False), (100, 100, False), (101, 101, True), (0, 5000, False)],
)
def test_a_run_that_would_take_nearly_all_of_many_jobs_is_refused(
    would_take: int, uncleaned: int, refused: bool
) -> None:
    assert is_too_many(would_take, uncleaned, 0.9, 100) is refused
