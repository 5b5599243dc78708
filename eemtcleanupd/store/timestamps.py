"""Conversion of the timestamp formats in table ``jobs`` and the ledger.

``started_at`` and ``completed_at`` are Python's ``datetime.now().isoformat()``: local time without a zone,
with a ``T``, and with microseconds unless they are 0.  ``created_at`` is SQLite's ``CURRENT_TIMESTAMP``: UTC,
with a space.  A space orders before a ``T``, so times are never compared as text.  They are converted to
aware datetimes first.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from eemtcleanupd.policy.breakers import ObservedStart

ANY_ZONE = timedelta(hours=27)
"""More than the largest difference between two local times of one moment, 26 hours."""
CLOCK_CHANGE = timedelta(hours=2)
"""More than a clock change adds to or takes from a local time."""

# Numbers, dates without separators and bare dates are not times, although fromisoformat() reads some of them.
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}")
_LOCAL_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?")
_CURRENT_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}")
_WESTERNMOST, _EASTERNMOST = timedelta(hours=-12), timedelta(hours=14)


def zone_named(name: str) -> tzinfo | None:
    """Return the zone of ``database.timezone``, or None for ``local``, the machine's zone."""
    return None if name == "local" else ZoneInfo(name)


def reload_zones() -> None:
    """Read the machine's zone and the rules of all zones again, because both can change while we run."""
    time.tzset()
    ZoneInfo.clear_cache()


def read_timestamp(value: object, zone: tzinfo | None) -> datetime | None:
    """Return a stored time as aware UTC, or None if it is empty or invalid.

    A clock change repeats or skips an hour.  For an ambiguous time, return the later interpretation, which
    keeps data longer.
    """
    return max(_interpretations(value, zone), default=None)


def read_start(value: object, zone: tzinfo | None) -> datetime | None:
    """Return a stored time as :func:`read_timestamp` does, but with the earlier interpretation."""
    return min(_interpretations(value, zone), default=None)


def read_creation(value: object, zone: tzinfo | None) -> datetime | None:
    """Return the earliest interpretation of ``created_at``.  Without a zone it can be UTC or local."""
    return min((*_interpretations(value, zone), *_interpretations(value, UTC)), default=None)


def read_observed_start(created: object, started: object, zone: tzinfo | None) -> ObservedStart | None:
    """Return what a row of the web interface says about its zone.

    Args:
        created: ``created_at``, only evidence in the format of ``CURRENT_TIMESTAMP``.
        started: ``started_at``, only evidence if it is local and has a ``T``.
        zone: our zone for times without one.

    Returns:
        None if the row is no evidence.
    """
    if not isinstance(created, str) or not _CURRENT_TIMESTAMP.fullmatch(created):
        return None
    if not isinstance(started, str) or not _LOCAL_TIME.fullmatch(started):
        return None
    moments = {*_interpretations(created, UTC), *_interpretations(started, zone)}
    try:
        difference = datetime.fromisoformat(started) - datetime.fromisoformat(created)
        # The clock can change while a job waits: in doubt, the row proves nothing.
        offset = min(utc_offset(moment, zone) for moment in moments)
    except (OverflowError, ValueError):
        return None
    if not _WESTERNMOST <= difference <= _EASTERNMOST:
        return None
    return ObservedStart(difference, offset)


def _interpretations(value: object, zone: tzinfo | None) -> tuple[datetime, ...]:
    """Return the moments that a stored time can mean, none if it is empty or invalid."""
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, str) and _TIME.match(value):
        try:
            moment = datetime.fromisoformat(value.rstrip())
        except ValueError:
            return ()
    else:
        return ()
    try:
        offset = moment.utcoffset()
        if offset is None:
            return tuple(moment.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        return (moment.astimezone(UTC),) if _WESTERNMOST <= offset <= _EASTERNMOST else ()
    except (OverflowError, ValueError):
        return ()


def utc_offset(moment: datetime, zone: tzinfo | None) -> timedelta:
    """Return the UTC offset of a zone at a time (aware)."""
    return moment.astimezone(zone).utcoffset() or timedelta()


def local_timestamp(moment: datetime, zone: tzinfo | None) -> str:
    """Return a time in the format of ``completed_at``: local, without a zone, with a ``T``."""
    return moment.astimezone(zone).replace(tzinfo=None).isoformat()


def utc_timestamp(moment: datetime) -> str:
    """Return a time in the format of the ledger: UTC with a space, as SQLite's CURRENT_TIMESTAMP."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
