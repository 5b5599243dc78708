"""The jobs that need a decision, collected by one scan in a temporary table and read back in pages.

The table belongs to one connection.  If that is lost, the rest is collected again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Column, MetaData, Table, select, text
from sqlalchemy.types import Integer

from eemtcleanupd.model import JobClass
from eemtcleanupd.store.database import SCRATCH, Database, TempTablesLostError
from eemtcleanupd.store.expiry_filter import NEEDS_DECISION, ExpiryFilter
from eemtcleanupd.store.values import RawText, as_text

_CANDIDATES = Table(
    "cleanup_candidates",
    MetaData(),
    Column("position", Integer, primary_key=True),
    Column("id", RawText),
    Column("later", Integer, nullable=False),
    Column("ended", RawText),
    schema=SCRATCH,
)


@dataclass(slots=True)
class _Scan:
    """The candidates of one scan, the connection of their temporary table, and how far they were read."""

    now: datetime
    failed_first: bool
    session: int = 0
    position: int = 0
    is_complete: bool = False
    last: Mapping[str, object] = field(default_factory=dict)


class Candidates:
    """The candidates of the latest scan.

    Args:
        database: the job database.
        expiry: SQL that finds the rows that need a decision.
        uncleaned: returns SQL that is true for a row whose data has not been cleaned.
        key: SQL of the id as text.
        ended: SQL of the end as text.
    """

    def __init__(
        self, database: Database, expiry: ExpiryFilter, uncleaned: Callable[[], str], *, key: str, ended: str
    ) -> None:
        self._database = database
        self._filter = expiry
        self._uncleaned = uncleaned
        self._key = key
        self._ended = ended
        self._scan: _Scan | None = None

    def gather(self, now: datetime, *, failed_first: bool = False) -> None:
        """Collect the ids of all jobs that need a decision, oldest first, for :meth:`pages`."""
        self._scan = _Scan(now, failed_first)
        self._fill(self._scan)

    def _fill(self, scan: _Scan) -> None:
        """Fill the temporary table with the rows after the last id that was read."""
        schema, key = self._database.scratch_schema, self._key
        is_failed = self._filter.status_is(JobClass.FAILED)
        later = f"CASE WHEN {is_failed} THEN 0 ELSE 1 END" if scan.failed_first else "0"
        beyond = f"AND ({later}, {self._ended}, {key}) > (:later, :ended, :id)" if scan.last else ""
        statement = text(
            f"INSERT INTO {schema}.cleanup_candidates (later, ended, id)"
            f" SELECT {later} AS first_key, {self._ended} AS second_key, {key} AS third_key FROM jobs"
            f" WHERE {self._uncleaned()} AND {self._filter.verdict} >= {NEEDS_DECISION} {beyond}"
            " ORDER BY first_key, second_key, third_key"
        )
        values = {**self._filter.parameters(scan.now), **scan.last}
        while True:
            try:
                with self._database.scratch() as connection:
                    self._database.create_scratch(connection, _CANDIDATES)
                    connection.execute(statement, values)
                    connection.commit()
                    scan.session, scan.position = self._database.session, 0
                scan.is_complete = not scan.last
                return
            except TempTablesLostError:
                continue

    def pages(self, page_size: int) -> Iterator[list[str]]:
        """Yield the collected ids in pages, oldest first."""
        scan = self._scan
        if scan is None:
            return
        scan.last, scan.position = {}, 0
        if not scan.is_complete:
            self._fill(scan)
        while True:
            try:
                with self._database.scratch(scan.session) as connection:
                    keys = connection.execute(
                        select(_CANDIDATES)
                        .where(_CANDIDATES.c.position > scan.position)
                        .order_by(_CANDIDATES.c.position)
                        .limit(page_size)
                    ).all()
            except TempTablesLostError:
                self._fill(scan)
                continue
            if not keys:
                return
            last = keys[-1]
            scan.position = last.position
            scan.last = {"later": last.later, "ended": last.ended, "id": last.id}
            yield [as_text(key.id) for key in keys]
