"""Acknowledgements, which silence the warning about a kept job while its reason stays the same."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, insert, select

from eemtcleanupd.batches import batched
from eemtcleanupd.model import Acknowledgement
from eemtcleanupd.store.base import MOST_VALUES, Repository
from eemtcleanupd.store.tables import ACKNOWLEDGEMENTS
from eemtcleanupd.store.values import utc_timestamp


class Acknowledgements(Repository):
    """``cleanup_acknowledgements``, which a ledger from an earlier version does not have yet."""

    def acknowledgements(self, job_ids: Sequence[str]) -> dict[str, Acknowledgement]:
        """Return the acknowledgements of these jobs, whatever they are warned of now."""
        found: dict[str, Acknowledgement] = {}
        with self._database.read() as connection:
            if job_ids and self._has_table(connection):
                for page in batched(job_ids, MOST_VALUES):
                    statement = select(ACKNOWLEDGEMENTS).where(ACKNOWLEDGEMENTS.c.job_id.in_(page))
                    found |= {row.job_id: _acknowledgement(row) for row in connection.execute(statement)}
        return found

    def is_acknowledged(self, job_id: str, warning: str) -> bool:
        """Return whether the warning about a job, or about the orphan at a path, is acknowledged."""
        found = self.acknowledgements([job_id]).get(job_id)
        return found is not None and found.warning == warning

    def all_acknowledgements(self) -> list[Acknowledgement]:
        """Return all acknowledgements, ordered by job."""
        with self._database.read() as connection:
            if not self._has_table(connection):
                return []
            statement = select(ACKNOWLEDGEMENTS).order_by(ACKNOWLEDGEMENTS.c.job_id)
            return [_acknowledgement(row) for row in connection.execute(statement)]

    def count_acknowledgements(self) -> int:
        """Return the number of acknowledgements."""
        with self._database.read() as connection:
            if not self._has_table(connection):
                return 0
            return int(connection.execute(select(func.count()).select_from(ACKNOWLEDGEMENTS)).scalar_one())

    def acknowledge(self, acknowledgement: Acknowledgement, now: datetime) -> None:
        """Save an acknowledgement, and replace an earlier one of the same job."""

        def work(connection: Any) -> None:
            same_job = ACKNOWLEDGEMENTS.c.job_id == acknowledgement.job_id
            connection.execute(delete(ACKNOWLEDGEMENTS).where(same_job))
            connection.execute(
                insert(ACKNOWLEDGEMENTS).values(
                    job_id=acknowledgement.job_id,
                    warning=acknowledgement.warning,
                    reason=acknowledgement.reason,
                    owner=acknowledgement.owner,
                    created_at=utc_timestamp(now),
                )
            )

        self._database.write(work)

    def remove_acknowledgement(self, job_id: str) -> None:
        """Remove the acknowledgement of a job."""
        statement = delete(ACKNOWLEDGEMENTS).where(ACKNOWLEDGEMENTS.c.job_id == job_id)
        self._database.write(lambda connection: connection.execute(statement))

    def _has_table(self, connection: Any) -> bool:
        columns = self._database.ledger_columns(connection)
        return any(table == ACKNOWLEDGEMENTS.name for table, _ in columns)


def _acknowledgement(row: Any) -> Acknowledgement:
    # Every program can write to the database.
    reason, owner = str(row.reason or "no reason given"), str(row.owner or "unknown user")
    return Acknowledgement(str(row.job_id), str(row.warning), reason, owner)
