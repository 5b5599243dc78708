"""Breakers: what makes a run refuse before it changes anything."""

from __future__ import annotations

from datetime import datetime, timedelta

from eemtcleanupd.formatting import human_age

# Time services step a clock back by seconds now and then; that is no reason to refuse.
BACKWARDS_TOLERANCE = timedelta(minutes=5)


def clock_problem(now: datetime, last_run: datetime | None, max_leap_days: float) -> str | None:
    """Return why the clock cannot be trusted, None when it can.

    Args:
        now: the present, aware.
        last_run: when the last run was, aware; None before the first.
        max_leap_days: ``safety.max_clock_leap_days``.
    """
    if last_run is None:
        return None
    elapsed = now - last_run
    if elapsed < -BACKWARDS_TOLERANCE:
        return (
            f"the clock went backwards: it is {now:%Y-%m-%d %H:%M} UTC, but the last run was at "
            f"{last_run:%Y-%m-%d %H:%M} UTC"
        )
    if elapsed > timedelta(days=max_leap_days):
        return (
            f"the clock is {human_age(elapsed)} after the last run ({last_run:%Y-%m-%d %H:%M} UTC), more "
            f"than safety.max_clock_leap_days ({max_leap_days:g})"
        )
    return None


def is_too_many(would_take: int, uncleaned: int, max_fraction: float, min_jobs: int) -> bool:
    """Tell whether a run would take suspiciously much.

    Args:
        would_take: jobs that the run would clean.
        uncleaned: terminal jobs whose data has not been cleaned.
        max_fraction: ``safety.max_fraction``, 0 to 1.
        min_jobs: ``safety.max_fraction_min_jobs``; up to so many uncleaned jobs the breaker is off.
    """
    return uncleaned > min_jobs and would_take > max_fraction * uncleaned
