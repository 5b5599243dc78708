"""The jobs that must stay."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from eemtcleanupd.model import Hold
from eemtcleanupd.store.base import MOST_VALUES, Repository, read_utc
from eemtcleanupd.store.tables import HOLDS
from eemtcleanupd.store.timestamps import utc_timestamp


class Holds(Repository):
    """``cleanup_holds``."""

    def holds(self, connection: Connection, job_ids: Sequence[str]) -> dict[str, Hold]:
        """Return the holds, active or not, on these jobs."""
        found: dict[str, Hold] = {}
        for start in range(0, len(job_ids), MOST_VALUES):
            some = HOLDS.c.job_id.in_(job_ids[start : start + MOST_VALUES])
            for row in connection.execute(select(HOLDS).where(some)):
                found[row.job_id] = _hold(row)
        return found

    def all_holds(self) -> list[Hold]:
        """Return all holds, active or not, by job."""
        with self._database.read() as connection:
            rows = connection.execute(select(HOLDS).order_by(HOLDS.c.job_id)).all()
        return [_hold(row) for row in rows]

    def hold(self, hold: Hold, now: datetime) -> None:
        """Set a hold, in place of an earlier one on the same job."""
        self._database.write(lambda connection: self.set_hold(connection, hold, now))

    def set_hold(self, connection: Connection, hold: Hold, now: datetime) -> None:
        """Set a hold in a transaction, in place of an earlier one on the same job."""
        connection.execute(delete(HOLDS).where(HOLDS.c.job_id == hold.job_id))
        connection.execute(
            insert(HOLDS).values(
                job_id=hold.job_id,
                reason=hold.reason,
                owner=hold.owner,
                until=None if hold.until is None else utc_timestamp(hold.until),
                created_at=utc_timestamp(now),
            )
        )

    def release(self, job_id: str) -> bool:
        """Take a hold off; False when there was none."""
        return self._database.write(
            lambda c: c.execute(delete(HOLDS).where(HOLDS.c.job_id == job_id)).rowcount > 0
        )


def _hold(row: Any) -> Hold:
    """Return the hold that a row is; one that was set by hand in SQL may say neither why nor who."""
    reason, owner = str(row.reason or "no reason given"), str(row.owner or "somebody")
    return Hold(row.job_id, reason, owner, read_utc(row.until))
