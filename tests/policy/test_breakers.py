"""Safety breakers."""

from datetime import UTC, datetime, timedelta

import pytest

from eemtcleanupd.policy.breakers import (
    ObservedStart,
    ZoneEvidence,
    clock_problem,
    format_offset,
    is_too_many,
)

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


def starts(*hours: tuple[float, float]) -> list[ObservedStart]:
    return [ObservedStart(timedelta(hours=seen), timedelta(hours=ours)) for seen, ours in hours]


@pytest.mark.parametrize(
    ("observed", "is_wrong", "is_proof"),
    [
        (starts((0, 9), (5, 9), (0.1, 9)), True, True),
        (starts((0, 9), (5, 9)), True, False),
        (starts((5, 9), (8.9, 9), (9, 9)), True, True),
        (starts((9, 9), (9.2, 9), (12, 9)), False, True),  # the jobs waited
        (starts((1 - 50 / 3600, 1), (1, 1), (1, 1)), False, True),  # a clock that was set
        (starts((9, 0), (9, 0), (9, 0)), False, True),  # we take jobs for younger
        (starts((-8, -8), (-8, -7), (-8, -8)), True, True),
        (starts((2, 2), (1, 1), (1.5, 1)), False, True),  # summer and winter
    ],
)
def test_a_zone_further_east_than_the_application_makes_jobs_seem_older(
    observed: list[ObservedStart], is_wrong: bool, is_proof: bool
) -> None:
    evidence = ZoneEvidence.of(observed)
    assert evidence is not None
    assert (evidence.problem is not None, evidence.is_proof) == (is_wrong, is_proof)


def test_both_offsets_are_in_the_problem() -> None:
    evidence = ZoneEvidence.of(starts((-3.5 + 0.1, 9), (0, 9), (1, 9)))
    assert evidence is not None
    for part in ("UTC+09:00", "UTC-03:30", "12.5 hours"):
        assert part in str(evidence.problem)


def test_without_rows_there_is_no_evidence() -> None:
    assert ZoneEvidence.of([]) is None


@pytest.mark.parametrize(
    ("hours", "text"), [(0, "+00:00"), (-3.5, "-03:30"), (14, "+14:00"), (5.75, "+05:45")]
)
def test_an_offset_is_formatted_as_in_iso_8601(hours: float, text: str) -> None:
    assert format_offset(timedelta(hours=hours)) == text
