"""Table ``jobs``, which belongs to the EEMT web interface: what is read from it, and the little we add.

The web interface reads its rows by position, so columns are only ever appended.  A run may meet a table of
a million rows: what is due is found by one scan inside the database into a temporary table (of this
connection, in no file of theirs) and read back in pages, so that memory does not grow with the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo
from functools import cached_property
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Float,
    MetaData,
    RowMapping,
    Select,
    String,
    Table,
    Update,
    bindparam,
    column,
    inspect,
    literal_column,
    select,
    table,
    text,
    update,
)
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import Integer, NullType, TypeEngine

from eemtcleanupd.errors import StoreError
from eemtcleanupd.formatting import BYTES_PER_MB
from eemtcleanupd.model import Job, JobClass
from eemtcleanupd.policy.retention import TERMINAL, Policy
from eemtcleanupd.store.database import SCRATCH, Database, RawText, TempTablesLostError
from eemtcleanupd.store.timestamps import local_timestamp, read_timestamp

_ADDED_COLUMNS = {
    "data_cleaned_at": "time",
    "data_size_mb": "megabytes",
    "cleanup_summary": "text",
}
# The scan compares text, policy then decides exactly.  Times with a zone of their own may be read up to
# 26 hours away from the local one (a day and two hours lie between the farthest zones); without, a clock
# change is all that can come between.
_ANY_ZONE = timedelta(hours=27)
_CLOCK_CHANGE = timedelta(hours=2)
_LENGTHS_WITHOUT_ZONE = "(19, 23, 26)"  # seconds, milliseconds, microseconds
_PACK = 2**32
_SEVERAL = "several rows with one id"
_CANDIDATES = Table(
    "cleanup_candidates",
    MetaData(),
    Column("position", Integer, primary_key=True),
    Column("id", RawText),
    Column("later", Integer, nullable=False),
    Column("ended", RawText),
    schema=SCRATCH,
)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of ``jobs`` as it stands: the job, and whether its data has been cleaned."""

    job: Job
    cleaned: bool


@dataclass(frozen=True, slots=True)
class Backlog:
    """What one scan of the table says: terminal jobs not cleaned yet, and those worth a decision."""

    uncleaned: int
    candidates: int


@dataclass(slots=True)
class _Gathered:
    """Which candidates were gathered, on which connection, and how far they were read."""

    now: datetime
    failed_first: bool
    session: int = 0
    position: int = 0
    whole: bool = False
    last: Mapping[str, object] = field(default_factory=dict)


class JobTable:
    """The job table of one database.

    Args:
        database: where it is.
        policy: says which statuses are terminal and what can be due.
        zone: zone of times without one; None is the machine's (``database.timezone``).

    Raises:
        StoreError: there is no table ``jobs``, or it lacks a column that a decision needs.
    """

    def __init__(self, database: Database, policy: Policy, zone: tzinfo | None) -> None:
        self._database = database
        self._policy = policy
        self._zone = zone
        self._gathered: _Gathered | None = None
        self._reflect()

    def _reflect(self) -> None:
        database = self._database
        with database.read() as connection:
            columns = _columns(connection, database)
        names = list(columns)
        self._id = next((name for name in ("id", "job_id") if name in names), "")
        missing = [name for name in ("status", "completed_at") if name not in names]
        if not self._id or missing:
            absent = ", ".join(missing if self._id else ["id (or job_id)", *missing])
            raise StoreError(
                f"table jobs in {database.name} lacks {absent}: this is not an EEMT job database"
            )
        self.missing_columns = tuple(name for name in _ADDED_COLUMNS if name not in names)
        self._form_of_time = columns.get("data_cleaned_at", columns["completed_at"])
        self._ended = f"coalesce(replace({database.as_text('completed_at')}, 'T', ' '), '')"
        types: dict[str, TypeEngine[Any]] = {
            self._id: database.key_type(columns[self._id]),
            "dem_filename": database.key_type(String()),
            "data_size_mb": Float(),
            "cleanup_summary": String(),
        }
        # No Table: its statements would be remembered for it alone, and never found again.
        self._jobs = table("jobs", *(column(name, types.get(name, NullType())) for name in names))

    def add_columns(self) -> None:
        """Append the columns of ours that are missing (DESIGN, Job database)."""
        if not self.missing_columns:
            return

        def alter(connection: Connection) -> None:
            present = _columns(connection, self._database)
            for name in self.missing_columns:
                if name not in present:
                    form = self._database.added_column(_ADDED_COLUMNS[name], present["completed_at"])
                    connection.exec_driver_sql(f"ALTER TABLE jobs ADD COLUMN {name} {form}")

        self._database.write(alter)
        self._reflect()

    # -- what is due -------------------------------------------------------------------------------

    def backlog(self, now: datetime) -> Backlog:
        """Count, in one scan, the uncleaned terminal jobs and the rows that need a decision.

        A row needs one when it could be due at ``now`` (what is no ISO time at all orders outside the
        range, and needs one too), or when its status is unknown.
        """
        # Both counts in one sum: SQLite would evaluate the expression once for each.
        statement = f"SELECT coalesce(sum({self._verdict()}), 0) FROM jobs WHERE {self._uncleaned}"
        with self._database.read() as connection:
            packed = int(connection.execute(text(statement), self._parameters(now)).scalar_one())
        return Backlog(uncleaned=packed % _PACK, candidates=packed // _PACK)

    def gather_candidates(self, now: datetime, *, failed_first: bool = False) -> None:
        """Keep the keys of all rows that need a decision, oldest first, for :meth:`candidates`."""
        self._gathered = _Gathered(now, failed_first)
        self._gather(self._gathered)

    def _gather(self, gathered: _Gathered) -> None:
        """Fill the temporary table with what comes after the last key that was read."""
        schema, key = self._database.scratch_schema, self._database.as_text(self._id)
        later = f"CASE WHEN {self._is(JobClass.FAILED)} THEN 0 ELSE 1 END" if gathered.failed_first else "0"
        beyond = f"AND ({later}, {self._ended}, {key}) > (:later, :ended, :id)" if gathered.last else ""
        statement = text(
            f"INSERT INTO {schema}.cleanup_candidates (later, ended, id)"
            f" SELECT {later} AS first_key, {self._ended} AS second_key, {key} AS third_key FROM jobs"
            f" WHERE {self._uncleaned} AND {self._verdict()} >= {_PACK} {beyond}"
            " ORDER BY first_key, second_key, third_key"
        )
        values = {**self._parameters(gathered.now), **gathered.last}
        while True:
            try:
                with self._database.scratch() as connection:
                    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {schema}.cleanup_candidates")
                    _CANDIDATES.create(connection, checkfirst=False)
                    connection.execute(statement, values)
                    connection.commit()
                    gathered.session, gathered.position = self._database.session, 0
                gathered.whole = not gathered.last
                return
            except TempTablesLostError:
                continue

    def candidates(self, page_size: int) -> Iterator[list[Job]]:
        """Yield the gathered jobs in pages, oldest first, each as its row stands when the page is read."""
        gathered = self._gathered
        if gathered is None:
            return
        gathered.last, gathered.position = {}, 0
        if not gathered.whole:
            self._gather(gathered)
        while True:
            try:
                with self._database.scratch(gathered.session) as connection:
                    keys = connection.execute(
                        select(_CANDIDATES)
                        .where(_CANDIDATES.c.position > gathered.position)
                        .order_by(_CANDIDATES.c.position)
                        .limit(page_size)
                    ).all()
            except TempTablesLostError:
                self._gather(gathered)
                continue
            if not keys:
                return
            last = keys[-1]
            gathered.position = last.position
            gathered.last = {"later": last.later, "ended": last.ended, "id": last.id}
            with self._database.read() as connection:
                rows = self._rows_by_key(connection, [key.id for key in keys])
            yield [
                rows[key].job
                for key in (_as_text(key.id) for key in keys)
                if key in rows and not rows[key].cleaned
            ]

    def newest_successful(self, count: int) -> frozenset[str]:
        """Return the ids of the ``count`` newest uncleaned successful jobs (``keep_last``)."""
        if count == 0:
            return frozenset()
        jobs = self._jobs.c
        successful = [name for name, of in self._policy.statuses.items() if of is JobClass.SUCCESSFUL]
        statement = (
            self._select()
            .where(self._status.in_(successful), jobs.completed_at.is_not(None), text(self._uncleaned))
            .order_by(text(f"{self._ended} DESC"))
            .limit(count)
        )
        with self._database.read() as connection:
            return frozenset(self._row(row).job.id for row in connection.execute(statement).mappings())

    # -- single rows -------------------------------------------------------------------------------

    def rows(self, connection: Connection, ids: Iterable[str], *, lock: bool = False) -> dict[str, Row]:
        """Return the rows with these ids as they stand; an id that no row has is absent.

        With ``lock`` nobody else changes them before the transaction is over.
        """
        return self._rows_by_key(connection, list(ids), lock=lock)

    def naming(self, connection: Connection, dem_filenames: Sequence[str]) -> list[Row]:
        """Return all rows that name one of these uploads (a scan: the column has no index)."""
        if "dem_filename" not in self._jobs.c or not dem_filenames:
            return []
        statement = self._select().where(self._jobs.c.dem_filename.in_(dem_filenames))
        return [self._row(row) for row in connection.execute(statement).mappings()]

    def mark_cleaned(
        self, connection: Connection, jobs: Sequence[tuple[str, int, str]], now: datetime
    ) -> None:
        """Record in the rows of jobs (id, bytes, summary) that their data is gone."""
        at = self._database.local_time(now, local_timestamp(now, self._zone), self._form_of_time)
        rows = [
            {
                "which": job_id,
                "data_cleaned_at": at,
                "data_size_mb": size_bytes / BYTES_PER_MB,
                "cleanup_summary": summary,
            }
            for job_id, size_bytes, summary in jobs
        ]
        if rows:
            connection.execute(self._job_by_id, rows)

    @cached_property
    def _job_by_id(self) -> Update:
        """Built once: to build it costs more than to execute it."""
        column = self._jobs.c[self._id]
        return update(self._jobs).where(column == bindparam("which", type_=column.type))

    def mark_uncleaned(self, connection: Connection, job_id: str) -> None:
        """Record in the job's row that its data is there again; its size stays as it was measured."""
        connection.execute(
            update(self._jobs)
            .where(self._jobs.c[self._id] == job_id)
            .values(data_cleaned_at=None, cleanup_summary=None)
        )

    def mark_all_uncleaned(self, connection: Connection) -> int:
        """Record in all rows that their data has not been cleaned; returns how many said so before."""
        cleaned = self._jobs.c.data_cleaned_at.is_not(None)
        values = {"data_cleaned_at": None, "cleanup_summary": None}
        return connection.execute(update(self._jobs).where(cleaned).values(values)).rowcount

    def set_size(self, connection: Connection, job_id: str, size_bytes: int) -> None:
        """Record the measured size of a job that still has its data."""
        connection.execute(
            update(self._jobs)
            .where(self._jobs.c[self._id] == job_id, text(self._uncleaned))
            .values(data_size_mb=size_bytes / BYTES_PER_MB)
        )

    # -- inside ------------------------------------------------------------------------------------

    @property
    def id_column(self) -> str:
        """The name of the id column: ``id`` or ``job_id``."""
        return self._id

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of all columns that the table has."""
        return tuple(self._jobs.c.keys())

    @property
    def has_uploads(self) -> bool:
        """Whether rows name an upload at all."""
        return "dem_filename" in self._jobs.c

    @property
    def uncleaned(self) -> str:
        """SQL that is true for a row whose data has not been cleaned."""
        return self._uncleaned

    @property
    def _uncleaned(self) -> str:
        return "true" if "data_cleaned_at" in self.missing_columns else "data_cleaned_at IS NULL"

    def _verdict(self) -> str:
        """SQL: 0 nothing to decide, 1 terminal but surely not due, +2**32 needs a decision."""
        ended = f"coalesce({self._database.as_text('completed_at')}, '')"
        cases = " ".join(
            f"WHEN {self._is(job_class)} THEN CASE"
            f" WHEN {ended} BETWEEN :surely_{job_class} AND :latest THEN 1"
            f" WHEN {ended} BETWEEN :young_{job_class} AND :latest"
            f" AND length({ended}) IN {_LENGTHS_WITHOUT_ZONE} THEN 1 ELSE {_PACK + 1} END"
            for job_class in TERMINAL
        )
        return f"CASE {cases} WHEN {self._is(JobClass.LIVE)} THEN 0 ELSE {_PACK} END"

    def _is(self, job_class: JobClass) -> str:
        # Not IN, which SQLite looks up in a table: the first comparison matches most rows.
        status = self._database.as_text("status")
        names = [f"{status} = :{job_class}{at}" for at, _ in enumerate(self._statuses(job_class))]
        return f"({' OR '.join(names)})" if names else "false"

    def _parameters(self, now: datetime) -> Mapping[str, object]:
        """Return the values of :meth:`_verdict`: what ended later than these times is not due.

        The times have a ``T``: of the same day a time with a space orders before it, so it is decided about.
        """
        # Half a century ahead no job can have ended; what orders behind it ("23/11/2026") is no ISO time.
        values: dict[str, object] = {"latest": str(now.year + 50)}
        for job_class in TERMINAL:
            due = now - self._policy.shortest(job_class)
            values[f"young_{job_class}"] = local_timestamp(due + _CLOCK_CHANGE, self._zone)[:19]
            values[f"surely_{job_class}"] = local_timestamp(due + _ANY_ZONE, self._zone)[:19]
        for job_class in (*TERMINAL, JobClass.LIVE):
            values |= {f"{job_class}{at}": name for at, name in enumerate(self._statuses(job_class))}
        return values

    def _statuses(self, *classes: JobClass) -> list[str]:
        return [status for status, job_class in self._policy.statuses.items() if job_class in classes]

    def _select(self) -> Select[Any]:
        wanted = (
            self._id,
            "status",
            "workflow_type",
            "completed_at",
            "dem_filename",
            "parameters",
            "data_cleaned_at",
        )
        # As text: a server's database may have times, JSON or enumerations there.
        found: list[ColumnElement[Any]] = [
            literal_column(self._database.as_text(name)).label(name)
            for name in wanted
            if name in self._jobs.c
        ]
        return select(*found).select_from(self._jobs)

    @property
    def _status(self) -> ColumnElement[str]:
        return literal_column(self._database.as_text("status"), RawText())

    def _rows_by_key(
        self, connection: Connection, keys: Sequence[object], *, lock: bool = False
    ) -> dict[str, Row]:
        found: dict[str, Row] = {}
        ids = [_as_text(key) for key in keys]
        for start in range(0, len(ids), 500):  # well under SQLite's limit of bound variables
            statement = self._select().where(self._jobs.c[self._id].in_(ids[start : start + 500]))
            if lock:  # of a server; who writes to a SQLite file has it for itself
                statement = statement.with_for_update(key_share=True)
            for mapping in connection.execute(statement).mappings():
                row = self._row(mapping)
                if row.job.id in found:  # a column job_id need not be unique: in doubt, keep
                    row = Row(replace(row.job, status=_SEVERAL), cleaned=False)
                found[row.job.id] = row
        return found

    def _row(self, row: RowMapping) -> Row:
        def optional_text(name: str) -> str | None:
            value = row.get(name)
            return None if value is None else _as_text(value)

        job = Job(
            id=_as_text(row[self._id]),
            status=_as_text(row["status"]),
            workflow_type=optional_text("workflow_type"),
            completed_at=read_timestamp(row["completed_at"], self._zone),
            dem_filename=optional_text("dem_filename"),
            parameters=optional_text("parameters"),
        )
        return Row(job, cleaned=row.get("data_cleaned_at") is not None)


def _as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value)


def _columns(connection: Connection, database: Database) -> dict[str, TypeEngine[Any]]:
    inspector = inspect(connection)
    if not inspector.has_table("jobs"):
        raise StoreError(f"{database.name} has no table jobs: this is not an EEMT job database")
    return {column["name"]: column["type"] for column in inspector.get_columns("jobs")}
