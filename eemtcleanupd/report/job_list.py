"""Lists of jobs, page by page, with where the data of each is and why; changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from eemtcleanupd.cleanup.session import job_table, open_database
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.config import Config
from eemtcleanupd.model import Hold, JobClass
from eemtcleanupd.policy.retention import Policy, decide, kept_until
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.intents import Intent
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.values import CleanupRecord, JobFilter, JobRows, Row

_BATCH = 500
_SEARCH_SECONDS = 0.1


class DataState(StrEnum):
    """Where the data of a job is.

    An expired job is cleaned by the next run, unless that finds it in use.  A job needs attention if the
    rules cannot decide about it, or if the last run failed to clean it.
    """

    KEPT = "kept"
    HELD = "held"
    EXPIRED = "expired"
    ATTENTION = "needs attention"
    TRASHED = "in the trash"
    CLEANED = "cleaned"


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs to list: see :class:`JobFilter`.

    ``held`` lists only those with an active hold, ``needs_attention`` only those in that state.
    """

    start: str = ""
    job_class: JobClass | None = None
    cleaned: bool | None = None
    held: bool = False
    needs_attention: bool = False


@dataclass(frozen=True, slots=True)
class ListedJob:
    """A job in a list.  Times are aware, in UTC.

    Attributes:
        why: the rule that keeps or expires the job, why the last run failed to clean it, or what the run that
            cleaned it did.
        kept_until: the end of its retention and of its hold; None if that is not known, or it was cleaned.
        size_bytes: what its data needs, or needed before it was cleaned; None if nothing has measured it.
    """

    job_id: str
    status: str
    state: DataState
    why: str
    kept_until: datetime | None
    cleaned_at: datetime | None
    purge_after: datetime | None
    size_bytes: int | None
    is_held: bool


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of a list; ``next_after`` and ``is_partial`` are those of :class:`JobRows`."""

    jobs: tuple[ListedJob, ...]
    next_after: str | None = None
    is_partial: bool = False


def list_jobs(config: Config, query: JobQuery, after: str | None, limit: int, now: datetime) -> JobPage:
    """Return the next jobs of a list in the order of their ids, after the id ``after``.

    Only the rules decide here.  What else keeps an expired job, :func:`job_state` finds out.

    Raises:
        StoreError: the database cannot be used.
    """
    with ExitStack() as stack:
        database = open_database(config, stack)
        policy = Policy.from_config(config.retention)
        jobs = job_table(database, config, policy, has_parameters=False)
        ledger = Ledger(database)
        table = _Table(database, jobs, ledger if ledger.exists() else None, policy, now)
        if query.needs_attention:
            return table.attention_page(query, after, limit)
        if query.held:
            page = table.held_page(query, after, limit)
        else:
            page = table.page(JobFilter(query.start, query.job_class, query.cleaned), after, limit)
        return JobPage(tuple(table.described(page)), page.next_after, page.is_partial)


@dataclass(frozen=True, slots=True)
class _Table:
    """The job table with what the ledger, if there is one, knows about its rows."""

    database: Database
    jobs: JobTable
    ledger: Ledger | None
    policy: Policy
    now: datetime

    def page(self, wanted: JobFilter, after: str | None, limit: int) -> JobRows:
        with self.database.read() as connection:
            return self.jobs.page(connection, wanted, after, limit)

    def held_page(self, query: JobQuery, after: str | None, limit: int) -> JobRows:
        holds = [] if self.ledger is None else self.ledger.all_holds()
        held = [hold.job_id for hold in holds if hold.is_active(self.now)]
        wanted = [job_id for job_id in held if job_id.startswith(query.start)]
        return _page_of(self.jobs, self.database, wanted, after, limit)

    def attention_page(self, query: JobQuery, after: str | None, limit: int) -> JobPage:
        """Return a page of the jobs that need attention, which only the rules can tell from others."""
        wanted = JobFilter(query.start, query.job_class, cleaned=False)
        found: list[ListedJob] = []
        end = monotonic_seconds() + _SEARCH_SECONDS
        while True:
            rows = self.page(wanted, after, _BATCH)
            found += [job for job in self.described(rows) if job.state is DataState.ATTENTION]
            if len(found) > limit:
                return JobPage(tuple(found[:limit]), found[limit - 1].job_id)
            after = rows.next_after
            if after is None or monotonic_seconds() > end:
                return JobPage(tuple(found), after, is_partial=after is not None)

    def described(self, page: JobRows) -> Iterator[ListedJob]:
        ids = [row.job.id for row, _ in page.rows]
        held: dict[str, Hold] = {}
        sizes: dict[str, int] = {}
        trashed: dict[str, Intent] = {}
        failures: dict[str, str] = {}
        if self.ledger is not None:
            with self.database.read() as connection:
                held, sizes = self.ledger.holds(connection, ids), self.ledger.measured(connection, ids)
            trashed, failures = self.ledger.trashed_jobs(ids), self.ledger.last_failures(ids)
        for row, record in page.rows:
            job_id = row.job.id
            yield _listed(
                row,
                record,
                self.policy,
                self.now,
                hold=held.get(job_id),
                trashed=trashed.get(job_id),
                measured=sizes.get(job_id),
                failure=failures.get(job_id),
            )


def _page_of(
    jobs: JobTable, database: Database, ids: Iterable[str], after: str | None, limit: int
) -> JobRows:
    """Return a page of the rows with these ids; an id without a row is absent."""
    with database.read() as connection:
        rows = jobs.rows(connection, [job_id for job_id in ids if after is None or job_id > after])
        page = sorted(rows)[: limit + 1]
        found = tuple((rows[job_id], jobs.cleanup_record(connection, job_id)) for job_id in page[:limit])
    return JobRows(found, page[limit - 1] if len(page) > limit else None, is_partial=False)


def _listed(
    row: Row,
    record: CleanupRecord,
    policy: Policy,
    now: datetime,
    *,
    hold: Hold | None,
    trashed: Intent | None,
    measured: int | None,
    failure: str | None,
) -> ListedJob:
    job, is_held = row.job, hold is not None and hold.is_active(now)
    until = None
    if row.cleaned:
        state = DataState.CLEANED if trashed is None else DataState.TRASHED
        why = record.describe(in_trash=trashed is not None)
    else:
        decision = decide(job, policy, now, hold=hold)
        why, until = decision.reason, kept_until(decision, policy, now, hold)
        if decision.clean and failure is not None:
            state, why = DataState.ATTENTION, f"the last run failed to clean it: {failure}"
        elif decision.clean:
            state = DataState.EXPIRED
        elif decision.notable:
            state = DataState.ATTENTION
        else:
            state = DataState.HELD if is_held else DataState.KEPT
    return ListedJob(
        job_id=job.id,
        status=job.status,
        state=state,
        why=why,
        kept_until=until,
        cleaned_at=row.cleaned_at,
        purge_after=None if trashed is None else trashed.purge_after,
        size_bytes=record.size_bytes if measured is None else measured,
        is_held=is_held,
    )
