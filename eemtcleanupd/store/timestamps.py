"""Conversion of the timestamp formats in table ``jobs`` and the ledger.

``completed_at`` is Python's ``datetime.now().isoformat()``: local time without a zone, with a ``T``, and
with microseconds unless they are 0.  A space orders before a ``T``, so times are never compared as text.
They are converted to aware datetimes first.
"""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo


def zone_named(name: str) -> tzinfo | None:
    """Return the zone of ``database.timezone``, or None for ``local``, the machine's zone."""
    return None if name == "local" else ZoneInfo(name)


def read_timestamp(value: object, zone: tzinfo | None) -> datetime | None:
    """Return a stored time as aware UTC, or None if it is empty or invalid.

    A clock change repeats or skips an hour.  For an ambiguous time, return the later interpretation, which
    keeps data longer.
    """
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, str) and len(value) > len("YYYY-MM-DD"):
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    else:
        return None
    try:
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
        return max(moment.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    except (OverflowError, ValueError):
        return None


def local_timestamp(moment: datetime, zone: tzinfo | None) -> str:
    """Return a time in the format of ``completed_at``: local, without a zone, with a ``T``."""
    return moment.astimezone(zone).replace(tzinfo=None).isoformat()


def utc_timestamp(moment: datetime) -> str:
    """Return a time in the format of the ledger: UTC with a space, as SQLite's CURRENT_TIMESTAMP."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
