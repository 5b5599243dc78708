"""The ledger: this program's tables of runs, intents, holds, acknowledgements, usage, history and roots."""

from __future__ import annotations

from collections.abc import Sequence, Set
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    DefaultClause,
    Subquery,
    Table,
    cast,
    false,
    null,
    select,
    text,
)
from sqlalchemy.schema import CreateColumn

from eemtcleanupd.events import StorageState
from eemtcleanupd.model import JobClass
from eemtcleanupd.store.acknowledgements import Acknowledgements
from eemtcleanupd.store.audit_anchors import AuditAnchors
from eemtcleanupd.store.history import History
from eemtcleanupd.store.holds import Holds
from eemtcleanupd.store.intents import Intents
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.roots import Roots
from eemtcleanupd.store.runs import Runs
from eemtcleanupd.store.tables import METADATA, ROOTS
from eemtcleanupd.store.usage import UsageTables


class Ledger(Runs, Intents, History, AuditAnchors, UsageTables, Holds, Acknowledgements, Roots):
    """The ledger in the job database.  No table is created before :meth:`create_tables`."""

    def exists(self) -> bool:
        """Return whether the tables exist, without creating them (a dry run changes nothing).

        Afterwards all queries work, also if an earlier version created the tables.
        """
        with self._database.read() as connection:
            existing = self._database.ledger_columns(connection)
        if not any(table == ROOTS.name for table, _ in existing):
            return False
        self._database.read_instead(_stand_ins(existing))
        return True

    def create_tables(self, jobs: JobTable | None = None) -> Set[Table]:
        """Create missing tables, missing columns of tables from an earlier version, and those of ``jobs``.

        Returns:
            The tables that are new.
        """

        def work(connection: Connection) -> Set[Table]:
            new, columns = self._missing(connection)
            METADATA.create_all(connection, new, checkfirst=False)
            for column in columns:
                definition = CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(text(f"ALTER TABLE {column.table.name} ADD COLUMN {definition}"))
            if jobs is not None:
                jobs.add_columns(connection)
            return set(new)

        created: Set[Table] = set()
        if (jobs is not None and jobs.missing_columns) or not self.is_current():
            created = self._database.write(work)
            if jobs is not None:
                jobs.reflect()
        self._database.read_instead({})
        return created

    def is_current(self) -> bool:
        """Return whether all tables exist with all their columns."""
        with self._database.read() as connection:
            return not any(self._missing(connection))

    def _missing(self, connection: Connection) -> tuple[Sequence[Table], Sequence[Column[Any]]]:
        """Return the tables that do not exist, and the columns that the other tables lack.

        The order is always the same: two programs that create tables could wait for each other otherwise.
        """
        existing = self._database.ledger_columns(connection)
        names = {name for name, _ in existing}
        new = [table for table in METADATA.tables.values() if table.name not in names]
        others = [table for table in METADATA.tables.values() if table not in new]
        return new, [
            column
            for table in others
            for column in table.columns
            if (table.name, column.name) not in existing
        ]

    def storage_state(self, now: datetime, free_bytes: int, total_bytes: int) -> StorageState:
        """Return the storage usage of jobs and trash, with the trend of 90 days."""
        usage = self.storage_by_class()
        trash_jobs, trash_bytes, purge_at = self.trash_summary()
        return StorageState(
            successful_bytes=usage.get(JobClass.SUCCESSFUL, (0, 0))[1],
            failed_bytes=usage.get(JobClass.FAILED, (0, 0))[1],
            free_bytes=free_bytes,
            total_bytes=total_bytes,
            trash_jobs=trash_jobs,
            trash_bytes=trash_bytes,
            trash_purge_at=purge_at,
            trend=self.trend(now),
        )


def _stand_ins(existing: set[tuple[str, str]]) -> dict[str, Subquery]:
    """Return what to read in place of the tables that an earlier version lacks, or lacks columns of.

    A missing column has its default in every row, and a missing table has no rows.
    """
    stand_ins = {}
    for table in METADATA.tables.values():
        present = [column for column in table.columns if (table.name, column.name) in existing]
        if len(present) == len(table.columns):
            continue
        columns = (column if column in present else _default(column) for column in table.columns)
        query = select(*columns) if present else select(*map(_default, table.columns)).where(false())
        stand_ins[table.name] = query.subquery(table.name)
    return stand_ins


def _default(column: Column[Any]) -> ColumnElement[Any]:
    default = column.server_default
    value = default.arg if isinstance(default, DefaultClause) else null()
    return cast(value, column.type).label(column.name)
