"""Our own tables: what was intended, what was done, by whom, and what is held.

An intent is written before the first file moves and is deleted in the transaction that records the job as
cleaned, so open intents are exactly the work that an interrupted run left.  Times are UTC in the form of
SQLite's CURRENT_TIMESTAMP; only ``jobs.data_cleaned_at`` follows the web interface's own form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Table,
    delete,
    desc,
    func,
    insert,
    inspect,
    select,
    text,
    true,
    update,
)
from sqlalchemy.schema import CreateColumn

from eemtcleanupd.errors import StoreError
from eemtcleanupd.events import CapacityWarning, StoragePoint, StorageState, Total
from eemtcleanupd.model import TRASH_NAME, Artifact, Found, Hold, JobClass, RootName
from eemtcleanupd.policy.capacity import Budget, Level
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.tables import (
    AUDIT,
    HOLDS,
    INTENTS,
    LOG,
    METADATA,
    NOTIFIERS,
    ROOTS,
    RUNS,
    SIZES,
    STORAGE,
    TOTALS,
)
from eemtcleanupd.store.timestamps import utc_timestamp
from eemtcleanupd.units import BYTES_PER_MB, printable

TRASH_TRIGGER = "trash"
"""The trigger of runs that only empty the trash."""


PART_BACK = ".back-"
"""Stands in the id of an intent that brings a part of another one back, behind that one's id."""
_FEW = 500  # well under SQLite's limit of bound variables


class IntentKind(StrEnum):
    """What an intent is about."""

    JOB = "job"
    ORPHAN = "orphan"


class IntentState(StrEnum):
    """How far an intent is: its bytes are to go now, or it is recorded as cleaned and waits in the trash."""

    OPEN = "open"
    TRASHED = "trashed"


@dataclass(frozen=True, slots=True)
class Intent:
    """One job (or orphan) whose artifacts are to go.

    ``items`` pairs each artifact with the name of its folder in its root's trash.  ``bytes_freed``
    is what earlier, interrupted attempts freed, ``size_bytes`` what waits in the trash.
    """

    id: str
    run_id: str
    kind: IntentKind
    job_id: str
    status: str
    items: tuple[tuple[Found, str], ...]
    state: IntentState = IntentState.OPEN
    bytes_freed: int = 0
    purge_after: datetime | None = None
    error: str | None = None
    size_bytes: int = 0
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A row of ``cleanup_runs``; times are aware UTC, ``finished_at`` None while (or if) it never ended."""

    id: str
    started_at: datetime
    trigger: str
    user: str
    host: str
    pid: int
    policy: str
    finished_at: datetime | None = None
    outcome: str | None = None
    successful: int = 0
    failed: int = 0
    orphans: int = 0
    skipped: int = 0
    errors: int = 0
    bytes_freed: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A row of ``cleanup_log``: what one run did with one job."""

    job_id: str
    status: str
    action: str
    bytes_freed: int
    message: str


@dataclass(frozen=True, slots=True)
class AuditLine:
    """A row of ``cleanup_audit``: what was done with a job's data in one place."""

    job_id: str
    action: str
    bytes_freed: int


@dataclass(frozen=True, slots=True)
class RootRecord:
    """What a root was at the last run; ``marker`` is the random name that lies in its trash."""

    name: RootName
    path: str
    device: int
    inode: int
    marker: str


class Ledger:
    """Our tables in the job database.  Nothing is created until :meth:`create_tables`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def exists(self) -> bool:
        """Tell whether the tables are there, without making them (a dry run changes nothing)."""
        with self._database.read() as connection:
            return bool(inspect(connection).has_table(ROOTS.name))

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

    @staticmethod
    def _missing(connection: Connection) -> list[tuple[Table, Column[Any]]]:
        tables = METADATA.sorted_tables
        there = inspect(connection).get_multi_columns(filter_names=[table.name for table in tables])
        known = {name: {each["name"] for each in columns} for (_, name), columns in there.items()}
        return [
            (table, column)
            for table in tables
            for column in table.columns
            if column.name not in known.get(table.name, ())
        ]

    # -- runs --------------------------------------------------------------------------------------

    def last_run_at(self) -> datetime | None:
        """Return the latest time that any recorded run knew, None before the first."""
        latest = select(func.max(func.coalesce(RUNS.c.finished_at, RUNS.c.started_at)))
        with self._database.read() as connection:
            return _read_utc(connection.execute(latest).scalar())

    def has_whole_run(self) -> bool:
        """Tell whether any run has looked at all jobs and come to its end."""
        whole = RUNS.c.outcome.in_(("success", "errors")) & (RUNS.c.trigger != TRASH_TRIGGER)
        with self._database.read() as connection:
            return bool(connection.execute(select(func.count()).where(whole)).scalar_one())

    def last_cleanup_at(self) -> datetime | None:
        """Return when the last run began that looked at all jobs, None before the first."""
        latest = select(func.max(RUNS.c.started_at)).where(RUNS.c.trigger != TRASH_TRIGGER)
        with self._database.read() as connection:
            return _read_utc(connection.execute(latest).scalar())

    def begin_run(self, run: RunRecord) -> None:
        """Write the row of a run that begins; rows that a killed run left open are closed."""

        def work(connection: Connection) -> None:
            connection.execute(
                update(RUNS).where(RUNS.c.outcome.is_(None)).values(outcome="killed", error="it never ended")
            )
            # They are ordered by the second in which they began, and by this within it.
            number = select(func.coalesce(func.max(RUNS.c.number), 0) + 1).scalar_subquery()
            connection.execute(insert(RUNS).values({**_run_values(run), "number": number}))

        self._database.write(work)

    def finish_run(self, run: RunRecord, totals: Mapping[tuple[str, str], float] | None = None) -> None:
        """Write how a run ended, and add to the totals, by name and label."""

        def work(connection: Connection) -> None:
            connection.execute(update(RUNS).where(RUNS.c.id == run.id).values(_run_values(run)))
            for (name, label), amount in (totals or {}).items():
                row = (TOTALS.c.name == name) & (TOTALS.c.label == label)
                added = update(TOTALS).where(row).values(value=TOTALS.c.value + amount)
                if not connection.execute(added).rowcount:
                    connection.execute(insert(TOTALS).values(name=name, label=label, value=amount))

        self._database.write(work)

    def totals(self) -> tuple[Total, ...]:
        """Return all that was counted since the ledger exists."""
        outcomes = ("delivered", "retried", "failed", "dropped")
        with self._database.read() as connection:
            rows = connection.execute(select(TOTALS).order_by(TOTALS.c.name, TOTALS.c.label)).all()
            notifiers = connection.execute(select(NOTIFIERS).order_by(NOTIFIERS.c.name)).mappings().all()
        deliveries = (
            Total("deliveries", f"{row['name']} {outcome}", row[outcome])
            for row in notifiers
            for outcome in outcomes
        )
        return (*(Total(row.name, row.label, row.value) for row in rows), *deliveries)

    def last_success_at(self) -> datetime | None:
        """Return when the last run ended that looked at all jobs and had no errors."""
        latest = select(func.max(RUNS.c.finished_at)).where(
            (RUNS.c.outcome == "success") & (RUNS.c.trigger != TRASH_TRIGGER)
        )
        with self._database.read() as connection:
            return _read_utc(connection.execute(latest).scalar())

    def runs(self, limit: int, run_id: str | None = None) -> list[RunRecord]:
        """Return the newest runs, newest first, or the one that is named (by id or its beginning)."""
        columns = [column for column in RUNS.c if column is not RUNS.c.number]
        newest = (desc(RUNS.c.started_at), desc(func.coalesce(RUNS.c.number, 0)))
        statement = select(*columns).order_by(*newest).limit(limit)
        if run_id is not None:
            statement = statement.where(RUNS.c.id.startswith(run_id, autoescape=True))
        with self._database.read() as connection:
            rows = connection.execute(statement).mappings().all()
        return [
            RunRecord(
                **{
                    **row,
                    "started_at": _read_utc(row["started_at"]),
                    "finished_at": _read_utc(row["finished_at"]),
                }
            )
            for row in rows
        ]

    def log_entries(self, run_id: str) -> Iterable[LogEntry]:
        """Yield what a run did, in order, in pages (a run may have cleaned a million jobs)."""
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
                yield LogEntry(row.job_id, row.status, row.action, row.bytes_freed, row.message)

    # -- intents -----------------------------------------------------------------------------------

    def open_intents(self) -> list[Intent]:
        """Return the work that an interrupted run, or one with errors, left."""
        return self._intents(select(INTENTS).where(INTENTS.c.state == IntentState.OPEN))

    def trash_of(self, job_id: str | None = None, limit: int | None = None) -> list[Intent]:
        """Return what waits in the trash, of one job or of all, the first to go first."""
        statement = select(INTENTS).where(INTENTS.c.state == IntentState.TRASHED)
        if job_id is not None:
            statement = statement.where(INTENTS.c.job_id == job_id)
        return self._intents(statement.order_by(INTENTS.c.purge_after, INTENTS.c.id).limit(limit))

    def expired_trash(
        self, now: datetime, limit: int, *, early: bool = False, trashed_before: datetime | None = None
    ) -> list[Intent]:
        """Return trashed jobs whose grace has passed at ``now`` and that nobody holds, oldest first.

        With ``early`` those whose grace has not passed count too, or with ``trashed_before`` those that have
        been in the trash since then.
        """
        early = early or trashed_before is not None
        since = None if trashed_before is None else utc_timestamp(trashed_before)
        due = utc_timestamp(now)
        held = select(HOLDS.c.job_id).where((HOLDS.c.until.is_(None)) | (HOLDS.c.until > due))
        return self._intents(
            select(INTENTS)
            .where(INTENTS.c.state == IntentState.TRASHED)
            .where(true() if early else INTENTS.c.purge_after <= due)
            .where(true() if since is None else INTENTS.c.created_at <= since)
            .where((INTENTS.c.job_id.is_(None)) | INTENTS.c.job_id.not_in(held))
            .order_by(INTENTS.c.purge_after, INTENTS.c.id)
            .limit(limit)
        )

    def is_known_intent(self, intent_id: str) -> bool:
        """Tell whether an intent with this id, or one that brings a part of it back, is in the ledger."""
        if not intent_id.isascii():  # none of ours, and maybe no text that a database takes
            return False
        back = INTENTS.c.id.startswith(f"{intent_id}{PART_BACK}", autoescape=True)
        statement = select(func.count()).select_from(INTENTS).where((INTENTS.c.id == intent_id) | back)
        with self._database.read() as connection:
            return bool(connection.execute(statement).scalar_one())

    def add_intents(self, connection: Connection, intents: Sequence[Intent], now: datetime) -> None:
        """Write intents, before the first file of any of them moves."""
        if intents:
            rows = [{**_intent_values(intent), "created_at": utc_timestamp(now)} for intent in intents]
            connection.execute(insert(INTENTS), rows)

    def drop_intents(self, connection: Connection, ids: Sequence[str]) -> None:
        """Delete intents that are done, or undone."""
        for start in range(0, len(ids), _FEW):
            connection.execute(delete(INTENTS).where(INTENTS.c.id.in_(ids[start : start + _FEW])))

    def close_intents(self, connection: Connection, ids: Sequence[str]) -> None:
        """Delete intents in the transaction that records what came of them, which each can be only once.

        Raises:
            StoreError: one is not there: another run has finished it, and recorded it.
        """
        if ids:
            closed = connection.execute(delete(INTENTS).where(INTENTS.c.id.in_(ids))).rowcount
            if closed != len(ids):
                raise StoreError(
                    f"{len(ids) - closed} of {len(ids)} jobs were taken over by another run; nothing was "
                    "recorded twice"
                )

    def save_intent(self, connection: Connection, intent: Intent) -> None:
        """Write how far an intent came."""
        connection.execute(update(INTENTS).where(INTENTS.c.id == intent.id).values(_intent_values(intent)))

    def _intents(self, statement: Any) -> list[Intent]:
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        with _making_sense("cleanup_intents"):
            return [
                Intent(
                    id=str(row.id),
                    run_id=str(row.run_id),
                    kind=IntentKind(row.kind),
                    job_id=row.job_id or "",
                    status=row.status or "",
                    items=tuple(
                        (Found(Artifact(RootName(root), _entry(name)), bool(is_folder)), _entry(item))
                        for root, name, is_folder, item in json.loads(row.artifacts)
                    ),
                    state=IntentState(row.state),
                    bytes_freed=int(row.bytes_freed),
                    purge_after=_read_utc(row.purge_after),
                    error=row.error,
                    size_bytes=int(row.size_bytes),
                    created_at=_read_utc(row.created_at),
                )
                for row in rows
            ]

    # -- what was done -----------------------------------------------------------------------------

    def add_log(
        self, connection: Connection, run_id: str, entries: Sequence[LogEntry], now: datetime
    ) -> None:
        """Write lines of ``cleanup_log``."""
        rows = [{"timestamp": utc_timestamp(now), "run_id": run_id, **asdict(entry)} for entry in entries]
        if rows:
            connection.execute(insert(LOG), rows)

    def clear_log(self, connection: Connection) -> int:
        """Delete all of ``cleanup_log``; returns how many lines there were."""
        return connection.execute(delete(LOG)).rowcount

    def add_audit(self, connection: Connection, lines: Sequence[AuditLine], user: str, now: datetime) -> None:
        """Write lines of ``cleanup_audit`` (columns as in the user's document; whole MB)."""
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

    # -- sizes -------------------------------------------------------------------------------------

    def measured(self, connection: Connection, job_ids: Sequence[str]) -> dict[str, int]:
        """Return the bytes measured earlier, by job id, for those that still have their data."""
        found: dict[str, int] = {}
        for start in range(0, len(job_ids), _FEW):
            some = SIZES.c.job_id.in_(job_ids[start : start + _FEW])
            statement = select(SIZES.c.job_id, SIZES.c.bytes).where(some)
            found |= {row.job_id: row.bytes for row in connection.execute(statement)}
        return found

    def set_measured(
        self, connection: Connection, job_id: str, job_class: JobClass, size_bytes: int, now: datetime
    ) -> None:
        """Remember the size of a job that still has its data."""
        connection.execute(delete(SIZES).where(SIZES.c.job_id == job_id))
        connection.execute(
            insert(SIZES).values(
                job_id=job_id, status_class=job_class, bytes=size_bytes, measured_at=utc_timestamp(now)
            )
        )

    def forget_measured(self, connection: Connection, job_ids: Sequence[str]) -> None:
        """Forget the sizes of jobs whose data is gone."""
        if job_ids:
            connection.execute(delete(SIZES).where(SIZES.c.job_id.in_(job_ids)))

    def storage_by_class(self) -> dict[str, tuple[int, int]]:
        """Return, by class of status, how many measured jobs still have their data, and its bytes."""
        grouped = select(SIZES.c.status_class, func.count(), func.sum(SIZES.c.bytes)).group_by(
            SIZES.c.status_class
        )
        with self._database.read() as connection:
            return {row[0]: (row[1], row[2] or 0) for row in connection.execute(grouped)}

    def trash(self) -> tuple[int, int, datetime | None]:
        """Return how many jobs and orphans wait in the trash, their bytes, and when the first goes."""
        statement = select(
            func.count(), func.sum(INTENTS.c.size_bytes), func.min(INTENTS.c.purge_after)
        ).where(INTENTS.c.state == IntentState.TRASHED)
        with self._database.read() as connection:
            count, size, first = connection.execute(statement).one()
        return count, int(size or 0), _read_utc(first)

    def add_storage_sample(
        self,
        run_id: str | None,
        free_bytes: int,
        total_bytes: int,
        now: datetime,
        budget: Budget | None = None,
    ) -> CapacityWarning | None:
        """Write one point of the storage history: measured bytes by class, and the results filesystem.

        Returns:
            What there is to tell when usage has passed a mark of the budget since the point before.
        """

        def work(connection: Connection) -> CapacityWarning | None:
            grouped = select(SIZES.c.status_class, func.sum(SIZES.c.bytes)).group_by(SIZES.c.status_class)
            used = {row[0]: row[1] for row in connection.execute(grouped)}
            successful, failed = (int(used.get(each) or 0) for each in (JobClass.SUCCESSFUL, JobClass.FAILED))
            held = successful + failed
            latest = select(STORAGE.c.capacity_level).order_by(STORAGE.c.id.desc()).limit(1)
            told = connection.execute(latest).scalar()
            before = Level(told) if told in set(Level) else Level.WITHIN
            level = Level.WITHIN if budget is None else budget.level(held, before)
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

    def storage_state(self, now: datetime, free_bytes: int, total_bytes: int) -> StorageState:
        """Return what the jobs hold, with the trend of 90 days."""
        held = self.storage_by_class()
        trash_jobs, trash_bytes, _ = self.trash()
        return StorageState(
            successful_bytes=held.get(JobClass.SUCCESSFUL, (0, 0))[1],
            failed_bytes=held.get(JobClass.FAILED, (0, 0))[1],
            free_bytes=free_bytes,
            total_bytes=total_bytes,
            trash_jobs=trash_jobs,
            trash_bytes=trash_bytes,
            trend=self.trend(now),
        )

    def trend(self, now: datetime) -> tuple[StoragePoint, ...]:
        """Return the storage history of 90 days: one point a day, the day's last."""
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
        with _making_sense("cleanup_storage"):
            return tuple(
                StoragePoint(
                    datetime.fromisoformat(point.timestamp).replace(tzinfo=UTC),
                    int(point.successful_bytes) + int(point.failed_bytes),
                    int(point.free_bytes),
                )
                for point in points
            )

    # -- holds -------------------------------------------------------------------------------------

    def holds(self, connection: Connection, job_ids: Sequence[str]) -> dict[str, Hold]:
        """Return the holds, active or not, on these jobs."""
        found: dict[str, Hold] = {}
        for start in range(0, len(job_ids), _FEW):
            some = HOLDS.c.job_id.in_(job_ids[start : start + _FEW])
            for row in connection.execute(select(HOLDS).where(some)):
                found[row.job_id] = _hold(row)
        return found

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

    def all_holds(self) -> list[Hold]:
        """Return all holds, active or not, by job."""
        with self._database.read() as connection:
            rows = connection.execute(select(HOLDS).order_by(HOLDS.c.job_id)).all()
        return [_hold(row) for row in rows]

    def release(self, job_id: str) -> bool:
        """Take a hold off; False when there was none."""
        return self._database.write(
            lambda c: c.execute(delete(HOLDS).where(HOLDS.c.job_id == job_id)).rowcount > 0
        )

    # -- roots -------------------------------------------------------------------------------------

    def roots(self) -> dict[RootName, RootRecord]:
        """Return what each root was at the last run."""
        with self._database.read() as connection:
            rows = connection.execute(select(ROOTS)).all()
        with _making_sense("cleanup_roots"):
            return {
                RootName(row.name): RootRecord(
                    RootName(row.name), str(row.path), row.device, row.inode, row.marker
                )
                for row in rows
            }

    def save_roots(self, roots: Iterable[RootRecord]) -> None:
        """Remember what each root is."""

        def work(connection: Connection) -> None:
            for root in roots:
                connection.execute(delete(ROOTS).where(ROOTS.c.name == root.name))
                connection.execute(
                    insert(ROOTS).values(
                        name=root.name,
                        path=root.path,
                        device=root.device,
                        inode=root.inode,
                        marker=root.marker,
                    )
                )

        self._database.write(work)


def with_error(intent: Intent, error: str | None, freed_bytes: int) -> Intent:
    """Return the intent after an attempt that did not finish it."""
    return replace(intent, error=error, bytes_freed=intent.bytes_freed + freed_bytes)


def _run_values(run: RunRecord) -> dict[str, object]:
    return {
        name: _utc_or_none(value) if isinstance(value, datetime) else value
        for name, value in ((each.name, getattr(run, each.name)) for each in fields(run))
    }


def _intent_values(intent: Intent) -> dict[str, object]:
    # ASCII JSON carries the bytes of names that are not UTF-8 as lone surrogate escapes.
    artifacts = json.dumps(
        [[found.artifact.root, found.artifact.name, found.is_folder, item] for found, item in intent.items]
    )
    return {
        "id": intent.id,
        "run_id": intent.run_id,
        "kind": intent.kind,
        "state": intent.state,
        "job_id": intent.job_id or None,
        "status": intent.status,
        "artifacts": artifacts,
        "bytes_freed": intent.bytes_freed,
        "purge_after": None if intent.purge_after is None else utc_timestamp(intent.purge_after),
        "error": intent.error,
        "size_bytes": intent.size_bytes,
    }


def _utc_or_none(moment: datetime | None) -> str | None:
    return None if moment is None else utc_timestamp(moment)


@contextmanager
def _making_sense(table: str) -> Iterator[None]:
    """Refuse rows that we cannot have written: whoever can write to the database is not always a friend."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise StoreError(
            f"a row of {table} in the job database makes no sense ({printable(str(error))}): somebody "
            "changed it; nothing more was done. Put it right, or restore the database from a copy"
        ) from error


def _entry(name: object) -> str:
    """Return a name if it is a single path component, which all are that we write."""
    if not isinstance(name, str) or name in {"", ".", "..", TRASH_NAME} or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of an entry")
    return name


def _hold(row: Any) -> Hold:
    """Return the hold that a row is; one that was set by hand in SQL may say neither why nor who."""
    reason, owner = str(row.reason or "no reason given"), str(row.owner or "somebody")
    return Hold(row.job_id, reason, owner, _read_utc(row.until))


def _read_utc(value: str | None) -> datetime | None:
    if value is None:
        return None
    with _making_sense("the ledger"):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
