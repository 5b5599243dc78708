"""Table ``jobs`` of the EEMT web interface: reading jobs, and marking them as cleaned.

The web interface reads its rows by position, so columns are only ever appended.  The table can have a million
rows, so memory must not grow with it.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from functools import cached_property, lru_cache, partial
from typing import Any

from sqlalchemy import (
    BindParameter,
    Connection,
    Float,
    Select,
    String,
    Update,
    and_,
    bindparam,
    column,
    exc,
    func,
    inspect,
    literal_column,
    not_,
    null,
    or_,
    select,
    table,
    text,
    update,
)
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import NullType, TypeEngine

from eemtcleanupd.batches import batched
from eemtcleanupd.errors import NoDatabaseError, RowError, StoreError
from eemtcleanupd.events import DatabaseSummary
from eemtcleanupd.formatting import BYTES_PER_MB, printable
from eemtcleanupd.model import Job, JobClass
from eemtcleanupd.policy.breakers import ObservedStart
from eemtcleanupd.policy.ownership import folded
from eemtcleanupd.policy.retention import FIRST_YEAR, TERMINAL, Policy
from eemtcleanupd.store.base import MOST_VALUES, VALUES
from eemtcleanupd.store.candidates import Candidates
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.expiry_filter import NEEDS_DECISION, ExpiryFilter
from eemtcleanupd.store.newest_jobs import NewestJobs
from eemtcleanupd.store.values import (
    ROW_COLUMNS,
    CleanupRecord,
    JobFilter,
    JobRows,
    RawText,
    Row,
    as_text,
    local_timestamp,
    read_observed_start,
    read_record,
    read_row,
    read_timestamp,
)

_ADDED_COLUMNS = {
    "data_cleaned_at": "time",
    "data_size_mb": "megabytes",
    "cleanup_summary": "text",
}
_OBSERVED_ROWS = 50
# More than a plan reads ahead.
_REMEMBERED_ROWS = 12_000
# A list of jobs reads no more rows for one page, so that a filter that few jobs pass is as fast.
_ROWS_PER_SEARCH = 10_000
# A list shows no more rows that share an id.
_MOST_ALIKE = 200
# A SQLite statement can have 32,766 values (https://www.sqlite.org/limits.html).
_NAMES_PER_SCAN = 20_000
# No status, time or name of a file that makes sense is longer.
_MOST_CHARACTERS = 10_000
_DUPLICATE_ID = "several rows with one id"


@dataclass(frozen=True, slots=True)
class Backlog:
    """The number of uncleaned terminal jobs, and of jobs that need a decision."""

    uncleaned: int
    candidates: int


class JobTable:
    """The job table of one database.

    Args:
        database: the job database.
        policy: classifies statuses and sets the retention.
        zone: zone of times without one, or None for the machine's (``database.timezone``).
        has_parameters: whether jobs have their parameters, which can be large.

    Raises:
        StoreError: table ``jobs`` is missing, or lacks a required column.
    """

    def __init__(
        self, database: Database, policy: Policy, zone: tzinfo | None, *, has_parameters: bool = True
    ) -> None:
        self._database = database
        self._zone = zone
        self._has_parameters = has_parameters
        # A run reads each row several times.  Parameters are too large to remember.
        self._convert = partial(read_row, zone)
        self._row = self._convert if has_parameters else lru_cache(_REMEMBERED_ROWS)(self._convert)
        self._filter = ExpiryFilter(database, policy, zone)
        self.reflect()
        self._candidates = Candidates(
            database,
            self._filter,
            lambda: self.uncleaned,
            key=database.as_text(self._id),
            ended=self._ended,
        )

    def reflect(self) -> None:
        """Read which columns the table has."""
        database = self._database
        with database.read() as connection:
            columns = _columns(connection, database)
        names = list(columns)
        self._id = next((name for name in ("id", "job_id") if name in names), "")
        missing = [name for name in ("status", "completed_at") if name not in names]
        if not self._id or missing:
            absent = ", ".join(missing if self._id else ["id (or job_id)", *missing])
            raise StoreError(
                f"Table jobs in {database.name} lacks {absent}. This is not an EEMT job database."
            )
        self.missing_columns = tuple(name for name in _ADDED_COLUMNS if name not in names)
        self._time_type = columns.get("data_cleaned_at", columns["completed_at"])
        self._ended = f"coalesce(replace({database.as_text('completed_at')}, 'T', ' '), '')"
        types: dict[str, TypeEngine[Any]] = {
            self._id: database.key_type(columns[self._id]),
            "dem_filename": database.key_type(columns.get("dem_filename", String())),
            "data_size_mb": Float(),
            "cleanup_summary": String(),
        }
        # SQLAlchemy caches statements per Table object, so a Table here would make the cache useless.
        self._jobs = table("jobs", *(column(name, types.get(name, NullType())) for name in names))
        self._by_id = self._select().where(self._has_key())

    def add_columns(self, connection: Connection) -> None:
        """Append the missing columns of this program, in a transaction; then :meth:`reflect`."""
        present = _columns(connection, self._database)
        for name, kind in _ADDED_COLUMNS.items():
            if name not in present:
                form = self._database.added_column(kind, present["completed_at"])
                connection.exec_driver_sql(f"ALTER TABLE jobs ADD COLUMN {name} {form}")

    def count(self) -> int:
        """Return how many rows the table has; quicker than :meth:`summary`."""
        with self._database.read() as connection:
            return int(connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar_one())

    def summary(self) -> DatabaseSummary:
        """Return how many rows the table has, and when the last job ended."""
        # Compared as text, so a zone of its own can hide a later end.  Text that is no time does not count.
        newest = f"max(CASE WHEN {self._ended} BETWEEN '{FIRST_YEAR}' AND '3' THEN {self._ended} END)"
        with self._database.read() as connection:
            rows, last = connection.exec_driver_sql(f"SELECT count(*), {newest} FROM jobs").one()
        return DatabaseSummary(self._database.name, int(rows), read_timestamp(last, self._zone))

    # -- candidates --------------------------------------------------------------------------------

    def backlog(self, now: datetime) -> Backlog:
        """Count, in one scan, the uncleaned terminal jobs and the jobs that need a decision.

        A job needs a decision if it might be expired at ``now``, or its status is unknown.  An invalid
        ``completed_at`` orders outside the range of ISO times and needs one too.
        """
        # Both counts are in one sum because SQLite would evaluate the expression once for each count.
        statement = f"SELECT coalesce(sum({self._filter.verdict}), 0) FROM jobs WHERE {self.uncleaned}"
        with self._database.read() as connection:
            packed = int(connection.execute(text(statement), self._filter.parameters(now)).scalar_one())
        return Backlog(uncleaned=packed % NEEDS_DECISION, candidates=packed // NEEDS_DECISION)

    def gather_candidates(self, now: datetime, *, failed_first: bool = False) -> None:
        """Collect the ids of all jobs that need a decision, oldest first, for :meth:`candidates`."""
        self._candidates.gather(now, failed_first=failed_first)

    def candidates(self, page_size: int) -> Iterator[list[Job]]:
        """Yield the collected jobs in pages, oldest first, each as its row is when the page is read."""
        for ids in self._candidates.pages(page_size):
            with self._database.read() as connection:
                rows = self.rows(connection, ids)
            yield [rows[job_id].job for job_id in ids if job_id in rows and not rows[job_id].cleaned]

    def newest_successful(
        self,
        count: int,
        now: datetime,
        page_size: int = 500,
        *,
        counts: Callable[[Job], bool] = lambda _: True,
        among: Callable[[], Iterable[str]] | None = None,
    ) -> frozenset[str]:
        """Return the ids of the ``count`` newest uncleaned successful jobs that count (``keep_last``).

        They are compared by the moment of their end.  A job whose end cannot be trusted at ``now`` is none of
        them.  The table is read in pages, so memory grows with ``count`` only.

        Each page takes a scan of the table.  So if the first one has too few jobs that count, the others are
        looked up among the ids that ``among`` returns, if it is given.
        """
        if count == 0:
            return frozenset()
        status = literal_column(self._database.as_text("status"), RawText())
        newest = NewestJobs(
            count, page_size, now, self._zone, ended=self._ended, key=self._database.as_text(self._id)
        )
        statement = self._select(ROW_COLUMNS).where(
            status.in_(self._filter.statuses(JobClass.SUCCESSFUL)), text(self.uncleaned)
        )
        while not newest.is_complete:
            with self._database.read() as connection:
                page = connection.execute(newest.next_page(statement)).mappings().all()
            jobs = [self._convert(*list(row.values())[: len(ROW_COLUMNS) + 2]).job for row in page]
            newest.add(page, filter(counts, jobs))
            if among is not None and not newest.is_full and not newest.is_complete:
                for ids in batched(among(), MOST_VALUES):
                    with self._database.read() as connection:
                        rows = connection.execute(statement.where(self._has_key()), {"values": ids}).all()
                    newest.take(filter(counts, (self._convert(*row).job for row in rows)))
                break
        return newest.ids

    def observed_starts(self) -> list[ObservedStart]:
        """Return what the newest jobs of the web interface show about its zone, none if they show nothing."""
        if not {"created_at", "started_at"} <= set(self._jobs.c.keys()):
            return []
        created, started = map(self._limited, ("created_at", "started_at"))
        statement = text(
            f"SELECT {created} AS created, {started} AS started FROM jobs"
            " WHERE created_at IS NOT NULL AND started_at IS NOT NULL"
            f" ORDER BY {self._database.as_text('created_at')} DESC LIMIT {_OBSERVED_ROWS}"
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        observed = (read_observed_start(created, started, self._zone) for created, started in rows)
        return [start for start in observed if start is not None]

    # -- single rows -------------------------------------------------------------------------------

    def rows(self, connection: Connection, ids: Iterable[str], *, lock: bool = False) -> dict[str, Row]:
        """Return the rows with these ids.  An id without a row is absent.

        With ``lock`` no other program can change the rows until the transaction ends.
        """
        rows: dict[str, Row] = {}
        values = list(ids)
        for page in batched(values, MOST_VALUES):
            # A collation or type of the column can find other spellings too; they are other jobs.
            wanted = set(page)
            # On a server; a write transaction locks a SQLite file completely.
            statement = self._by_id.with_for_update(key_share=True) if lock else self._by_id
            for columns in connection.execute(statement, {"values": page}):
                row = self._row(*columns)
                if row.job.id not in wanted:
                    continue
                if row.job.id in rows:  # a column job_id might not be unique: in doubt, keep
                    row = Row(replace(row.job, status=_DUPLICATE_ID), cleaned=False)
                rows[row.job.id] = row
        return rows

    def _has_key(self) -> ColumnElement[bool]:
        """Return SQL that is true for the rows with the ids of VALUES.

        It is true for others too that only look alike in Python: SQLite can have ids that are no text.
        """
        return or_(self._jobs.c[self._id].in_(VALUES), self._database.is_blob(self._id))

    def limited_to(self, statement: Select[Any], ids: Sequence[str] | None) -> Select[Any]:
        """Let a statement read this table: the rows with these ids as the column compares them, or all."""
        statement = statement.select_from(self._jobs)
        return statement if ids is None else statement.where(self._jobs.c[self._id].in_(ids))

    def ids_starting_with(self, connection: Connection, start: str, limit: int) -> list[str]:
        """Return the ids of rows that start with a text, the one that is equal to it first."""
        job_id: ColumnElement[Any] = literal_column(self._database.as_text(self._id))
        statement = (
            select(job_id)
            .select_from(self._jobs)
            .where(self._database.starts_with(self._id, start))
            .order_by(func.length(job_id))
            .limit(limit)
        )
        return [as_text(row[0]) for row in connection.execute(statement)]

    def page(self, connection: Connection, wanted: JobFilter, after: str | None, limit: int) -> JobRows:
        """Return the next jobs in the order of their ids, after the id ``after``.

        Every part of the search is in the order of the id column's own index.
        """
        column = self._jobs.c[self._id]
        found: list[ColumnElement[bool]] = [self._database.is_key(self._id)]
        if after is not None:
            found.append(column > bindparam("after", after, type_=column.type))
        if wanted.start:
            found.append(self._database.starts_with(self._id, wanted.start))
        ids = select(column).where(*found).order_by(column)
        end = connection.execute(ids.offset(_ROWS_PER_SEARCH).limit(1)).first()
        if end is not None:
            found.append(column <= bindparam("end", as_text(end[0]), type_=column.type))
        if wanted.cleaned is not None:
            found.append(literal_column(f"{'NOT ' if wanted.cleaned else ''}({self.uncleaned})"))
        if wanted.job_class is not None:
            found.append(self._is_of_class(wanted.job_class))
        statement = self._select((*ROW_COLUMNS, "data_size_mb", "cleanup_summary")).where(*found)
        rows = self._listed(connection, statement.order_by(column).limit(limit + 1))
        if len(rows) > limit:
            last = rows[limit - 1][0].job.id
            alike = statement.where(column == bindparam("last", last, type_=column.type)).limit(_MOST_ALIKE)
            same = self._listed(connection, alike)
            if len(same) > 1:  # the next page starts after all rows that a collation takes for this id
                before = statement.where(column < bindparam("last", last, type_=column.type))
                rows = [*self._listed(connection, before.order_by(column).limit(limit)), *same]
                return JobRows(tuple(rows), last, is_partial=False)
            return JobRows(tuple(rows[:limit]), last, is_partial=False)
        return JobRows(tuple(rows), None if end is None else as_text(end[0]), is_partial=end is not None)

    def _listed(self, connection: Connection, statement: Select[Any]) -> list[tuple[Row, CleanupRecord]]:
        return [
            (self._convert(*values), read_record(size, summary))
            for *values, size, summary in connection.execute(statement)
        ]

    def _is_of_class(self, job_class: JobClass) -> ColumnElement[bool]:
        status = literal_column(self._database.as_text("status"), RawText())
        if job_class is not JobClass.UNKNOWN:
            return status.in_(self._filter.statuses(job_class))
        known = [name for kind in (*TERMINAL, JobClass.LIVE) for name in self._filter.statuses(kind)]
        return or_(status.is_(None), status.not_in(known))

    def cleanup_record(self, connection: Connection, job_id: str) -> CleanupRecord:
        """Return what the row of a job says about its cleanup, or about its size before it."""
        statement = self._select(("data_size_mb", "cleanup_summary")).where(self._is_row(self._key()))
        row = connection.execute(statement, {"key": job_id}).first()
        return CleanupRecord(None, None) if row is None else read_record(*row[2:])

    def naming(
        self, connection: Connection, dem_filenames: Sequence[str], *, besides: Collection[str] = ()
    ) -> list[Row]:
        """Return all rows that name one of these uploads, without those of the ids ``besides``.

        This is a scan for some ten thousand names, because the column has no index.

        The comparison is the column's own: with a collation or type that ignores case, say, rows with another
        spelling are among them.  A BLOB of SQLite is compared as text.
        """
        if "dem_filename" not in self._jobs.c or not dem_filenames:
            return []
        rows: list[Row] = []
        for page in batched(dem_filenames, _NAMES_PER_SCAN):
            names, is_blob = set(page), self._database.is_blob("dem_filename")
            statement = self._select().where(or_(self._jobs.c.dem_filename.in_(page), is_blob))
            for found in connection.execute(statement):
                if found[0] not in besides:
                    row = self._row(*found)
                    if row.job.dem_filename in names or not isinstance(found.dem_filename, bytes):
                        rows.append(row)
        return rows

    def spelled_alike(self, connection: Connection, names: Collection[str]) -> dict[str, list[str]]:
        """Return, by folded name, the ids and uploads in the table that differ from a name only in spelling.

        Where a name is ASCII, only other cases are found, and the caller must ask only where the filesystem
        ignores them: this reads the whole table.
        """
        wanted = {folded(name) for name in names}
        columns = [self._id, *(["dem_filename"] if self.has_uploads else [])]
        texts = [literal_column(self._database.as_text(name), RawText()) for name in columns]
        # A live job protects its files even if it was cleaned before.
        status = literal_column(self._database.as_text("status"), RawText())
        is_terminal = status.in_([name for kind in TERMINAL for name in self._filter.statuses(kind)])
        statement = select(*texts).select_from(self._jobs).where(or_(text(self.uncleaned), not_(is_terminal)))
        if not any(name.isascii() for name in names):
            statement = statement.where(or_(*(self._database.is_not_ascii(name) for name in columns)))
        found: dict[str, list[str]] = defaultdict(list)
        for page in connection.execution_options(yield_per=1000).execute(statement).partitions():
            for value in (value for row in page for value in row if value is not None):
                spelling = as_text(value)
                if (key := folded(spelling)) in wanted and spelling not in names:
                    found[key].append(spelling)
        return found

    def mark_cleaned(
        self, connection: Connection, jobs: Sequence[tuple[str, int, str]], now: datetime
    ) -> None:
        """Record in the rows of jobs (id, bytes, summary) that their data was cleaned."""
        cleaned_at = self._database.local_time(now, local_timestamp(now, self._zone), self._time_type)
        rows = [
            {
                "key": job_id,
                "data_cleaned_at": cleaned_at,
                "data_size_mb": size_bytes / BYTES_PER_MB,
                "cleanup_summary": summary,
            }
            for job_id, size_bytes, summary in jobs
        ]
        if not rows:
            return
        connection.execute(self._update_by_id, rows)
        if refused := self._still_uncleaned(connection, [job_id for job_id, _, _ in jobs]):
            raise self._ignored(refused)

    def _ignored(self, ids: Sequence[str]) -> RowError:
        names = ", ".join(printable(job_id) for job_id in ids[:5])
        return RowError(
            f"Job database {self._database.name}: a trigger or rule ignores the update of {names}."
        )

    def _still_uncleaned(self, connection: Connection, ids: Sequence[str]) -> list[str]:
        """Return those of these jobs whose rows are there and do not say that their data was cleaned."""
        refused = []
        for page in batched(ids, MOST_VALUES):
            column = self._jobs.c[self._id]
            statement = select(column).where(self._has_key(), self._jobs.c.data_cleaned_at.is_(None))
            found = connection.execute(statement, {"values": page})
            refused += [key for row in found if (key := as_text(row[0])) in page]
        return refused

    @cached_property
    def _update_by_id(self) -> Update:
        # Cached because building the statement takes longer than executing it.
        return update(self._jobs).where(self._is_row(self._key()))

    def _is_row(self, job_id: BindParameter[Any]) -> ColumnElement[bool]:
        """Return SQL that is true for the row of this id: by the column's own index, and byte for byte."""
        column = self._jobs.c[self._id]
        return and_(column == job_id, self._database.is_exactly(column, job_id))

    def _key(self, job_id: str | None = None) -> BindParameter[Any]:
        return bindparam("key", job_id, type_=self._jobs.c[self._id].type)

    def mark_uncleaned(self, connection: Connection, job_id: str) -> None:
        """Record in the job's row that its data was restored.  The measured size stays.

        Raises:
            RowError: the row still says that its data was cleaned.
        """
        row = self._is_row(self._key(job_id))
        connection.execute(update(self._jobs).where(row).values(data_cleaned_at=None, cleanup_summary=None))
        still = select(self._jobs.c[self._id]).where(row, self._jobs.c.data_cleaned_at.is_not(None))
        if connection.execute(still).first() is not None:
            raise self._ignored([job_id])

    def mark_all_uncleaned(self, connection: Connection) -> int:
        """Record in all rows that their data has not been cleaned, and return how many changed.

        The next run measures what is left of it: the size that was cleaned would count as usage.

        Raises:
            RowError: a row still says that its data was cleaned.
        """
        cleaned = self._jobs.c.data_cleaned_at.is_not(None)
        values = {"data_cleaned_at": None, "data_size_mb": None, "cleanup_summary": None}
        changed = connection.execute(update(self._jobs).where(cleaned).values(values)).rowcount
        if refused := connection.execute(select(self._jobs.c[self._id]).where(cleaned).limit(5)).all():
            raise self._ignored([as_text(row[0]) for row in refused])
        return changed

    def set_size(self, connection: Connection, job_id: str, size_bytes: int) -> None:
        """Record the measured size of a job that still has its data."""
        connection.execute(
            update(self._jobs)
            .where(self._is_row(self._key(job_id)), text(self.uncleaned))
            .values(data_size_mb=size_bytes / BYTES_PER_MB)
        )

    # -- columns -----------------------------------------------------------------------------------

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
        """Whether the table has a column for uploads."""
        return "dem_filename" in self._jobs.c

    @property
    def uncleaned(self) -> str:
        """SQL that is true for a row whose data has not been cleaned."""
        return "true" if "data_cleaned_at" in self.missing_columns else "data_cleaned_at IS NULL"

    def _select(self, names: Sequence[str] | None = None) -> Select[Any]:
        """Select the arguments of :meth:`_convert`: NULL for a column that the table lacks."""
        if names is None:
            names = (*ROW_COLUMNS, "parameters") if self._has_parameters else ROW_COLUMNS
        # As text: in a server's database the columns can be times, JSON or enumerations.
        columns: list[ColumnElement[Any]] = [
            (literal_column(self._limited(name)) if name in self._jobs.c else null()).label(name)
            for name in (self._id, "data_cleaned_at", *names)
        ]
        return select(*columns).select_from(self._jobs)

    def _limited(self, name: str) -> str:
        """Return SQL for a column as text of a limited length; ids and parameters are complete.

        What was cut gets an end that no status and no time has.  A name of a file stays a BLOB if it is one.
        """
        value = self._database.as_text(name)
        if name in {self._id, "parameters"}:
            return value
        end = "" if name == "dem_filename" else " || '…'"
        cut = f"substr({value}, 1, {_MOST_CHARACTERS}){end}"
        return f"CASE WHEN length({value}) > {_MOST_CHARACTERS} THEN {cut} ELSE {value} END"


def _columns(connection: Connection, database: Database) -> dict[str, TypeEngine[Any]]:
    inspector = inspect(connection)
    if "jobs" not in inspector.get_table_names():
        if "jobs" in inspector.get_view_names():
            raise StoreError(
                f"jobs in {database.name} is a view. It can hide rows, whose files would look unused. "
                "Use the database and schema of the table itself."
            )
        raise NoDatabaseError(f"{database.name} has no table jobs. This is not an EEMT job database.")
    with warnings.catch_warnings():
        # Every value is read as text, so a type that SQLAlchemy does not know is no problem.
        warnings.simplefilter("ignore", exc.SAWarning)
        return {column["name"]: column["type"] for column in inspector.get_columns("jobs")}
