"""Forecast of a full disk: the line through free space, and the coverage of the interval."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import assume, given, strategies as st

from eemtcleanupd.policy.forecast import CONFIDENCE_PERCENT, Forecast, forecast

NOW = datetime(2026, 6, 15, tzinfo=UTC)
DAY = timedelta(days=1)
GB = 2**30


def daily(free: list[int]) -> list[tuple[datetime, int]]:
    return [(NOW + day * DAY, value) for day, value in enumerate(free)]


def forecast_of(free: list[int]) -> Forecast:
    result = forecast(daily(free))
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("free", "days"),
    [
        ([100, 90, 80, 70], 10),  # ten a day: after ten days from the first
        ([10, 10, 10, 10], None),
        ([10, 20, 30], None),
        ([100, 90], None),  # too few
        ([10, 5, 0], 2),
        ([10**15, 10**15 - 1, 10**15 - 2], None),  # more than ten years
        ([], None),
    ],
)
def test_the_day_of_a_full_disk_is_on_the_straight_line(free: list[int], days: int | None) -> None:
    result = forecast(daily(free))
    if days is None:
        assert result is None
    else:
        assert result is not None
        assert abs(result.at - (NOW + days * DAY)) < timedelta(minutes=1)


@given(
    count=st.integers(3, 90),
    per_day=st.integers(GB, 100 * GB),
    days_left=st.integers(0, 3000),
    gaps=st.sets(st.integers(1, 88), max_size=60),
)
def test_a_perfect_line_gives_a_narrow_interval_with_the_true_day(
    count: int, per_day: int, days_left: int, gaps: set[int]
) -> None:
    free = [per_day * (count - 1 + days_left - day) for day in range(count)]
    points = [point for day, point in enumerate(daily(free)) if day not in gaps or day == count - 1]
    assume(len(points) >= 3)
    result = forecast(points)
    assert result is not None
    full = NOW + (count - 1 + days_left) * DAY
    tolerance = timedelta(minutes=5)
    assert result.latest is not None
    assert full - tolerance <= result.earliest <= result.at <= result.latest <= full + tolerance


@given(seed=st.integers(0, 10**6), noise=st.integers(1, 20))
def test_noise_widens_the_interval(seed: int, noise: int) -> None:
    rng = random.Random(seed)
    wave = [rng.gauss(0, 1) for _ in range(40)]

    def width(scale: float) -> timedelta:
        values = [int((1000 - 10 * day + scale * height) * GB) for day, height in enumerate(wave)]
        interval = forecast_of(values)
        assert interval.latest is not None
        return interval.latest - interval.earliest

    assert width(0) < width(noise) < width(2 * noise)


@given(st.lists(st.integers(0, 2**60), max_size=30))
def test_the_interval_is_in_order_and_never_in_the_past(free: list[int]) -> None:
    result = forecast(daily(free))
    if result is None:
        return
    last = daily(free)[-1][0]
    assert last <= result.earliest <= result.at <= last + timedelta(days=3650)
    assert result.latest is None or result.at <= result.latest
    band = result.band(NOW)
    assert band[0][0] == last
    for (_, low, middle, high), (later, *_) in pairwise(band):
        assert 0 <= low <= middle <= high
        assert later >= last


@given(st.lists(st.integers(0, 2**60), max_size=30))
def test_free_space_that_does_not_shrink_is_never_full(steps: list[int]) -> None:
    assert forecast(daily([sum(steps[:count]) for count in range(len(steps))])) is None


def test_a_decline_that_might_be_random_has_no_latest_day() -> None:
    result = forecast_of([100, 60, 110, 50, 105, 90, 60])
    assert result.latest is None
    assert result.earliest < result.at


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_the_day_is_in_the_interval_as_often_as_the_confidence_requires(correlation: float) -> None:
    """Also with correlated days, as in a job store."""
    rng = random.Random(20260615)
    hits, tries = 0, 400
    for _ in range(tries):
        noise = 0.0
        values: list[int] = []
        while not values or values[-1] > 0:
            noise = correlation * noise + (1 - correlation**2) ** 0.5 * rng.gauss(0, 30)
            values.append(int(1000 - 10 * len(values) + noise))
        day = NOW + (len(values) - 1) * DAY
        interval = forecast_of(values[:45])
        hits += interval.earliest - DAY <= day and (interval.latest is None or day <= interval.latest + DAY)
    assert hits / tries > (CONFIDENCE_PERCENT - 5) / 100
