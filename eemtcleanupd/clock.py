"""The only place that reads a clock, so that every rule about time can be tested with another one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo

Clock = Callable[[], datetime]
"""Returns the present as an aware datetime in UTC."""


def system_clock() -> datetime:
    """Return the machine's present time, aware, in UTC."""
    return datetime.now(UTC)


def monotonic_seconds() -> float:
    """Return seconds of a clock that never goes back, for measuring durations."""
    return time.monotonic()


def elapsed_seconds() -> float:
    """Return seconds of a clock that never goes back and that counts a suspended machine's sleep too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def local_zone() -> tzinfo:
    """Return the machine's zone as the C library finds it (tzset(3)): ``TZ``, then /etc/localtime, then UTC.

    A ``TZ`` that is a rule and not a name gives the offset of the present.
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
