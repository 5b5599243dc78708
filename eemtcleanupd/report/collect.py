"""What a report knows, asked of the job table, the ledger and the results filesystem; nothing is changed.

It works at any time: before the first run there is no ledger, and what is not known then is said so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from eemtcleanupd.clock import Clock
from eemtcleanupd.config import Config
from eemtcleanupd.daemon.status import read_status
from eemtcleanupd.daemon.store_queries import StoreQueries
from eemtcleanupd.errors import StoreError
from eemtcleanupd.events import StoragePoint
from eemtcleanupd.formatting import human_age, printable
from eemtcleanupd.policy.capacity import Budget
from eemtcleanupd.policy.forecast import Forecast, TrendLine, fit_line, forecast
from eemtcleanupd.policy.pressure import DiskUsage
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.lock import find_daemon
from eemtcleanupd.store.report_queries import (
    JobUsage,
    LargeJob,
    RunTotals,
    count_jobs,
    largest_jobs,
    run_totals_since,
)
from eemtcleanupd.store.runs import RunRecord
from eemtcleanupd.store.timestamps import local_timestamp, zone_named

_DAY, _MONTH = timedelta(days=1), timedelta(days=30)
_STALE = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class LedgerSummary:
    """What the ledger knows; ``held_bytes`` is what the measured jobs hold, ``trash_summary`` jobs and bytes.

    ``full`` says when the disk is full, ``over`` when the budget is used up; None where nobody can tell.
    """

    work_24h: RunTotals
    work_30d: RunTotals
    biggest: tuple[LargeJob, ...]
    held_bytes: int
    trash: tuple[int, int, datetime | None]
    last_run: RunRecord | None
    trend: tuple[StoragePoint, ...]
    growth: TrendLine | None
    full: Forecast | None
    over: Forecast | None


@dataclass(frozen=True, slots=True)
class Report:
    """A job store at one time (aware UTC).

    ``history`` is None before the first run, ``disk`` when the results folder cannot be looked at, and
    ``next_run_at`` when no daemon runs or its schedule is off.  ``unknown`` says in words what is missing.
    """

    made_at: datetime
    database: str
    jobs: JobUsage
    history: LedgerSummary | None
    disk: DiskUsage | None
    budget: Budget | None
    has_daemon: bool
    next_run_at: datetime | None
    unknown: tuple[str, ...]


def gather(config: Config, clock: Clock, *, biggest: int) -> Report:
    """Ask for everything, in short reads.

    Args:
        config: the effective configuration.
        clock: where the time comes from.
        biggest: how many of the biggest jobs to name.

    Raises:
        StoreError: the job database cannot be read, or is none.
    """
    location, now, budget = StoreAddress.of(config), clock(), Budget.of(config.capacity)
    zone = zone_named(config.database.timezone)
    database = location.open()
    try:
        catalog = JobTable(database, Policy.from_config(config.retention), zone)
        since = (local_timestamp(now - span, zone) for span in (_DAY, _MONTH))
        jobs = count_jobs(database, catalog, *since)
        ledger = Ledger(database)
        with _database_corruption_guard(str(location)):
            history = (
                _history(database, catalog, ledger, now, budget, biggest=biggest) if ledger.exists() else None
            )
    finally:
        database.close()
    disk = StoreQueries(clock).usage(config)
    daemon = find_daemon(location)
    told = None if daemon is None else read_status(location)
    return Report(
        made_at=now,
        database=str(location),
        jobs=jobs,
        history=history,
        disk=disk,
        budget=budget,
        has_daemon=daemon is not None,
        next_run_at=None if told is None else told.next_run_at,
        unknown=tuple(_unknown(now, jobs, history, disk)),
    )


def _history(
    database: Database,
    catalog: JobTable,
    ledger: Ledger,
    now: datetime,
    budget: Budget | None,
    *,
    biggest: int,
) -> LedgerSummary:
    trend = ledger.trend(now)
    left = [] if budget is None else [(point.at, budget.max_bytes - point.used_bytes) for point in trend]
    return LedgerSummary(
        work_24h=run_totals_since(database, now - _DAY),
        work_30d=run_totals_since(database, now - _MONTH),
        biggest=largest_jobs(database, catalog, biggest),
        held_bytes=sum(int(size) for _, size in ledger.storage_by_class().values()),
        trash=ledger.trash_summary(),
        last_run=next((_sanitized_run(run) for run in ledger.runs(1)), None),
        trend=trend,
        growth=fit_line([(point.at, point.used_bytes) for point in trend]),
        full=forecast([(point.at, point.free_bytes) for point in trend]),
        over=forecast(left),
    )


@contextmanager
def _database_corruption_guard(database: str) -> Iterator[None]:
    """Refuse rows that we cannot have written, as the ledger itself does."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StoreError(
            f"a row of the ledger in {database} makes no sense ({printable(str(error))}): somebody changed "
            "it; put it right, or restore the database from a copy"
        ) from error


def _sanitized_run(run: RunRecord) -> RunRecord:
    """Return a run whose figures are figures and whose words are words.

    Raises:
        ValueError, TypeError: they are none.
    """
    return replace(
        run,
        trigger=str(run.trigger),
        outcome=None if run.outcome is None else str(run.outcome),
        error=None if run.error is None else str(run.error),
        successful=int(run.successful or 0),
        failed=int(run.failed or 0),
        errors=int(run.errors or 0),
        bytes_freed=int(run.bytes_freed or 0),
    )


def _unknown(
    now: datetime, jobs: JobUsage, history: LedgerSummary | None, disk: DiskUsage | None
) -> list[str]:
    if history is None:
        found = ["there has been no run yet: no job is measured, and there is no history to go by"]
    else:
        found = []
        if history.growth is None:
            found.append("growth and forecast need a storage history of three days")
        elif now - history.trend[-1].at > _STALE:
            found.append(
                f"the storage history ends {human_age(now - history.trend[-1].at)} ago: no run since"
            )
        if missing := jobs.total.held.jobs - jobs.total.measured:
            found.append(
                f"{missing} jobs that are not cleaned have no measured size: they are live, have no files, "
                "or no run has seen them since they ended"
            )
    if disk is None:
        found.append("the results folder cannot be looked at, so how full its disk is")
    return found
