"""Forecast of when the disk will be full, with a prediction interval.

The forecast is a straight line through the points (least squares).  Its prediction interval gives the
earliest and the latest day.  Job data changes little from day to day, so neighbouring points are not
independent, and an interval that assumed independence would be far too narrow.  So the number of independent
points is n (1 - r) / (1 + r), where r is the first autocorrelation of the residuals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import NormalDist, fmean

CONFIDENCE_PERCENT = 90
"""How often the day lies in the interval, if the trend continues."""

_MIN_POINTS = 3
_MIN_SPAN = timedelta(days=2)
_MAX_HORIZON = timedelta(days=3650)
_DAY = timedelta(days=1)
_MAX_AUTOCORRELATION = 0.95
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE_PERCENT / 200)


@dataclass(frozen=True, slots=True)
class TrendLine:
    """A straight line through free bytes over time, with the terms of its uncertainty.

    Attributes:
        middle: mean of the times.
        last: time of the last point.
        free_bytes: value of the line at ``middle``.
        bytes_per_day: slope, negative while free space shrinks.
        spread_bytes: distance of points from the line, times Student's t.
        intercept_variance: share of the variance from the line's height.
        slope_variance: share of the variance from the line's slope, per day squared.
    """

    middle: datetime
    last: datetime
    free_bytes: float
    bytes_per_day: float
    spread_bytes: float
    intercept_variance: float
    slope_variance: float

    def at(self, moment: datetime) -> tuple[float, float]:
        """Return the line's value in bytes at a time, and the margin above and below it."""
        days = (moment - self.middle) / _DAY
        share = math.sqrt(1 + self.intercept_variance + self.slope_variance * days**2)
        return self.free_bytes + self.bytes_per_day * days, self.spread_bytes * share


@dataclass(frozen=True, slots=True)
class Forecast:
    """When free space reaches 0.  ``earliest`` and ``latest`` bound it with CONFIDENCE_PERCENT.

    ``latest`` is None if the disk might never be full, or not within ten years.
    """

    at: datetime
    earliest: datetime
    latest: datetime | None
    line: TrendLine

    def band(self, began: datetime, steps: int = 40) -> list[tuple[datetime, float, float, float]]:
        """Return the forecast for a plot: times, and the lower, middle and upper bytes, never below 0.

        The band starts at the last point and ends at the latest day.  It is never longer than the history,
        which starts at ``began``.
        """
        last = self.line.last
        end = last + min((self.latest or last + _MAX_HORIZON) - last, last - began)
        band = []
        for step in range(steps + 1):
            moment = last + (end - last) * step / steps
            middle, margin = self.line.at(moment)
            band.append((moment, max(0.0, middle - margin), max(0.0, middle), max(0.0, middle + margin)))
        return band


def fit_line(points: Sequence[tuple[datetime, int]]) -> TrendLine | None:
    """Return the straight line through the points: times (aware) and bytes, oldest first.

    It is None if there are fewer than three points, or they span less than two days.
    """
    if len(points) < _MIN_POINTS or points[-1][0] - points[0][0] < _MIN_SPAN:
        return None
    began, count = points[0][0], len(points)
    days = [(moment - began) / _DAY for moment, _ in points]
    middle_day, middle = fmean(days), fmean(free for _, free in points)
    squares = math.fsum((day - middle_day) ** 2 for day in days)
    pairs = list(zip(days, points, strict=True))
    slope = math.fsum((day - middle_day) * (free - middle) for day, (_, free) in pairs) / squares
    residuals = [free - middle - slope * (day - middle_day) for day, (_, free) in pairs]
    error = math.fsum(residual**2 for residual in residuals)
    factor = _autocorrelation_factor(residuals, error)
    freedom = max(1.0, count / factor - 2)
    return TrendLine(
        middle=began + timedelta(days=middle_day),
        last=points[-1][0],
        free_bytes=middle,
        bytes_per_day=slope,
        spread_bytes=_t_quantile(freedom) * math.sqrt(error / (count - 2)),
        intercept_variance=factor / count,
        slope_variance=factor / squares,
    )


def forecast(points: Sequence[tuple[datetime, int]]) -> Forecast | None:
    """Return when free space reaches 0, with its interval, from the points of :func:`fit_line`.

    It is None if there is no line, free space does not shrink, or it lasts for ten years.
    """
    line = fit_line(points)
    if line is None or line.bytes_per_day >= 0:
        return None
    at = _moment(line, -line.free_bytes / line.bytes_per_day)
    if at is None:
        return None
    # The days when the band around the line contains 0: a (bytes per day)² + 2 b + c <= 0.
    squared = line.spread_bytes**2
    a = line.bytes_per_day**2 - squared * line.slope_variance
    b = line.free_bytes * line.bytes_per_day
    c = line.free_bytes**2 - squared * (1 + line.intercept_variance)
    # The discriminant is never negative: the line itself crosses 0, inside its band.
    root = math.sqrt(max(0.0, b * b - a * c))
    # Each root in the form that loses no digits (b is negative, as free space is positive).
    near = _moment(line, c / (root - b)) if c > 0 and root > b else line.last
    far = _moment(line, (root - b) / a) if a > 0 else None
    return Forecast(at, min(near or at, at), None if far is None else max(far, at), line)


def _moment(line: TrendLine, days: float) -> datetime | None:
    """Return the time ``days`` after the middle, at least the last point, or None beyond ten years."""
    if days > ((line.last - line.middle) + _MAX_HORIZON) / _DAY:
        return None
    return max(line.middle + timedelta(days=max(days, 0.0)), line.last)


def _autocorrelation_factor(residuals: Sequence[float], error: float) -> float:
    """Return how many neighbouring points carry the information of one independent point, at least 1.

    The first autocorrelation of few residuals is biased low.  Kendall's (1 + 4 r) / n corrects it.
    """
    if error == 0:
        return 1.0
    biased = math.fsum(one * other for one, other in pairwise(residuals)) / error
    correlation = min(max(biased + (1 + 4 * biased) / len(residuals), 0.0), _MAX_AUTOCORRELATION)
    return (1 + correlation) / (1 - correlation)


def _t_quantile(freedom: float) -> float:
    """Return Student's t for the interval, by the Cornish-Fisher expansion (2 % too small at two)."""
    if freedom < 2:
        return math.tan(math.pi * CONFIDENCE_PERCENT / 200)  # exact for one, and too wide up to two
    z = _Z
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
