"""What a report asks of the job table and the ledger: a few statements, each a transaction of its own.

Groups are counted inside the database.  Statuses and workflow types are anybody's words, so no more than
some hundreds of them are told apart here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Float,
    String,
    case,
    cast,
    column,
    func,
    literal,
    null,
    select,
    table,
)

from eemtcleanupd.formatting import BYTES_PER_MB
from eemtcleanupd.model import Job
from eemtcleanupd.store.database import Database, RawText
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.tables import RUNS, SIZES
from eemtcleanupd.store.timestamps import utc_timestamp

OTHERS = "(others)"
"""The group of all beyond the first :data:`MOST_GROUPS`."""
MOST_GROUPS = 200

_PAGE = 500
_HELD, _CLEANED_TODAY, _CLEANED_EARLIER = range(3)


@dataclass(frozen=True, slots=True)
class Usage:
    """Jobs and their bytes."""

    jobs: int = 0
    size_bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.jobs + other.jobs, self.size_bytes + other.size_bytes)


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """The jobs of one status or workflow type.

    ``held`` still have their data; of these ``measured`` have a size, the bytes of the others are not known.
    ``cleaned_24h`` and ``cleaned_30d`` were cleaned since then; a job cleaned today is in both.
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
    """All jobs, grouped twice."""

    by_status: Mapping[str, UsageGroup]
    by_workflow_type: Mapping[str, UsageGroup]

    @property
    def total(self) -> UsageGroup:
        """All together."""
        return sum(self.by_status.values(), UsageGroup())


@dataclass(frozen=True, slots=True)
class LargeJob:
    """A job that still has its data, with its measured bytes."""

    job: Job
    size_bytes: int


@dataclass(frozen=True, slots=True)
class RunTotals:
    """What runs did: how many began, the jobs that they could not clean, the bytes that they freed."""

    runs: int
    errors: int
    bytes_freed: int


def count_jobs(database: Database, catalog: JobTable, day_ago: str, month_ago: str) -> JobUsage:
    """Count all jobs in one scan.

    Args:
        database: the job database.
        catalog: its job table.
        day_ago: the time 24 hours ago, in the form of ``data_cleaned_at``.
        month_ago: the time 30 days ago.
    """
    names = catalog.column_names
    jobs = table("jobs", *(column(name) for name in names))
    status = cast(jobs.c.status, RawText)
    workflow = cast(jobs.c.workflow_type, RawText) if "workflow_type" in names else cast(null(), RawText)
    size: ColumnElement[Any] = jobs.c.data_size_mb if "data_size_mb" in names else literal(0.0, Float)
    measured = func.sum(case((size > 0, 1), else_=0))
    statement = select(status, workflow, literal(_HELD), func.count(), func.sum(size), measured)
    if "data_cleaned_at" in names:
        # As the user's document compares it; a database with a type for times writes no T.
        at = func.replace(cast(jobs.c.data_cleaned_at, String), "T", " ")
        day, month = (each.replace("T", " ") for each in (day_ago, month_ago))
        held = jobs.c.data_cleaned_at.is_(None)
        when = case((held, _HELD), (at > day, _CLEANED_TODAY), else_=_CLEANED_EARLIER)
        statement = select(status, workflow, when, func.count(), func.sum(size), measured)
        statement = statement.where(held | (at > month)).group_by(status, workflow, when)
    else:
        statement = statement.select_from(jobs).group_by(status, workflow)
    by_status: dict[str, UsageGroup] = {}
    by_workflow: dict[str, UsageGroup] = {}
    with database.read() as connection:
        found = connection.execute(statement.execution_options(stream_results=True, yield_per=_PAGE))
        for one, other, state, count, megabytes, with_size in found:
            amount = Usage(int(count), _bytes(megabytes))
            if state == _HELD:
                group = UsageGroup(held=amount, measured=int(with_size))
            elif state == _CLEANED_TODAY:
                group = UsageGroup(cleaned_24h=amount, cleaned_30d=amount)
            else:
                group = UsageGroup(cleaned_30d=amount)
            _add(by_status, one, group)
            _add(by_workflow, other, group)
    return JobUsage(by_status, by_workflow)


def largest_jobs(database: Database, catalog: JobTable, limit: int) -> tuple[LargeJob, ...]:
    """Return the biggest jobs that still have their data, the biggest first; the ledger must exist."""
    # More than are wanted: a row may be gone, or have been marked by others, since it was measured.
    statement = select(SIZES.c.job_id, SIZES.c.bytes).order_by(SIZES.c.bytes.desc()).limit(3 * limit)
    with database.read() as connection:
        sizes = {str(row.job_id): _bytes(row.bytes, unit=1) for row in connection.execute(statement)}
        rows = catalog.rows(connection, list(sizes))
    held = [
        LargeJob(rows[name].job, size)
        for name, size in sizes.items()
        if name in rows and not rows[name].cleaned
    ]
    return tuple(sorted(held, key=lambda each: (-each.size_bytes, each.job.id))[:limit])


def run_totals_since(database: Database, since: datetime) -> RunTotals:
    """Return what the runs did that began later; the ledger must exist."""
    statement = select(func.count(), func.sum(RUNS.c.errors), func.sum(RUNS.c.bytes_freed)).where(
        RUNS.c.started_at > utc_timestamp(since)
    )
    with database.read() as connection:
        runs, errors, freed = connection.execute(statement).one()
    return RunTotals(runs, int(errors or 0), int(freed or 0))


def _add(groups: dict[str, UsageGroup], name: object, group: UsageGroup) -> None:
    key = "" if name is None else str(name)
    if key not in groups and len(groups) >= MOST_GROUPS:
        key = OTHERS
    groups[key] = groups.get(key, UsageGroup()) + group


def _bytes(value: object, unit: int = BYTES_PER_MB) -> int:
    """Return a sum as bytes; what somebody wrote there that is no size counts as none."""
    try:
        size = float(value or 0)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 0
    return round(size * unit) if math.isfinite(size) and size > 0 else 0
