"""When the disk will be full, if it goes on as it did, and how sure that is.

A straight line through the points (least squares) says when; its prediction interval says between which
days.  What a job store holds today is much like what it held yesterday, so neighbouring points are not
independent, and an interval that took them for it would be far too narrow: the points are counted for as
many independent ones as the first autocorrelation of their residuals says (n (1 - r) / (1 + r)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import NormalDist, fmean

CONFIDENCE_PERCENT = 90
"""How often the day lies in the interval, as far as the past is like the future."""

_LEAST_POINTS = 3
_LEAST_SPAN = timedelta(days=2)
_FARTHEST = timedelta(days=3650)
_DAY = timedelta(days=1)
_MOST_ALIKE = 0.95
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE_PERCENT / 200)


@dataclass(frozen=True, slots=True)
class TrendLine:
    """A straight line through free bytes over time, with what its uncertainty follows from.

    ``middle`` is the mean of the times and ``free_bytes`` the line's value there; ``bytes_per_day`` is
    negative while free space shrinks.  ``spread_bytes`` is how far points lie from the line, times Student's
    t; ``intercept_variance`` and ``slope_variance`` are what the line's own height and slope add to it.
    """

    middle: datetime
    last: datetime
    free_bytes: float
    bytes_per_day: float
    spread_bytes: float
    intercept_variance: float
    slope_variance: float

    def at(self, moment: datetime) -> tuple[float, float]:
        """Return the line's value in bytes at a time, and how far above or below it a point may lie."""
        days = (moment - self.middle) / _DAY
        share = math.sqrt(1 + self.intercept_variance + self.slope_variance * days**2)
        return self.free_bytes + self.bytes_per_day * days, self.spread_bytes * share


@dataclass(frozen=True, slots=True)
class Forecast:
    """When free space comes to nothing; ``earliest`` and ``latest`` bound it with CONFIDENCE_PERCENT.

    ``latest`` is None where it may well never happen, or not within ten years.
    """

    at: datetime
    earliest: datetime
    latest: datetime | None
    line: TrendLine

    def band(self, began: datetime, steps: int = 40) -> list[tuple[datetime, float, float, float]]:
        """Return the line ahead, for pictures: times, and the lower, middle and upper bytes, never below 0.

        It begins at the last point and ends at the latest day, but goes no farther ahead than the points go
        back (to ``began``).
        """
        last = self.line.last
        end = last + min((self.latest or last + _FARTHEST) - last, last - began)
        found = []
        for step in range(steps + 1):
            moment = last + (end - last) * step / steps
            middle, margin = self.line.at(moment)
            found.append((moment, max(0.0, middle - margin), max(0.0, middle), max(0.0, middle + margin)))
        return found


def fit_line(points: Sequence[tuple[datetime, int]]) -> TrendLine | None:
    """Return the straight line through the points.

    Args:
        points: times (aware) and bytes, the oldest first.

    Returns:
        None where there are fewer than three points, or less than two days between the first and the last.
    """
    if len(points) < _LEAST_POINTS or points[-1][0] - points[0][0] < _LEAST_SPAN:
        return None
    began, count = points[0][0], len(points)
    days = [(moment - began) / _DAY for moment, _ in points]
    middle_day, middle = fmean(days), fmean(free for _, free in points)
    squares = math.fsum((day - middle_day) ** 2 for day in days)
    pairs = zip(days, points, strict=True)
    slope = math.fsum((day - middle_day) * (free - middle) for day, (_, free) in pairs) / squares
    residuals = [
        free - middle - slope * (day - middle_day) for day, (_, free) in zip(days, points, strict=True)
    ]
    error = math.fsum(each**2 for each in residuals)
    alike = _autocorrelation_factor(residuals, error)
    freedom = max(1.0, count / alike - 2)
    return TrendLine(
        middle=began + timedelta(days=middle_day),
        last=points[-1][0],
        free_bytes=middle,
        bytes_per_day=slope,
        spread_bytes=_t_quantile(freedom) * math.sqrt(error / (count - 2)),
        intercept_variance=alike / count,
        slope_variance=alike / squares,
    )


def forecast(points: Sequence[tuple[datetime, int]]) -> Forecast | None:
    """Return when free space comes to nothing, with its interval.

    Args:
        points: times (aware) and free bytes, the oldest first.

    Returns:
        None where there is no line, free space does not shrink, or it lasts for ten years.
    """
    line = fit_line(points)
    if line is None or line.bytes_per_day >= 0:
        return None
    at = _moment(line, -line.free_bytes / line.bytes_per_day)
    if at is None:
        return None
    # The days when the band around the line holds 0: a (bytes per day)² + 2 b + c <= 0.
    squared = line.spread_bytes**2
    a = line.bytes_per_day**2 - squared * line.slope_variance
    b = line.free_bytes * line.bytes_per_day
    c = line.free_bytes**2 - squared * (1 + line.intercept_variance)
    # The discriminant is never negative: the line itself crosses 0, inside its band.
    root = math.sqrt(max(0.0, b * b - a * c))
    # Both forms of the roots, each where it loses no digits (b is negative, as free space is positive).
    near = _moment(line, c / (root - b)) if c > 0 and root > b else line.last
    far = _moment(line, (root - b) / a) if a > 0 else None
    return Forecast(at, min(near or at, at), None if far is None else max(far, at), line)


def full_at(points: Sequence[tuple[datetime, int]]) -> datetime | None:
    """Return when free space comes to nothing by the straight line alone; see :func:`forecast`."""
    found = forecast(points)
    return None if found is None else found.at


def _moment(line: TrendLine, days: float) -> datetime | None:
    """Return the time so many days after the middle, not before the last point; None in ten years."""
    if days > ((line.last - line.middle) + _FARTHEST) / _DAY:
        return None
    return max(line.middle + timedelta(days=max(days, 0.0)), line.last)


def _autocorrelation_factor(residuals: Sequence[float], error: float) -> float:
    """Return how many neighbouring points say no more than one independent one would, at least 1.

    The first autocorrelation of few residuals comes out too small; Kendall's (1 + 4 r) / n puts that right.
    """
    if error == 0:
        return 1.0
    found = math.fsum(one * other for one, other in pairwise(residuals)) / error
    alike = min(max(found + (1 + 4 * found) / len(residuals), 0.0), _MOST_ALIKE)
    return (1 + alike) / (1 - alike)


def _t_quantile(freedom: float) -> float:
    """Return Student's t for the interval, by Cornish and Fisher's expansion (2 % too small at two)."""
    if freedom < 2:
        return math.tan(math.pi * CONFIDENCE_PERCENT / 200)  # exact for one, and too wide up to two
    z = _Z
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
