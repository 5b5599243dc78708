"""Our own tables: what was intended, what was done, by whom, and what is held.

An intent is written before the first file moves and is deleted in the transaction that records the job as
cleaned, so open intents are exactly the work that an interrupted run left.  Times are UTC in the form of
SQLite's CURRENT_TIMESTAMP; only ``jobs.data_cleaned_at`` follows the web interface's own form.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Column, Connection, Table, text
from sqlalchemy.schema import CreateColumn

from eemtcleanupd.events import StorageState
from eemtcleanupd.model import JobClass
from eemtcleanupd.store.history import History
from eemtcleanupd.store.holds import Holds
from eemtcleanupd.store.intents import Intents
from eemtcleanupd.store.roots import Roots
from eemtcleanupd.store.runs import Runs
from eemtcleanupd.store.tables import METADATA, ROOTS
from eemtcleanupd.store.usage import UsageTables


class Ledger(Runs, Intents, History, UsageTables, Holds, Roots):
    """Our tables in the job database.  Nothing is created until :meth:`create_tables`."""

    def exists(self) -> bool:
        """Tell whether the tables are there, without making them (a dry run changes nothing)."""
        with self._database.read() as connection:
            return any(table == ROOTS.name for table, _ in self._database.ledger_columns(connection))

    def create_tables(self) -> None:
        """Create what is missing, also columns that an earlier version did not have."""
        if self.is_current():
            return

        def work(connection: Connection) -> None:
            METADATA.create_all(connection)
            for table, column in self._missing(connection):
                definition = CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {definition}"))

        self._database.write(work)

    def is_current(self) -> bool:
        """Tell whether all our tables are there with all their columns."""
        with self._database.read() as connection:
            return not any(self._missing(connection))

    def _missing(self, connection: Connection) -> list[tuple[Table, Column[Any]]]:
        there = self._database.ledger_columns(connection)
        return [
            (table, column)
            for table in METADATA.tables.values()
            for column in table.columns
            if (table.name, column.name) not in there
        ]

    def storage_state(self, now: datetime, free_bytes: int, total_bytes: int) -> StorageState:
        """Return what the jobs hold, with the trend of 90 days."""
        held = self.storage_by_class()
        trash_jobs, trash_bytes, _ = self.trash_summary()
        return StorageState(
            successful_bytes=held.get(JobClass.SUCCESSFUL, (0, 0))[1],
            failed_bytes=held.get(JobClass.FAILED, (0, 0))[1],
            free_bytes=free_bytes,
            total_bytes=total_bytes,
            trash_jobs=trash_jobs,
            trash_bytes=trash_bytes,
            trend=self.trend(now),
        )
