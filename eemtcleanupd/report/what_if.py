"""The report ``--what-if``: what other retention periods would keep and free, and when the disk is full.

It reads the job table, the ledger and the filesystem's free space.  What the next run frees is decided as in
a dry run, which reads the folders of expired jobs, but with the sizes that runs have recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from eemtcleanupd.cleanup.context import RunContext, RunHooks
from eemtcleanupd.cleanup.session import job_table
from eemtcleanupd.clock import Clock
from eemtcleanupd.config import Config
from eemtcleanupd.daemon.status_document import iso
from eemtcleanupd.daemon.store_queries import StoreQueries
from eemtcleanupd.errors import RootError, StoreError
from eemtcleanupd.formatting import human_size, local_time, plural, printable, space
from eemtcleanupd.model import JobClass
from eemtcleanupd.policy.forecast import fit_line
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.policy.what_if import (
    HOURS,
    RATE_DAYS,
    Curve,
    DiskState,
    EndedJobs,
    JobAges,
    Point,
    longest_retention,
)
from eemtcleanupd.report.due_jobs import DueJobs, due_jobs
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.base import corruption_guard
from eemtcleanupd.store.ended_jobs import ended_jobs
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.values import zone_named

MOST_DECIDED = 5000
"""So many candidates are decided on as in a dry run; of more, the folders would be read for too long."""
NOT_MEASURED = "No job has a known size yet. The first run measures them"
_COLUMNS = ("Retention", "Keeps", "All jobs", "Next run frees", "Disk full")


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The comparison at one time (aware UTC).

    ``knows_disk`` is false if the free space cannot be read: then no day of a full disk is known.
    ``unknown`` lists as sentences what is estimated or not known.
    """

    made_at: datetime
    database: str
    successful: Curve
    failed: Curve
    knows_disk: bool
    unknown: tuple[str, ...]

    @property
    def curves(self) -> tuple[Curve, Curve]:
        """Both curves."""
        return self.successful, self.failed


def compare_retention(config: Config, clock: Clock, hooks: RunHooks) -> WhatIf:
    """Compare retention periods, from one scan of the job table; ``hooks`` can veto jobs.

    Raises:
        StoreError: the job database cannot be read, or is not an EEMT job database.
    """
    address, now, policy = StoreAddress.of(config), clock(), Policy.from_config(config.retention)
    zone = zone_named(config.database.timezone)
    usage = StoreQueries(clock).usage(config)
    grace = timedelta(hours=config.trash.grace_hours)
    since = now - longest_retention(policy)
    with closing(address.open()) as database:
        table = job_table(database, config, policy, has_parameters=hooks.read_jobs)
        ledger = Ledger(database)
        has_ledger = ledger.exists()
        measured_until, trash_bytes, growth = None, 0, None
        held: set[str] = set()
        if has_ledger:
            with corruption_guard("the ledger"):
                measured_until, trash_bytes = ledger.last_cleanup_at(), ledger.trash_summary()[1]
                trend = ledger.trend(now)
                growth = fit_line([(point.at, point.used_bytes + point.free_bytes) for point in trend])
            held = {hold.job_id for hold in ledger.all_holds() if hold.is_active(now)}

        def groups(ids: Iterable[str] | None = None) -> Iterator[EndedJobs]:
            return ended_jobs(database, table, policy, zone, since=since, ids=ids)

        due: DueJobs | None = None
        if table.backlog(now).candidates <= MOST_DECIDED:
            with suppress(RootError, StoreError, OSError):
                due = due_jobs(RunContext.reading(config, policy, now, hooks), database, table)
        ages = JobAges(policy, now, measured_until)
        for group in groups():
            ages.add(group)
        for group in groups(held):
            ages.hold(group)
        kept = {*table.newest_successful(policy.keep_last, now), *(due.kept if due else ())}
        for group in groups(kept - held):
            ages.keep(group)
        if due is not None:
            for group in groups(due.without_data):
                ages.drop(group)
            ages.set_due(groups(due.cleaned), due.measured_bytes)
    disk = None
    if usage is not None:
        other = 0.0 if growth is None else max(0.0, -growth.bytes_per_day)
        disk = DiskState(usage.free_bytes, trash_bytes, grace, other)
    successful, failed = ages.curves(disk)
    unknown = [
        *_estimated(ages, (successful, failed), disk, knows_growth=growth is not None),
        *_not_considered(config, due),
    ]
    return WhatIf(
        made_at=now,
        database=str(address),
        successful=successful,
        failed=failed,
        knows_disk=disk is not None,
        unknown=tuple(unknown),
    )


def _estimated(
    ages: JobAges, curves: Sequence[Curve], disk: DiskState | None, *, knows_growth: bool
) -> Iterator[str]:
    for curve in curves:
        if curve.estimated:
            jobs = plural(curve.estimated, f"{curve.job_class} job")
            mean = "0 B until the next run measures them"
            if curve.mean_bytes is not None:
                mean = f"the mean of the measured ones, {human_size(curve.mean_bytes)}, for each"
            since = "" if ages.measured_until is None else ", ended since the last run"
            yield f"{jobs} without a known size{since}. Counted with {mean}."
    if ages.cleaned_without_size:
        yield f"{plural(ages.cleaned_without_size, 'cleaned job')} without a recorded size, counted with 0 B."
    if without_end := sum(amount.jobs for amount in ages.without_end.values()):
        yield f"{plural(without_end, 'job')} without a valid end, kept at any retention."
    if held := sum(amount.jobs for amount in ages.held.values()):
        yield f"{plural(held, 'held job')}, kept at any retention until released."
    if kept := sum(amount.jobs for amount in ages.kept.values()):
        yield f"{plural(kept, 'job')} that the next run keeps for another rule. See `eemtcleanupd why JOB`."
    oldest = ages.oldest
    if oldest is None:
        yield "No job has ended yet, so nothing can be compared."
    elif oldest < timedelta(hours=HOURS[-1]):
        yield (
            f"The oldest job ended {plural(oldest.days, 'day')} ago. "
            "A longer retention keeps more than shown as time passes."
        )
    if disk is None:
        yield "The results folder cannot be read, so the day of a full disk is unknown."
    elif not knows_growth:
        yield "How fast other data grows needs a storage history of three days, and counts as 0 until then."
    if disk is not None and disk.grace:
        yield (
            f"Deleted data uses its space for {disk.grace.total_seconds() / 3600:g} more hours in the trash. "
            "The day of a full disk considers this, and the other figures do not."
        )
    yield f"A disk is full on that day if jobs produce as much as in the last {RATE_DAYS} days."


def _not_considered(config: Config, due: DueJobs | None) -> Iterator[str]:
    yield "Sizes are those that runs have recorded. Orphans and the trash are not counted."
    if due is None:
        yield (
            "The next run frees at most as much as shown. Whether expired jobs are invalid, in use, vetoed "
            "or share an upload was not checked: `eemtcleanupd clean --dry-run` does."
        )
    else:
        yield (
            "With another retention, the next run frees at most as much as shown. Jobs that expire only then "
            "can be invalid, in use, vetoed or share an upload."
        )
        if due.unmeasured:
            yield (
                f"{plural(due.unmeasured, 'job')} that share an upload, counted with their recorded size. It "
                "can contain an upload that stays, or lack one that is deleted."
            )
        expired = len(due.cleaned) + due.measured
        if 0 < (most := config.safety.max_jobs_per_run) < expired:
            yield f"{plural(expired, 'job')} expired, and each run cleans at most {most:,} of them."
    yield "Breakers that refuse a run and cleanup under disk pressure are not considered."


# -- JSON ------------------------------------------------------------------------------------------


def as_document(comparison: WhatIf) -> dict[str, Any]:
    """Return the comparison for JSON: times in ISO 8601 (UTC), sizes as bytes and text."""
    return {
        "made_at": iso(comparison.made_at),
        "database": comparison.database,
        **{curve.job_class.value: _curve_document(curve) for curve in comparison.curves},
        "disk_known": comparison.knows_disk,
        "unknown": list(comparison.unknown),
    }


def _curve_document(curve: Curve) -> dict[str, Any]:
    return {
        "retention_hours": curve.hours,
        "summary": summary(curve),
        "jobs": curve.jobs,
        "estimated_jobs": curve.estimated,
        "mean_size": None if curve.mean_bytes is None else space(curve.mean_bytes),
        "produced_per_day": space(curve.bytes_per_day),
        "points": [
            {
                "retention_hours": point.hours,
                "is_configured": point.hours == curve.hours,
                "kept": space(point.kept_bytes),
                "kept_of_all_jobs": space(point.total_bytes),
                "freed_by_next_run": space(point.freed_bytes),
                "disk_full_at": iso(point.disk_full_at),
            }
            for point in curve.points
        ],
        "line": [[round(hours, 2), kept, freed] for hours, kept, freed in curve.line],
    }


# -- text ------------------------------------------------------------------------------------------


def summary(curve: Curve) -> str | None:
    """Return the comparison with another period as text: ``168 h keeps 4.1 TB, 72 h would keep 1.9 TB``."""
    if not curve.points:
        return None
    now, other = curve.current, curve.alternative
    return (
        f"{now.hours:g} h keeps {human_size(now.kept_bytes)}, "
        f"{other.hours:g} h would keep {human_size(other.kept_bytes)}"
    )


def retention_label(hours: float) -> str:
    """Return a period as operators configure it, with days if it is whole days: ``168 h (7 days)``."""
    days = whole_days(hours)
    return f"{hours:g} h ({days})" if days else f"{hours:g} h"


def whole_days(hours: float) -> str:
    """Return a period as days, empty if it is not a number of whole days."""
    days = hours / 24
    return plural(int(days), "day") if days >= 1 and days.is_integer() else ""


def disk_full_label(point: Point, *, knows_disk: bool) -> str:
    """Return the day of a full disk as text."""
    if not knows_disk:
        return "unknown"
    return "not expected" if point.disk_full_at is None else f"{point.disk_full_at.astimezone():%Y-%m-%d}"


def as_text(comparison: WhatIf) -> str:
    """Return the comparison as tables for a terminal; an asterisk marks the configured period."""
    lines = [f"What if    {local_time(comparison.made_at)}, {printable(comparison.database)}"]
    for curve in comparison.curves:
        title = "Successful" if curve.job_class is JobClass.SUCCESSFUL else "Failed"
        produced = f"{plural(curve.jobs, 'job')}, {human_size(curve.bytes_per_day)} per day"
        lines += ["", f"{title:<10} {summary(curve) or NOT_MEASURED} ({produced})"]
        if not curve.points:
            continue
        rows = [_COLUMNS]
        rows += [
            (
                retention_label(point.hours) + (" *" if point.hours == curve.hours else ""),
                human_size(point.kept_bytes),
                human_size(point.total_bytes),
                human_size(point.freed_bytes),
                disk_full_label(point, knows_disk=comparison.knows_disk),
            )
            for point in curve.points
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for first, *others in rows:
            cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
            lines.append("  ".join(["", f"{first:<{widths[0]}}", *cells]))
    lines += [
        "",
        *(f"{'Unknown' if not index else '':<10} {text}" for index, text in enumerate(comparison.unknown)),
    ]
    return "\n".join(lines) + "\n"
