"""Rows of table ``jobs`` as values: every program can write there, so every value is possible."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, tzinfo

from eemtcleanupd.formatting import BYTES_PER_MB
from eemtcleanupd.model import Job, JobClass
from eemtcleanupd.store.timestamps import read_creation, read_start, read_timestamp

ROW_COLUMNS = ("status", "completed_at", "started_at", "created_at", "workflow_type", "dem_filename")
"""The columns that :func:`read_row` needs, after the id and ``data_cleaned_at``."""

IN_TRASH = "in the trash: "
"""How the summary in a job's row begins if its data was moved to the trash."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of ``jobs``: the job, and whether and when its data was cleaned."""

    job: Job
    cleaned: bool
    cleaned_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class CleanupRecord:
    """What this program wrote into a job's row; None for what it did not write, or what makes no sense."""

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
    """Return the row that these columns are; ``zone`` is that of times without one."""
    job = Job(
        id=as_text(job_id),
        # Bytes are equal to no text in the database, so a status that is bytes is none of the known ones.
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
    """Return a column as text: bytes that are not UTF-8 as surrogates, NULL as nothing."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value)


def _optional_text(value: object) -> str | None:
    return None if value is None else as_text(value)
