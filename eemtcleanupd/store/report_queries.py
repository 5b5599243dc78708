"""Queries for reports on the job table and the ledger, each in its own transaction.

The database counts the groups.  Users can write any status or workflow type, so the number of groups is
limited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Float, String, case, cast, column, func, literal, null, select, table

from eemtcleanupd.formatting import BYTES_PER_MB
from eemtcleanupd.model import Job
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.tables import RUNS, SIZES
from eemtcleanupd.store.values import RawText, utc_timestamp

OTHERS = "(others)"
"""The group of all jobs beyond the first :data:`MOST_GROUPS` groups."""
MOST_GROUPS = 200

_PAGE = 500
_HELD, _CLEANED_TODAY, _CLEANED_EARLIER = range(3)


@dataclass(frozen=True, slots=True)
class Usage:
    """A number of jobs and their bytes."""

    jobs: int = 0
    size_bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.jobs + other.jobs, self.size_bytes + other.size_bytes)


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """The jobs of one status or workflow type.

    Attributes:
        held: jobs that still have their data.
        measured: number of jobs in ``held`` with a known size.
        cleaned_24h: jobs cleaned in the last 24 hours.
        cleaned_30d: jobs cleaned in the last 30 days, including ``cleaned_24h``.
    """

    held: Usage = Usage()
    measured: int = 0
    cleaned_24h: Usage = Usage()
    cleaned_30d: Usage = Usage()

    def __add__(self, other: UsageGroup) -> UsageGroup:
        return UsageGroup(
            self.held + other.held,
            self.measured + other.measured,
            self.cleaned_24h + other.cleaned_24h,
            self.cleaned_30d + other.cleaned_30d,
        )


@dataclass(frozen=True, slots=True)
class JobUsage:
    """All jobs, grouped by status and by workflow type."""

    by_status: Mapping[str, UsageGroup]
    by_workflow_type: Mapping[str, UsageGroup]

    @property
    def total(self) -> UsageGroup:
        """The sum of all jobs."""
        return sum(self.by_status.values(), UsageGroup())


@dataclass(frozen=True, slots=True)
class LargeJob:
    """A job that still has its data, with its measured bytes."""

    job: Job
    size_bytes: int


@dataclass(frozen=True, slots=True)
class RunTotals:
    """The number of runs, the jobs that they could not clean, and the bytes that they freed or trashed."""

    runs: int
    errors: int
    bytes_freed: int
    bytes_trashed: int


def count_jobs(database: Database, job_table: JobTable, day_ago: str, month_ago: str) -> JobUsage:
    """Count all jobs in one scan.

    Args:
        database: the job database.
        job_table: its job table.
        day_ago: the time 24 hours ago, in the format of ``data_cleaned_at``.
        month_ago: the time 30 days ago.
    """
    names = job_table.column_names
    jobs = table("jobs", *(column(name) for name in names))
    status = cast(jobs.c.status, RawText)
    workflow = cast(jobs.c.workflow_type, RawText) if "workflow_type" in names else cast(null(), RawText)
    size: ColumnElement[Any] = jobs.c.data_size_mb if "data_size_mb" in names else literal(0.0, Float)
    measured = func.sum(case((size > 0, 1), else_=0))
    statement = select(status, workflow, literal(_HELD), func.count(), func.sum(size), measured)
    if "data_cleaned_at" in names:
        # Text with a space instead of a T: a column with a type for times has no T.
        cleaned_at = func.replace(cast(jobs.c.data_cleaned_at, String), "T", " ")
        day, month = (time.replace("T", " ") for time in (day_ago, month_ago))
        held = jobs.c.data_cleaned_at.is_(None)
        when = case((held, _HELD), (cleaned_at > day, _CLEANED_TODAY), else_=_CLEANED_EARLIER)
        statement = select(status, workflow, when, func.count(), func.sum(size), measured)
        statement = statement.where(held | (cleaned_at > month)).group_by(status, workflow, when)
    else:
        statement = statement.select_from(jobs).group_by(status, workflow)
    by_status: dict[str, UsageGroup] = {}
    by_workflow: dict[str, UsageGroup] = {}
    with database.read() as connection:
        rows = connection.execute(statement.execution_options(stream_results=True, yield_per=_PAGE))
        for status_name, workflow_type, state, count, megabytes, with_size in rows:
            usage = Usage(int(count), _bytes(megabytes))
            if state == _HELD:
                group = UsageGroup(held=usage, measured=int(with_size))
            elif state == _CLEANED_TODAY:
                group = UsageGroup(cleaned_24h=usage, cleaned_30d=usage)
            else:
                group = UsageGroup(cleaned_30d=usage)
            _add(by_status, status_name, group)
            _add(by_workflow, workflow_type, group)
    return JobUsage(by_status, by_workflow)


def largest_jobs(database: Database, job_table: JobTable, limit: int) -> tuple[LargeJob, ...]:
    """Return the largest jobs that still have their data, largest first.  The ledger must exist."""
    # Read more than needed: a row can have been deleted or marked as cleaned since it was measured.
    statement = select(SIZES.c.job_id, SIZES.c.bytes).order_by(SIZES.c.bytes.desc()).limit(3 * limit)
    with database.read() as connection:
        sizes = {str(row.job_id): _bytes(row.bytes, unit=1) for row in connection.execute(statement)}
        rows = job_table.rows(connection, list(sizes))
    held = [
        LargeJob(rows[name].job, size)
        for name, size in sizes.items()
        if name in rows and not rows[name].cleaned
    ]
    return tuple(sorted(held, key=lambda large: (-large.size_bytes, large.job.id))[:limit])


def run_totals_since(database: Database, since: datetime) -> RunTotals:
    """Return the totals of the runs that started later.  The ledger must exist."""
    sums = (func.sum(column) for column in (RUNS.c.errors, RUNS.c.bytes_freed, RUNS.c.bytes_trashed))
    statement = select(func.count(), *sums).where(RUNS.c.started_at > utc_timestamp(since))
    with database.read() as connection:
        runs, *sums_found = connection.execute(statement).one()
    return RunTotals(runs, *(int(total or 0) for total in sums_found))


def _add(groups: dict[str, UsageGroup], name: object, group: UsageGroup) -> None:
    key = "" if name is None else str(name)
    if key not in groups and len(groups) >= MOST_GROUPS:
        key = OTHERS
    groups[key] = groups.get(key, UsageGroup()) + group


def _bytes(value: object, unit: int = BYTES_PER_MB) -> int:
    """Return a sum as bytes.  An invalid size counts as 0."""
    try:
        return max(0, round(float(value or 0) * unit))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0
