"""What was done with the jobs: the log of each run, and the audit table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, desc, func, insert, select

from eemtcleanupd.batches import batched
from eemtcleanupd.formatting import BYTES_PER_MB
from eemtcleanupd.store.base import MOST_VALUES, Repository
from eemtcleanupd.store.runs import BEGAN, PLANNED_JOBS
from eemtcleanupd.store.tables import AUDIT, LOG, RUNS
from eemtcleanupd.store.values import read_timestamp, utc_timestamp

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class LogEntry(NamedTuple):
    """A row of ``cleanup_log``: what a run did with one job."""

    job_id: str
    status: str
    action: str
    bytes_freed: int
    message: str
    bytes_trashed: int = 0


@dataclass(frozen=True, slots=True)
class AuditLine:
    """A row of ``cleanup_audit``: what was done with a job's data in one root."""

    job_id: str
    action: str
    bytes_freed: int


class History(Repository):
    """``cleanup_log`` and ``cleanup_audit``."""

    def log_page(self, run_id: str, after: int, limit: int) -> tuple[list[LogEntry], int | None]:
        """Return what a run did after a place in its log (0 is the start), and the place of the rest."""
        statement = select(LOG).where(LOG.c.run_id == run_id, LOG.c.id > after)
        with self._database.read() as connection:
            rows = connection.execute(statement.order_by(LOG.c.id).limit(limit + 1)).all()
        return [_log_entry(row) for row in rows[:limit]], rows[limit - 1].id if len(rows) > limit else None

    def failed_entries(self, run_id: str, limit: int) -> list[LogEntry]:
        """Return the first jobs that failed in a run."""
        statement = select(LOG).where(LOG.c.run_id == run_id, LOG.c.action == "failed")
        with self._database.read() as connection:
            return [_log_entry(row) for row in connection.execute(statement.order_by(LOG.c.id).limit(limit))]

    def last_failures(self, job_ids: Sequence[str]) -> dict[str, str]:
        """Return why the last run that checked all jobs and ended failed to clean each of these jobs."""
        newest = select(RUNS.c.id).where(RUNS.c.finished_at.is_not(None), PLANNED_JOBS, BEGAN)
        last = newest.order_by(desc(RUNS.c.started_at), desc(func.coalesce(RUNS.c.number, 0))).limit(1)
        failed = select(LOG.c.job_id, LOG.c.message).where(
            LOG.c.run_id == last.scalar_subquery(), LOG.c.action == "failed"
        )
        messages: dict[str, str] = {}
        with self._database.read() as connection:
            for page in batched(job_ids, MOST_VALUES):
                rows = connection.execute(failed.where(LOG.c.job_id.in_(page)))
                messages |= {row.job_id: row.message for row in rows}
        return messages

    def cleaned_before(self, job_ids: Sequence[str]) -> dict[str, datetime]:
        """Return before which time the log has the last cleanup of each of these jobs.

        The time in a job's row has no zone, so it moves when ``database.timezone`` changes.
        """
        newest = select(LOG.c.job_id, func.max(LOG.c.timestamp)).where(
            LOG.c.action.in_(("cleaned", "trashed"))
        )
        times: dict[str, datetime] = {}
        with self._database.read() as connection:
            for page in batched(job_ids, MOST_VALUES):
                rows = connection.execute(newest.where(LOG.c.job_id.in_(page)).group_by(LOG.c.job_id))
                for job_id, timestamp in rows:
                    # Every program can write to the log: after a time that is none, all came back.
                    logged = read_timestamp(timestamp, UTC) or _LONG_AGO
                    times[job_id] = logged + timedelta(seconds=1)  # the log has whole seconds
        return times

    def log_entries(self, run_id: str) -> Iterable[LogEntry]:
        """Yield what a run did, in order.  Rows are read in pages, as a run can clean a million jobs."""
        after: int | None = 0
        while after is not None:
            entries, after = self.log_page(run_id, after, 500)
            yield from entries

    def add_log(
        self, connection: Connection, run_id: str, entries: Sequence[LogEntry], now: datetime
    ) -> None:
        """Add rows to ``cleanup_log``."""
        common = {"timestamp": utc_timestamp(now), "run_id": run_id}
        rows = [common | entry._asdict() for entry in entries]
        if rows:
            connection.execute(insert(LOG), rows)

    def clear_log(self, connection: Connection) -> int:
        """Delete all rows of ``cleanup_log``, and return their number."""
        return connection.execute(delete(LOG)).rowcount

    def add_audit(self, connection: Connection, lines: Sequence[AuditLine], user: str, now: datetime) -> None:
        """Add rows to ``cleanup_audit``, with sizes in whole MB."""
        timestamp = utc_timestamp(now)
        rows = [
            {
                "timestamp": timestamp,
                "job_id": line.job_id,
                "action": line.action,
                "space_freed_mb": round(line.bytes_freed / BYTES_PER_MB),
                "user": user,
            }
            for line in lines
        ]
        if rows:
            connection.execute(insert(AUDIT), rows)


def _log_entry(row: Any) -> LogEntry:
    texts = (str(value or "") for value in (row.job_id, row.status, row.action, row.message))
    job_id, status, action, message = texts
    return LogEntry(job_id, status, action, row.bytes_freed or 0, message, row.bytes_trashed or 0)
