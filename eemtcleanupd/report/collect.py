"""Collect the data of a report from the job table, the ledger and the results filesystem, read-only.

A report can be made at any time.  Before the first run there is no ledger; the report then lists what is
unknown.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from eemtcleanupd.cleanup.session import job_table
from eemtcleanupd.clock import Clock
from eemtcleanupd.config import Config
from eemtcleanupd.daemon.status import read_status
from eemtcleanupd.daemon.store_queries import StoreQueries
from eemtcleanupd.events import StoragePoint
from eemtcleanupd.formatting import plural
from eemtcleanupd.policy.capacity import Budget
from eemtcleanupd.policy.forecast import Forecast, TrendLine, fit_line, forecast
from eemtcleanupd.policy.pressure import DiskUsage
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.base import corruption_guard
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
from eemtcleanupd.store.values import local_timestamp, zone_named

_DAY, _MONTH = timedelta(days=1), timedelta(days=30)
_STALE = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class LedgerSummary:
    """The ledger's part of a report.

    ``biggest`` and ``held_bytes`` are about measured jobs that still have their data.  ``trash`` has jobs,
    bytes and the time of the next purge.  ``trend`` starts with the oldest point; ``growth`` is a line
    through it, None if it is too short.  A forecast is None if it lies beyond ten years.
    """

    runs_24h: RunTotals
    runs_30d: RunTotals
    biggest: tuple[LargeJob, ...]
    held_bytes: int
    trash: tuple[int, int, datetime | None]
    last_run: RunRecord | None
    trend: tuple[StoragePoint, ...]
    growth: TrendLine | None
    disk_full: Forecast | None
    budget_exceeded: Forecast | None


@dataclass(frozen=True, slots=True)
class Report:
    """The state of a job store at one time (aware UTC).

    ``history`` is None before the first run, and ``disk`` if the results folder cannot be read.
    ``next_run_at`` is None if no daemon is running or its schedule is off.  ``unknown`` lists missing data
    as sentences.
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
    """Collect a report in several short reads; ``biggest`` is the number of the largest jobs to list.

    Raises:
        StoreError: the job database cannot be read, or is not an EEMT job database.
    """
    address, now, budget = StoreAddress.of(config), clock(), Budget.of(config.capacity)
    zone = zone_named(config.database.timezone)
    with closing(address.open()) as database:
        table, ledger, history = job_table(database, config), Ledger(database), None
        since = (local_timestamp(now - span, zone) for span in (_DAY, _MONTH))
        jobs = count_jobs(database, table, *since)
        if ledger.exists():
            with corruption_guard("the ledger"):
                history = _ledger_summary(database, table, ledger, now, budget, biggest=biggest)
    disk = StoreQueries(clock).usage(config)
    daemon = find_daemon(address)
    status = None if daemon is None else read_status(address)
    return Report(
        made_at=now,
        database=str(address),
        jobs=jobs,
        history=history,
        disk=disk,
        budget=budget,
        has_daemon=daemon is not None,
        next_run_at=None if status is None else status.next_run_at,
        unknown=tuple(_unknown(now, jobs, history, disk)),
    )


def _ledger_summary(
    database: Database, jobs: JobTable, ledger: Ledger, now: datetime, budget: Budget | None, *, biggest: int
) -> LedgerSummary:
    trend, last = ledger.trend(now), ledger.last_cleanup()
    unused = [] if budget is None else [(point.at, budget.max_bytes - point.used_bytes) for point in trend]
    return LedgerSummary(
        runs_24h=run_totals_since(database, now - _DAY),
        runs_30d=run_totals_since(database, now - _MONTH),
        biggest=largest_jobs(database, jobs, biggest),
        held_bytes=sum(int(size) for _, size in ledger.storage_by_class().values()),
        trash=ledger.trash_summary(),
        last_run=None if last is None else _sanitized_run(last),
        trend=trend,
        growth=fit_line([(point.at, point.used_bytes) for point in trend]),
        disk_full=forecast([(point.at, point.free_bytes) for point in trend]),
        budget_exceeded=forecast(unused),
    )


def _sanitized_run(run: RunRecord) -> RunRecord:
    """Return a run with integers and strings, or raise what the guard of corrupt rows expects."""
    return replace(
        run,
        trigger=str(run.trigger),
        outcome=None if run.outcome is None else str(run.outcome),
        error=None if run.error is None else str(run.error),
        successful=int(run.successful or 0),
        failed=int(run.failed or 0),
        errors=int(run.errors or 0),
        bytes_freed=int(run.bytes_freed or 0),
        bytes_trashed=int(run.bytes_trashed or 0),
    )


def _unknown(
    now: datetime, jobs: JobUsage, history: LedgerSummary | None, disk: DiskUsage | None
) -> list[str]:
    unknown = []
    if history is None:
        unknown.append("There are no runs yet, so there are no measured jobs and no storage history.")
    elif history.growth is None:
        unknown.append("Growth and forecast need a storage history of three days.")
    elif (age := now - history.trend[-1].at) > _STALE:
        import humanize

        unknown.append(f"The storage history ended {humanize.naturaldelta(age)} ago; no run has added to it.")
    if history is not None and (unmeasured := jobs.total.held.jobs - jobs.total.measured):
        unknown.append(
            f"{plural(unmeasured, 'uncleaned job')} without a measured size: live, without files, or "
            "ended since the last run."
        )
    if disk is None:
        unknown.append("The results folder cannot be read, so the usage of its disk is unknown.")
    return unknown
