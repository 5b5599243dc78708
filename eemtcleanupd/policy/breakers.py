"""Safety breakers, which refuse a run before it changes anything."""

from __future__ import annotations

from datetime import datetime, timedelta

from eemtcleanupd.formatting import human_age

# Time services occasionally step a clock back by seconds, which is harmless.
BACKWARDS_TOLERANCE = timedelta(minutes=5)


def clock_problem(now: datetime, last_run: datetime | None, max_leap_days: float) -> str | None:
    """Return why the clock cannot be trusted, or None if it can.  The times are aware."""
    if last_run is None:
        return None
    elapsed = now - last_run
    if elapsed < -BACKWARDS_TOLERANCE:
        return (
            f"the clock moved backwards: it shows {now:%Y-%m-%d %H:%M} UTC, but the last run was at "
            f"{last_run:%Y-%m-%d %H:%M} UTC"
        )
    if elapsed > timedelta(days=max_leap_days):
        return (
            f"the clock is {human_age(elapsed)} after the last run ({last_run:%Y-%m-%d %H:%M} UTC), more "
            f"than safety.max_clock_leap_days ({max_leap_days:g})"
        )
    return None


def is_too_many(would_clean: int, uncleaned: int, max_fraction: float, min_jobs: int) -> bool:
    """Return whether a run would clean a suspiciously large share of the uncleaned terminal jobs.

    Up to ``min_jobs`` uncleaned jobs (``safety.max_fraction_min_jobs``) the breaker is off.
    """
    return uncleaned > min_jobs and would_clean > max_fraction * uncleaned
