"""What the job database contains, as values: text of any bytes, numbers, times, and rows of table ``jobs``.

Every program can write there, so every value is possible.

``started_at`` and ``completed_at`` are Python's ``datetime.now().isoformat()``: local time without a zone,
with a ``T``, and with microseconds unless they are 0.  ``created_at`` is SQLite's ``CURRENT_TIMESTAMP``: UTC,
with a space.  A space orders before a ``T``, so times are never compared as text.  They are converted to
aware datetimes first.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import BigInteger, Integer, String, Text, Uuid, cast
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.types import TypeDecorator

from eemtcleanupd.errors import StoreError
from eemtcleanupd.formatting import BYTES_PER_MB, printable, printable_lines, short_name
from eemtcleanupd.model import Job, JobClass
from eemtcleanupd.policy.breakers import ObservedStart

ROW_COLUMNS = ("status", "completed_at", "started_at", "created_at", "workflow_type", "dem_filename")
"""The columns that :func:`read_row` needs, after the id and ``data_cleaned_at``."""

IN_TRASH = "in the trash: "
"""Prefix of the summary of a job whose data is in the trash."""
ANY_ZONE = timedelta(hours=27)
"""More than the largest difference between two local times of one moment, 26 hours."""
CLOCK_CHANGE = timedelta(hours=2)
"""More than any clock change moves a local time."""

# Numbers, dates without separators and bare dates are not times, although fromisoformat() reads some of them.
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}")
_LOCAL_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?")
_CURRENT_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}")
_WESTERNMOST, _EASTERNMOST = timedelta(hours=-12), timedelta(hours=14)


# -- text and numbers ----------------------------------------------------------------------------------------


def is_storable(text: str) -> bool:
    """Return whether PostgreSQL can store a text: valid Unicode without a NUL."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


class RawText(TypeDecorator[str]):
    """Text that can contain bytes that are not UTF-8, escaped by surrogateescape.

    Python's sqlite3 refuses to bind such a string, but SQLite casts bytes to text unchanged.
    PostgreSQL cannot store such bytes, so there they are written as in a log.
    """

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        """Return the bytes to bind (SQLite), or storable text."""
        if value is None:
            return None
        if dialect.name == "sqlite":
            return value.encode("utf-8", "surrogateescape")
        return value if is_storable(value) else printable(value)

    def bind_expression(self, bindparam: BindParameter[str]) -> ColumnElement[str]:
        """Cast the bound value to text."""
        return cast(bindparam, String)


class RawName(RawText):
    """A file name, byte for byte.  PostgreSQL stores it in hexadecimal digits."""

    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        """Return the bytes to bind (SQLite), or their hexadecimal digits."""
        raw = None if value is None else value.encode("utf-8", "surrogateescape")
        return raw if raw is None or dialect.name == "sqlite" else raw.hex()

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        """Return the name."""
        if value is None or dialect.name == "sqlite":
            return None if value is None else str(value)
        return bytes.fromhex(value).decode("utf-8", "surrogateescape")


class ShortText(TypeDecorator[str]):
    """One line of text from this program or another writer of the database."""

    impl = String
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Return the text with control characters and line breaks escaped."""
        return None if value is None else printable_lines(str(value)).replace("\n", r"\x0a")


class LongText(ShortText):
    """Text of any length, also of several lines."""

    impl = Text
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Return the text with control characters escaped, except line breaks."""
        return None if value is None else printable_lines(str(value))


class Number(TypeDecorator[int]):
    """A number from this program or another writer of the database."""

    impl = Integer
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:  # noqa: ARG002
        """Return the number: SQLite columns accept any value, and PostgreSQL sums are Decimal."""
        with suppress(ArithmeticError, ValueError, TypeError):
            # Compared first, because int() of 1e999999999 would take hours.
            if value is None or -(2**63) <= (number := Decimal(value)) < 2**63:
                return None if value is None else int(number)
        raise StoreError(
            f"The ledger in the job database has {short_name(repr(value))} in place of a number. Nothing "
            "more was done. Find and correct the value, or restore the database from a backup."
        )


class BigNumber(Number):
    """A number of bytes."""

    impl = BigInteger
    cache_ok = True


class TextKey(RawText):
    """A text column of PostgreSQL, to compare with ids: unstorable text is equal to no row."""

    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        """Return the text, or None if it cannot be stored."""
        return value if value is not None and is_storable(value) else None


class IntegerKey(TypeDecorator[str]):
    """A numeric column of PostgreSQL, to compare with ids: any other text is equal to no row."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        """Return the number in its canonical form, or None."""
        if value is None or re.fullmatch(r"0|-?[1-9][0-9]{0,18}", value) is None:
            return None
        number = int(value)
        return number if -(2**63) <= number < 2**63 else None

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Return the number as text."""
        return None if value is None else str(value)


class UuidKey(TypeDecorator[str]):
    """A UUID column of PostgreSQL, to compare with ids: any other text is equal to no row."""

    impl = Uuid(as_uuid=False)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        """Return the UUID in its canonical form, or None."""
        pattern = r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}"
        return value if value is not None and re.fullmatch(pattern, value) else None


# -- times ---------------------------------------------------------------------------------------------------


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
        None if the row does not show its zone.
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


# -- rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A row of ``jobs``: the job, and whether and when its data was cleaned."""

    job: Job
    cleaned: bool
    cleaned_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class CleanupRecord:
    """What this program wrote into a job's row.  A field is None if it was not written or is invalid."""

    size_bytes: int | None
    summary: str | None

    def describe(self, *, in_trash: bool) -> str:
        """Return what happened to the job's data: a purge of the trash leaves the row as it is."""
        summary = self.summary or "its data was cleaned"
        if not in_trash and summary.startswith(IN_TRASH):
            return f"deleted from the trash: {summary.removeprefix(IN_TRASH)}"
        return summary


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list contains: those whose id starts with a text, of a class, cleaned or not."""

    start: str = ""
    job_class: JobClass | None = None
    cleaned: bool | None = None


@dataclass(frozen=True, slots=True)
class JobRows:
    """A page of the job table in the order of ids.

    Attributes:
        rows: each row, and what this program wrote into it.
        next_after: the id after which the next page starts; None if this is the last.
        is_partial: the search ended before it found a full page of jobs.
    """

    rows: tuple[tuple[Row, CleanupRecord], ...]
    next_after: str | None
    is_partial: bool


def read_row(  # noqa: PLR0917  (the columns of a row)
    zone: tzinfo | None,
    job_id: object,
    cleaned_at: object,
    status: object,
    completed_at: object,
    started_at: object,
    created_at: object,
    workflow_type: object,
    dem_filename: object,
    parameters: object = None,
) -> Row:
    """Build a row from its columns; ``zone`` applies to times without a zone."""
    job = Job(
        id=as_text(job_id),
        # Bytes never equal text in the database, so such a status is unknown.
        status=repr(status) if isinstance(status, bytes) else as_text(status),
        workflow_type=_optional_text(workflow_type),
        completed_at=read_timestamp(completed_at, zone),
        dem_filename=_optional_text(dem_filename),
        parameters=_optional_text(parameters),
        started_at=read_start(started_at, zone),
        created_at=read_creation(created_at, zone),
    )
    return Row(job, cleaned_at is not None, read_timestamp(cleaned_at, zone))


def read_record(size: object, summary: object) -> CleanupRecord:
    """Return what these columns say about a cleanup."""
    try:
        size_bytes = round(float(size) * BYTES_PER_MB)  # type: ignore[arg-type]  # a TypeError is handled
    except (TypeError, ValueError, OverflowError):  # every program can write there
        size_bytes = -1
    return CleanupRecord(size_bytes if size_bytes >= 0 else None, _optional_text(summary))


def as_text(value: object) -> str:
    """Return a column as text: bytes that are not UTF-8 as surrogates, NULL as an empty string."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value)


def _optional_text(value: object) -> str | None:
    return None if value is None else as_text(value)
