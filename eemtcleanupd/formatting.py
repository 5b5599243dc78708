"""Format sizes, ages and untrusted names for people; parse sizes and durations."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from datetime import datetime, timedelta
from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

BYTES_PER_MB = 1024 * 1024
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtpe]?)(?:i?b)?\s*", re.IGNORECASE)
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([mhdw])\s*", re.IGNORECASE)
_MOST_CHARACTERS = 10_000
_HOURS_OF = {"m": 1 / 60, "h": 1, "d": 24, "w": 7 * 24}
# Control characters, line and paragraph separators and bidirectional overrides can forge a line in a log
# or on a terminal.  Surrogates are the bytes of a name that is not valid UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@lru_cache(maxsize=1024)
def human_size(size_bytes: float, *, fixed: bool = False) -> str:
    """Return a size as text, in powers of 1024: ``15 GB``, ``45.5 GB``, ``250 MB``, ``300 B``.

    With ``fixed`` there is always one decimal place (``45.0 GB``, as in the API's response).
    """
    import humanize

    text = humanize.naturalsize(size_bytes, binary=True, format="%.1f").replace("iB", "B")
    text = text.replace("Bytes", "B").replace("Byte", "B")
    return text if fixed else text.replace(".0 ", " ")


def space(size_bytes: int) -> dict[str, int | str]:
    """Return an amount of disk space for JSON, as in the API: bytes, and text for people."""
    return {"bytes": size_bytes, "human_readable": human_size(size_bytes, fixed=True)}


def parse_size(text: str | int) -> int:
    """Parse a size such as ``10G``, ``500 MB``, ``1.5GiB`` or a plain number into bytes; powers of 1024.

    Raises:
        ValueError: the text is not a size.
    """
    match = _SIZE.fullmatch(str(text))
    if not match:
        raise ValueError(f"{text!r} is not a size. Use a format such as 10G, 500M or 1048576.")
    exponent = " kmgtpe".index(match[2].lower() or " ")
    try:
        return int(float(match[1]) * 1024**exponent)
    except OverflowError:
        raise ValueError(f"{shortened(str(text), 40)!r} is too large for a size.") from None


def parse_hours(text: str) -> float:
    """Parse a duration such as ``90m``, ``12h``, ``7d``, ``2w``, or a plain number of hours, into hours.

    Raises:
        ValueError: the text is not a duration.
    """
    match = _DURATION.fullmatch(text)
    try:
        hours = float(match[1]) * _HOURS_OF[match[2].lower()] if match else float(text)
        if isfinite(hours):
            return hours
    except ValueError:
        pass
    raise ValueError(
        f"{text!r} is not a duration. Use a format such as 90m, 12h, 7d, 2w or a number of hours."
    )


def human_amounts(freed_bytes: float, trashed_bytes: float, purge_after: datetime | None) -> str:
    """Return freed and waiting space as text, which differ: data in the trash uses its space until then.

    ``45 GB freed``, or ``0 B freed, 820 MB moved to the trash, deleted on 2026-12-01 02:00``.
    """
    freed = f"{human_size(freed_bytes)} freed"
    return f"{freed}, {human_trashed(trashed_bytes, purge_after)}" if trashed_bytes else freed


def human_trashed(size_bytes: float, purge_after: datetime | None) -> str:
    """Return what was moved to the trash as text, with the local time of its deletion."""
    deletion = "" if purge_after is None else f", deleted on {purge_after.astimezone():%Y-%m-%d %H:%M}"
    return f"{human_size(size_bytes)} moved to the trash{deletion}"


def human_age(age: timedelta, *, precise: bool = True) -> str:
    """Return an age as text: ``8.2 days`` (``8 days`` if not precise), ``11.0 hours`` below a day."""
    seconds = age.total_seconds()
    number, unit = (seconds / 86400, "day") if abs(seconds) >= 86400 else (seconds / 3600, "hour")
    text = f"{number:.1f}" if precise else f"{int(number)}"
    return f"{text} {unit}{'' if text == '1' else 's'}"


def _in_zone(moment: datetime) -> datetime:
    """Return a time in the machine's time zone; as it is if the calendar ends before it there."""
    with suppress(OverflowError):
        return moment.astimezone()
    return moment


def local_minute(moment: datetime) -> str:
    """Return a time for people, in the machine's time zone with its offset: ``2026-12-31 18:00 +0100``.

    JSON has times in UTC instead.
    """
    return f"{_in_zone(moment):%Y-%m-%d %H:%M %z}"


def local_time(moment: datetime | None) -> str:
    """Return a scheduled time for people, with the day of the week: ``Sat 2024-01-20 02:00 +0100``."""
    return "not scheduled" if moment is None else f"{_in_zone(moment):%a} {local_minute(moment)}"


def printable(name: str) -> str:
    """Escape an untrusted name so that it fits on one line of a log or terminal and cannot forge another.

    Of text that is longer than any path, the middle is cut out: it can be as large as the database.
    """
    name = shortened(name, _MOST_CHARACTERS)
    if name.isascii() and name.isprintable() and "\\" not in name:  # nearly all, and ten times as fast
        return name

    def escape(match: re.Match[str]) -> str:
        code = ord(match[0])
        if 0xDC80 <= code <= 0xDCFF:  # a byte decoded by surrogateescape
            return f"\\x{code - 0xDC00:02x}"
        return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"

    return _UNPRINTABLE.sub(escape, name.replace("\\", "\\\\"))


def printable_lines(text: str) -> str:
    """Return text that a terminal can show; what is printable stays as it is, backslashes too."""
    lines = text.split("\n")
    return text if all(map(str.isprintable, lines)) else "\n".join(map(printable, lines))


def short_name(name: str) -> str:
    """Return an untrusted name, printable and of a limited length."""
    return shortened(printable(name))


def quoted(path: Path | str) -> str:
    """Return a path or an id as a word of the shell, on one line and without what a terminal would act on."""
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    escaped = "".join(
        f"\\{character}"
        if character in "\\'"
        else character
        if character.isprintable()
        else _octal(character)
        for character in text
    )
    return f"$'{escaped}'"  # of bash, zsh, ksh and POSIX.1-2024


def _octal(character: str) -> str:
    # Octal, because hexadecimal digits have no end.
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))


def suggested(command: str, name: str) -> str:
    """Return a command of this program with the untrusted id of a job, or the path of an orphan, to copy."""
    end_of_options = "-- " if name.startswith("-") else ""
    return f"`eemtcleanupd {command} {end_of_options}{quoted(name)}`"


def plural(count: int, noun: str, *, grouped: bool = True) -> str:
    """Return a number with its noun: ``1 job``, ``2 jobs``, ``12,345 jobs``.

    Without ``grouped`` the digits stay together, for the lines of a run that other programs read.
    """
    return f"{count:{',' if grouped else ''}} {noun}{'' if count == 1 else 's'}"


def shortened(text: str, limit: int = 200) -> str:
    """Return the text with its middle cut out if it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    half = (limit - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
