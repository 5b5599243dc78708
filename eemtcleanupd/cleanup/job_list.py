"""Lists of jobs, page by page, with where the data of each is and why; changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from eemtcleanupd.cleanup.session import job_table, open_database
from eemtcleanupd.config import Config
from eemtcleanupd.model import Hold, JobClass
from eemtcleanupd.policy.retention import Policy, decide, kept_until
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.intents import Intent
from eemtcleanupd.store.job_rows import CleanupRecord, JobFilter, JobRows, Row
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.ledger import Ledger


class DataState(StrEnum):
    """Where the data of a job is.

    An expired job is cleaned by the next run, unless that finds it in use.  The rules cannot decide about a
    job that needs attention.
    """

    KEPT = "kept"
    HELD = "held"
    EXPIRED = "expired"
    ATTENTION = "needs attention"
    TRASHED = "in the trash"
    CLEANED = "cleaned"


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs to list: see :class:`JobFilter`.  ``held`` lists those with an active hold only."""

    start: str = ""
    job_class: JobClass | None = None
    cleaned: bool | None = None
    held: bool = False


@dataclass(frozen=True, slots=True)
class ListedJob:
    """A job in a list.  Times are aware, in UTC.

    Attributes:
        why: the rule that keeps or expires the job, or what the run that cleaned it did.
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
        has_ledger = ledger.exists()
        if query.held:
            holds = ledger.all_holds() if has_ledger else []
            held_ids = [hold.job_id for hold in holds if hold.is_active(now)]
            wanted_ids = [job_id for job_id in held_ids if job_id.startswith(query.start)]
            page = _page_of(jobs, database, wanted_ids, after, limit)
        else:
            wanted = JobFilter(query.start, query.job_class, query.cleaned)
            with database.read() as connection:
                page = jobs.page(connection, wanted, after, limit)
        ids = [row.job.id for row, _ in page.rows]
        held: dict[str, Hold] = {}
        sizes: dict[str, int] = {}
        trashed: dict[str, Intent] = {}
        if has_ledger:
            with database.read() as connection:
                held, sizes = ledger.holds(connection, ids), ledger.measured(connection, ids)
            trashed = ledger.trashed_jobs(ids)
    listed = []
    for row, record in page.rows:
        job_id = row.job.id
        listed.append(
            _listed(
                row,
                record,
                policy,
                now,
                hold=held.get(job_id),
                trashed=trashed.get(job_id),
                measured=sizes.get(job_id),
            )
        )
    return JobPage(tuple(listed), page.next_after, page.is_partial)


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
) -> ListedJob:
    job, is_held = row.job, hold is not None and hold.is_active(now)
    until = None
    if row.cleaned:
        state = DataState.CLEANED if trashed is None else DataState.TRASHED
        why = record.describe(in_trash=trashed is not None)
    else:
        decision = decide(job, policy, now, hold=hold)
        why, until = decision.reason, kept_until(decision, policy, now, hold)
        if decision.clean:
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
