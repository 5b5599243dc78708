"""What was done with the jobs: the log of each run, and the audit table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select

from eemtcleanupd.formatting import BYTES_PER_MB
from eemtcleanupd.store.base import Repository
from eemtcleanupd.store.tables import AUDIT, LOG
from eemtcleanupd.store.timestamps import utc_timestamp


@dataclass(frozen=True, slots=True)
class LogEntry:
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

    def log_entries(self, run_id: str) -> Iterable[LogEntry]:
        """Yield what a run did, in order.  Rows are read in pages, as a run can clean a million jobs."""
        after = 0
        columns = LOG.c
        while True:
            statement = (
                select(LOG)
                .where(columns.run_id == run_id, columns.id > after)
                .order_by(columns.id)
                .limit(500)
            )
            with self._database.read() as connection:
                rows = connection.execute(statement).all()
            if not rows:
                return
            after = rows[-1].id
            for row in rows:
                yield LogEntry(
                    row.job_id, row.status, row.action, row.bytes_freed, row.message, row.bytes_trashed or 0
                )

    def add_log(
        self, connection: Connection, run_id: str, entries: Sequence[LogEntry], now: datetime
    ) -> None:
        """Add rows to ``cleanup_log``."""
        rows = [{"timestamp": utc_timestamp(now), "run_id": run_id, **asdict(entry)} for entry in entries]
        if rows:
            connection.execute(insert(LOG), rows)

    def clear_log(self, connection: Connection) -> int:
        """Delete all rows of ``cleanup_log``, and return their number."""
        return connection.execute(delete(LOG)).rowcount

    def add_audit(self, connection: Connection, lines: Sequence[AuditLine], user: str, now: datetime) -> None:
        """Add rows to ``cleanup_audit``, with sizes in whole MB."""
        rows = [
            {
                "timestamp": utc_timestamp(now),
                "job_id": line.job_id,
                "action": line.action,
                "space_freed_mb": round(line.bytes_freed / BYTES_PER_MB),
                "user": user,
            }
            for line in lines
        ]
        if rows:
            connection.execute(insert(AUDIT), rows)
