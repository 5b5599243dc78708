"""When the disk will be full, if it goes on as it did."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from statistics import linear_regression

_LEAST_POINTS = 3
_LEAST_SPAN = timedelta(days=2)
_FARTHEST = timedelta(days=3650)


def full_at(points: Sequence[tuple[datetime, int]]) -> datetime | None:
    """Return when free space comes to nothing, by a straight line through the points (least squares).

    Args:
        points: times (aware) and free bytes, the oldest first.

    Returns:
        None where there are too few points, free space does not shrink, or it lasts for ten years.
    """
    if len(points) < _LEAST_POINTS or points[-1][0] - points[0][0] < _LEAST_SPAN:
        return None
    began = points[0][0]
    days = [(moment - began) / timedelta(days=1) for moment, _ in points]
    slope, start = linear_regression(days, [free for _, free in points])
    if slope >= 0:
        return None
    span = timedelta(days=min(-start / slope, _FARTHEST / timedelta(days=1) * 2))
    at = began + span
    return None if at - points[-1][0] > _FARTHEST else max(at, points[-1][0])
