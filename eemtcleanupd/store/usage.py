"""Measured sizes of jobs that have their data, and the history of storage usage."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, delete, func, insert, select

from eemtcleanupd.batches import batched
from eemtcleanupd.events import CapacityWarning, StoragePoint
from eemtcleanupd.model import JobClass
from eemtcleanupd.policy.capacity import Budget, BudgetLevel
from eemtcleanupd.store.base import MOST_VALUES, VALUES, Repository, corruption_guard
from eemtcleanupd.store.tables import SIZES, STORAGE
from eemtcleanupd.store.values import utc_timestamp

_MEASURED = select(SIZES.c.job_id, SIZES.c.bytes).where(SIZES.c.job_id.in_(VALUES))


class UsageTables(Repository):
    """``cleanup_sizes`` and ``cleanup_storage``."""

    def measured(self, connection: Connection, job_ids: Sequence[str]) -> dict[str, int]:
        """Return the measured bytes by job id, for jobs that still have their data.

        What is no size is left out: the job is measured again.
        """
        sizes: dict[str, int] = {}
        for page in batched(job_ids, MOST_VALUES):
            sizes |= {
                row.job_id: row.bytes
                for row in connection.execute(_MEASURED, {"values": page})
                if isinstance(row.bytes, int) and row.bytes >= 0
            }
        return sizes

    def set_measured(
        self, connection: Connection, job_id: str, job_class: JobClass, size_bytes: int, now: datetime
    ) -> None:
        """Save the size of a job that still has its data."""
        connection.execute(delete(SIZES).where(SIZES.c.job_id == job_id))
        connection.execute(
            insert(SIZES).values(
                job_id=job_id, status_class=job_class, bytes=size_bytes, measured_at=utc_timestamp(now)
            )
        )

    def forget_measured(self, connection: Connection, job_ids: Sequence[str]) -> None:
        """Delete the sizes of jobs whose data was cleaned."""
        if job_ids:
            connection.execute(delete(SIZES).where(SIZES.c.job_id.in_(job_ids)))

    def storage_by_class(self) -> dict[str, tuple[int, int]]:
        """Return the number of measured jobs with data and their bytes, by class of status."""
        grouped = select(SIZES.c.status_class, func.count(), func.sum(SIZES.c.bytes)).group_by(
            SIZES.c.status_class
        )
        with self._database.read() as connection, corruption_guard("cleanup_sizes"):
            return {row[0]: (row[1], int(row[2] or 0)) for row in connection.execute(grouped)}

    def add_storage_sample(
        self,
        run_id: str | None,
        free_bytes: int,
        total_bytes: int,
        now: datetime,
        budget: Budget | None = None,
    ) -> CapacityWarning | None:
        """Add a point to the storage history: measured bytes by class, and the results filesystem.

        Returns:
            A warning if usage reached a higher budget level since the previous point.
        """

        def work(connection: Connection) -> CapacityWarning | None:
            grouped = select(SIZES.c.status_class, func.sum(SIZES.c.bytes)).group_by(SIZES.c.status_class)
            used = {row[0]: row[1] for row in connection.execute(grouped)}
            with corruption_guard("cleanup_sizes"):
                successful, failed = (
                    int(used.get(name) or 0) for name in (JobClass.SUCCESSFUL, JobClass.FAILED)
                )
            held = successful + failed
            latest = select(STORAGE.c.capacity_level).order_by(STORAGE.c.id.desc()).limit(1)
            last = connection.execute(latest).scalar()
            before = BudgetLevel(last) if last in set(BudgetLevel) else BudgetLevel.WITHIN
            level = BudgetLevel.WITHIN if budget is None else budget.level(held, before)
            connection.execute(
                insert(STORAGE).values(
                    timestamp=utc_timestamp(now),
                    run_id=run_id,
                    successful_bytes=successful,
                    failed_bytes=failed,
                    free_bytes=free_bytes,
                    total_bytes=total_bytes,
                    capacity_level=int(level),
                )
            )
            if budget is None or level <= before:
                return None
            return CapacityWarning(held, budget.max_bytes, budget.warn_percent)

        return self._database.write(work)

    def trend(self, now: datetime) -> tuple[StoragePoint, ...]:
        """Return the storage history of 90 days, with the last point of each day."""
        day = func.substr(STORAGE.c.timestamp, 1, 10)
        newest = (
            select(func.max(STORAGE.c.id))
            .where(STORAGE.c.timestamp >= utc_timestamp(now - timedelta(days=90)))
            .group_by(day)
        )
        columns = STORAGE.c
        statement = (
            select(columns.timestamp, columns.successful_bytes, columns.failed_bytes, columns.free_bytes)
            .where(columns.id.in_(newest))
            .order_by(columns.id)
        )
        with self._database.read() as connection:
            points = connection.execute(statement).all()
        with corruption_guard("cleanup_storage"):
            return tuple(
                StoragePoint(
                    datetime.fromisoformat(point.timestamp).replace(tzinfo=UTC),
                    int(point.successful_bytes) + int(point.failed_bytes),
                    int(point.free_bytes),
                )
                for point in points
            )
