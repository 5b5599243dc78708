"""The only module that reads the time of day for decisions; tests pass another clock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo

Clock = Callable[[], datetime]
"""Returns the current time as an aware datetime in UTC."""
_LAST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


def system_clock() -> datetime:
    """Return the machine's current time, aware, in UTC."""
    return datetime.now(UTC)


def unique_stamp(moment: datetime) -> str:
    """Return a name that sorts by time; a second one of the same time differs.

    Clocks are set back, and much happens within a second.
    """
    return f"{moment:%Y%m%dT%H%M%S}-{os.urandom(4).hex()}"


def monotonic_seconds() -> float:
    """Return the seconds of a clock that never moves backwards, to measure durations."""
    return time.monotonic()


def elapsed_seconds() -> float:
    """Return the seconds of a clock that never moves backwards and includes time spent in suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def file_time(seconds: float) -> datetime:
    """Return the time of a file (stat(2)), aware, in UTC, limited to the years 1970 to 9999.

    The owner of a file can set any time.  Some filesystems keep it.
    """
    return datetime.fromtimestamp(min(max(seconds, 0.0), _LAST), UTC)


def local_zone() -> tzinfo:
    """Return the machine's time zone by the rules of tzset(3): ``TZ``, then /etc/localtime, then UTC.

    If ``TZ`` is a rule and not a name, return the current UTC offset.
    """
    from pathlib import Path
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    name = os.environ.get("TZ", "").removeprefix(":")
    try:
        if name and not name.startswith("/"):
            return ZoneInfo(name)
        with Path(name or "/etc/localtime").open("rb") as file:
            return ZoneInfo.from_file(file, key=name or "localtime")
    except FileNotFoundError:
        return UTC
    except (OSError, ValueError, ZoneInfoNotFoundError):
        return datetime.now().astimezone().tzinfo or UTC
