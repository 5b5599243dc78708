"""Holds, which protect jobs from cleanup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from eemtcleanupd.batches import batched
from eemtcleanupd.model import Hold
from eemtcleanupd.store.base import MOST_VALUES, VALUES, Repository, read_utc
from eemtcleanupd.store.tables import HOLDS
from eemtcleanupd.store.values import utc_timestamp

_NO_REASON = "no reason given"
_OF_JOBS = select(HOLDS).where(HOLDS.c.job_id.in_(VALUES))


class Holds(Repository):
    """``cleanup_holds``."""

    def holds(self, connection: Connection, job_ids: Sequence[str]) -> dict[str, Hold]:
        """Return the holds on these jobs, active or not."""
        holds: dict[str, Hold] = {}
        for page in batched(job_ids, MOST_VALUES):
            for row in connection.execute(_OF_JOBS, {"values": page}):
                holds[row.job_id] = _hold(row)
        return holds

    def all_holds(self) -> list[Hold]:
        """Return all holds, active or not, ordered by job."""
        with self._database.read() as connection:
            rows = connection.execute(select(HOLDS).order_by(HOLDS.c.job_id)).all()
        return [_hold(row) for row in rows]

    def hold(self, hold: Hold, now: datetime) -> tuple[Hold, Hold | None]:
        """Set a hold; see :meth:`set_hold`."""
        return self._database.write(lambda connection: self.set_hold(connection, hold, now))

    def set_hold(self, connection: Connection, hold: Hold, now: datetime) -> tuple[Hold, Hold | None]:
        """Set a hold in an open transaction; without a reason, that of the active hold on the job stays.

        Returns:
            The hold as it is now, and the active one that it replaces, if any.
        """
        earlier = self.holds(connection, [hold.job_id]).get(hold.job_id)
        replaced = earlier if earlier is not None and earlier.is_active(now) else None
        reason = hold.reason or (_NO_REASON if replaced is None else replaced.reason)
        hold = replace(hold, reason=reason)
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
        return hold, replaced

    def release(self, job_id: str) -> bool:
        """Remove a hold.  Return False if there was none."""
        return self._database.write(
            lambda c: c.execute(delete(HOLDS).where(HOLDS.c.job_id == job_id)).rowcount > 0
        )


def _hold(row: Any) -> Hold:
    # A hold that was set with SQL can lack the reason and the owner, and have bytes as the id.
    reason, owner = str(row.reason or _NO_REASON), str(row.owner or "unknown user")
    return Hold(str(row.job_id), reason, owner, read_utc(row.until))
