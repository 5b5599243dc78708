from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from eemtcleanupd.policy.forecast import full_at

NOW = datetime(2026, 6, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("free", "days"),
    [
        ([100, 90, 80, 70], 10),  # ten a day: after ten days from the first
        ([10, 10, 10, 10], None),
        ([10, 20, 30], None),
        ([100, 90], None),  # too few
        ([10, 5, 0], 2),
        ([10**15, 10**15 - 1, 10**15 - 2], None),  # for longer than anybody plans
        ([], None),
    ],
)
def test_a_straight_line_says_when_the_disk_is_full(free: list[int], days: int | None) -> None:
    points = [(NOW + timedelta(days=at), value) for at, value in enumerate(free)]
    at = full_at(points)
    if days is None:
        assert at is None
    else:
        assert at is not None
        assert abs(at - (NOW + timedelta(days=days))) < timedelta(minutes=1)
