"""The forms of time in table ``jobs``.

``completed_at`` is Python's ``datetime.now().isoformat()``: local time without a zone, with a ``T``, and
microseconds except when they happen to be 0.  Text forms are never compared with each other (a space
orders before a ``T``): values are read into aware datetimes first.
"""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo


def zone_named(name: str) -> tzinfo | None:
    """Return the zone of ``database.timezone``: None for ``local``, the machine's own."""
    return None if name == "local" else ZoneInfo(name)


def read_timestamp(value: object, zone: tzinfo | None) -> datetime | None:
    """Return a stored time as aware UTC, None when it is empty or not readable.

    Where a local time is ambiguous (the hour that a clock change repeats, or leaves out) the later
    reading counts, which keeps data longer.
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
    """Return a time in the form of ``completed_at``: local, no zone, with a ``T``."""
    return moment.astimezone(zone).replace(tzinfo=None).isoformat()


def utc_timestamp(moment: datetime) -> str:
    """Return a time in the form of SQLite's CURRENT_TIMESTAMP, UTC with a space: for our own tables."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
