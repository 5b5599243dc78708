"""Query of the ended jobs by the hour of their end, for estimates that need no single job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, tzinfo

from sqlalchemy import select, text

from eemtcleanupd.batches import batched
from eemtcleanupd.formatting import BYTES_PER_MB
from eemtcleanupd.model import JobClass
from eemtcleanupd.policy.retention import TERMINAL, Policy
from eemtcleanupd.policy.what_if import EndedJobs
from eemtcleanupd.store.base import MOST_VALUES
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.values import ANY_ZONE, local_timestamp, read_timestamp

_PAGE = 1000
# About a petabyte. Every program can write there, also text and infinity.
_MOST_MEGABYTES = 1e9
_HALF_PAST = ":30:00"


def ended_jobs(
    database: Database,
    jobs: JobTable,
    policy: Policy,
    zone: tzinfo | None,
    *,
    since: datetime,
    ids: Iterable[str] | None = None,
) -> Iterator[EndedJobs]:
    """Yield terminal jobs in groups that ended in the same hour, from one scan of the table.

    Groups of some ids are parts of the groups of all jobs, so that they can be subtracted from these.

    Args:
        database: the job database.
        jobs: its job table.
        policy: classifies statuses.
        zone: zone of times without one, None for the machine's.
        since: leave out cleaned jobs that ended before.
        ids: the jobs, None for all.
    """
    names, as_text = jobs.column_names, database.as_text
    is_class, values = {}, {"since": local_timestamp(since - ANY_ZONE, zone)[:10]}
    for job_class in TERMINAL:
        of = [name for name, status_class in policy.statuses.items() if status_class is job_class]
        values |= {f"{job_class}{index}": name for index, name in enumerate(of)}
        equal = [f"{as_text('status')} = :{job_class}{index}" for index, _ in enumerate(of)]
        is_class[job_class] = f"({' OR '.join(equal) or 'false'})"
    ended = f"coalesce({as_text('completed_at')}, '')"
    size = "data_size_mb" if "data_size_mb" in names else "0"
    is_size = f"{size} > 0 AND {size} <= {_MOST_MEGABYTES}"
    workflow = as_text("workflow_type") if policy.overrides and "workflow_type" in names else "NULL"
    # The class, whether the job is cleaned, the hour, and what follows the digits of the time, which is its
    # zone.  They are one text, because SQLite sorts the groups and takes twice as long for several columns.
    key = (
        f"CASE WHEN {is_class[JobClass.SUCCESSFUL]} THEN 's' ELSE 'f' END"
        f" || CASE WHEN {jobs.uncleaned} THEN 'u' ELSE 'c' END"
        f" || substr({ended}, 1, 13) || ltrim(substr({ended}, 14), ':.0123456789')"
    )
    columns = (
        f"{key} AS hour",
        f"{workflow} AS workflow",
        "count(*)",
        f"sum(CASE WHEN {is_size} THEN 1 ELSE 0 END)",
        f"sum(CASE WHEN {is_size} THEN {size} ELSE 0 END)",
    )
    statement = (
        select(*map(text, columns))
        .where(text(f"({' OR '.join(is_class.values())}) AND ({jobs.uncleaned} OR {ended} >= :since)"))
        .group_by(text("1"), text("2"))
        .execution_options(stream_results=True, yield_per=_PAGE)
    )
    pages = [None] if ids is None else batched(ids, MOST_VALUES)
    with database.read() as connection:
        for found, workflow_type, count, measured, megabytes in (
            row for page in pages for row in connection.execute(jobs.limited_to(statement, page), values)
        ):
            yield EndedJobs(
                job_class=JobClass.SUCCESSFUL if found[0] == "s" else JobClass.FAILED,
                workflow_type=workflow_type,
                ended_at=read_timestamp(f"{found[2:15]}{_HALF_PAST}{found[15:]}", zone),
                is_cleaned=found[1] == "c",
                jobs=int(count),
                measured=int(measured),
                size_bytes=round(float(megabytes) * BYTES_PER_MB),
            )
