"""Records of all runs, and the totals over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, desc, func, insert, select, update

from eemtcleanupd.errors import StoreError
from eemtcleanupd.events import Total
from eemtcleanupd.formatting import human_amounts
from eemtcleanupd.model import Outcome, Trigger
from eemtcleanupd.store.base import Repository, corruption_guard, read_utc
from eemtcleanupd.store.tables import DELIVERY_OUTCOMES, NOTIFIERS, RUNS, TOTALS
from eemtcleanupd.store.values import utc_timestamp

_KILLED = "The run did not finish."
# What a row without these values has.
_UNKNOWN: dict[str, Any] = {"trigger": "", "user": "", "host": "", "pid": 0, "policy": ""}


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A row of ``cleanup_runs``.

    Times are aware UTC.  ``finished_at`` is None while the run is active, or if it was killed.
    """

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
    bytes_trashed: int = 0
    purge_after: datetime | None = None

    @property
    def amounts(self) -> str:
        """The freed space as text, and that which was moved to the trash."""
        return human_amounts(self.bytes_freed, self.bytes_trashed or 0, self.purge_after)


@dataclass(frozen=True, slots=True)
class RunAmounts:
    """What a run freed and moved to the trash, with its number of errors."""

    started_at: datetime
    bytes_freed: int
    bytes_trashed: int
    errors: int


PLANNED_JOBS = RUNS.c.trigger.not_in([trigger for trigger in Trigger if not trigger.plans_jobs])
"""SQL that is true for a run that checked all jobs, or was to do so."""

BEGAN = func.coalesce(RUNS.c.outcome, "") != Outcome.REFUSED
"""SQL that is true for a run that was not refused."""


class Runs(Repository):
    """``cleanup_runs`` and ``cleanup_totals``."""

    def last_run_at(self) -> datetime | None:
        """Return when the last run finished or, if unfinished, started.  Return None before the first run.

        A refused run says nothing about the clock: its time can be the reason.
        """
        last = func.max(func.coalesce(RUNS.c.finished_at, RUNS.c.started_at))
        return self._time(select(last).where(BEGAN))

    def has_whole_run(self) -> bool:
        """Return whether any run has checked all jobs and finished."""
        complete = RUNS.c.outcome.in_((Outcome.SUCCESS, Outcome.ERRORS)) & PLANNED_JOBS
        with self._database.read() as connection:
            return bool(connection.execute(select(func.count()).where(complete)).scalar_one())

    def last_cleanup_at(self) -> datetime | None:
        """Return when the last run that checked all jobs started, or None before the first."""
        return self._time(select(func.max(RUNS.c.started_at)).where(PLANNED_JOBS, BEGAN))

    def last_success_at(self) -> datetime | None:
        """Return when the last run that checked all jobs without errors finished."""
        successful = (RUNS.c.outcome == Outcome.SUCCESS) & PLANNED_JOBS
        return self._time(select(func.max(RUNS.c.finished_at)).where(successful))

    def _time(self, statement: Select[Any]) -> datetime | None:
        with self._database.read() as connection:
            return read_utc(connection.execute(statement).scalar())

    def runs(self, limit: int, run_id: str | None = None) -> list[RunRecord]:
        """Return the newest runs, newest first.  ``run_id`` selects those whose id starts with it."""
        columns = [column for column in RUNS.c if column is not RUNS.c.number]
        newest = (desc(RUNS.c.started_at), desc(func.coalesce(RUNS.c.number, 0)))
        statement = select(*columns).order_by(*newest).limit(limit)
        if run_id is not None:
            statement = statement.where(RUNS.c.id.startswith(run_id, autoescape=True))
        return self._runs(statement)

    def last_cleanup(self) -> RunRecord | None:
        """Return the newest run that checked all jobs or was to do so; None before the first."""
        newest = (desc(RUNS.c.started_at), desc(func.coalesce(RUNS.c.number, 0)))
        columns = [column for column in RUNS.c if column is not RUNS.c.number]
        found = self._runs(select(*columns).where(PLANNED_JOBS).order_by(*newest).limit(1))
        return found[0] if found else None

    def runs_before(self, run_id: str, limit: int) -> list[RunRecord]:
        """Return the runs before one, newest first; none if there is no such run."""
        columns = [column for column in RUNS.c if column is not RUNS.c.number]
        number = func.coalesce(RUNS.c.number, 0)
        later = RUNS.alias()
        earlier = (RUNS.c.started_at < later.c.started_at) | (
            (RUNS.c.started_at == later.c.started_at) & (number < func.coalesce(later.c.number, 0))
        )
        statement = select(*columns).join(later, earlier).where(later.c.id == run_id)
        return self._runs(statement.order_by(desc(RUNS.c.started_at), desc(number)).limit(limit))

    def amounts_since(self, since: datetime) -> list[RunAmounts]:
        """Return what each run since then freed and moved to the trash, oldest first."""
        columns = (RUNS.c.started_at, RUNS.c.bytes_freed, RUNS.c.bytes_trashed, RUNS.c.errors)
        statement = select(*columns).where(RUNS.c.started_at >= utc_timestamp(since))
        with self._database.read() as connection:
            rows = connection.execute(statement.order_by(RUNS.c.started_at)).all()
        with corruption_guard("cleanup_runs"):
            return [
                RunAmounts(
                    datetime.fromisoformat(row.started_at).replace(tzinfo=UTC),
                    *(int(value or 0) for value in row[1:]),
                )
                for row in rows
            ]

    def _runs(self, statement: Select[Any]) -> list[RunRecord]:
        """Return runs; one without an outcome while no run holds the lock was killed."""
        runs = self._read_runs(statement)
        unfinished = {run.id for run in runs if run.outcome is None}
        if not unfinished or self._is_locked():
            return runs
        # A run writes its outcome before it releases the lock, so what it wrote is there now.
        return [
            replace(run, outcome=Outcome.KILLED, error=_KILLED)
            if run.outcome is None and run.id in unfinished
            else run
            for run in self._read_runs(statement)
        ]

    def _is_locked(self) -> bool:
        try:
            return self._database.holder("run") is not None
        except StoreError:  # another user cannot tell
            return True

    def _read_runs(self, statement: Select[Any]) -> list[RunRecord]:
        with self._database.read() as connection:
            rows = connection.execute(statement).mappings().all()
        times = ("started_at", "finished_at", "purge_after")
        with corruption_guard("cleanup_runs"):
            known = [
                _UNKNOWN | {name: value for name, value in row.items() if value is not None} for row in rows
            ]
            return [
                RunRecord(**{**row, **{name: read_utc(row[name]) for name in times if name in row}})
                for row in known
            ]

    def begin_run(self, run: RunRecord) -> None:
        """Write the row of a run that starts, and close the rows of killed runs."""

        def work(connection: Connection) -> None:
            connection.execute(
                update(RUNS).where(RUNS.c.outcome.is_(None)).values(outcome=Outcome.KILLED, error=_KILLED)
            )
            # Runs are ordered by start time, and by this number within the same second.
            number = select(func.coalesce(func.max(RUNS.c.number), 0) + 1).scalar_subquery()
            connection.execute(insert(RUNS).values({**_run_values(run), "number": number}))

        self._database.write(work)

    def add_to_run(
        self,
        connection: Connection,
        run_id: str,
        counts: Mapping[str, int],
        cleaned: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Add to the row of an active run and to the totals, in the transaction that records what they count.

        So both are right for a run that is killed.  ``cleaned`` are the cleaned jobs by status.
        """
        values = {name: RUNS.c[name] + count for name, count in counts.items() if count}
        if values:
            connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(values))
        totals = {(name, ""): float(counts[name]) for name in ("bytes_freed", "errors") if counts.get(name)}
        totals |= {("jobs_cleaned", status): float(jobs) for status, jobs in cleaned.items()}
        if totals:
            _add_to_totals(connection, totals)

    def add_refused_run(self, run: RunRecord) -> None:
        """Write the row of a run that did not begin, unless it has one because it did."""

        def work(connection: Connection) -> None:
            if connection.execute(select(RUNS.c.id).where(RUNS.c.id == run.id)).first() is None:
                number = select(func.coalesce(func.max(RUNS.c.number), 0) + 1).scalar_subquery()
                connection.execute(insert(RUNS).values({**_run_values(run), "number": number}))

        self._database.write(work)

    def finish_run(
        self,
        run: RunRecord,
        totals: Mapping[tuple[str, str], float] | None = None,
        also: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        """Write how a run ended, and add to the totals by name and label; ``also`` is in the transaction.

        :meth:`add_to_run` has added what the run recorded.
        """

        def work(connection: Connection) -> None:
            connection.execute(update(RUNS).where(RUNS.c.id == run.id).values(_run_values(run)))
            if totals:
                _add_to_totals(connection, totals)
            also(connection)

        self._database.write(work)

    def forget_run(self, run_id: str, also: Callable[[Connection], None]) -> None:
        """Delete the row of a run that did nothing; ``also`` is in the transaction."""

        def work(connection: Connection) -> None:
            connection.execute(delete(RUNS).where(RUNS.c.id == run_id))
            also(connection)

        self._database.write(work)

    def totals(self) -> tuple[Total, ...]:
        """Return all totals since the ledger was created."""
        with self._database.read() as connection:
            rows = connection.execute(select(TOTALS).order_by(TOTALS.c.name, TOTALS.c.label)).all()
            notifiers = connection.execute(select(NOTIFIERS).order_by(NOTIFIERS.c.name)).mappings().all()
        deliveries = (
            Total("deliveries", f"{row['name']} {outcome}", row[outcome])
            for row in notifiers
            for outcome in DELIVERY_OUTCOMES
        )
        return (*(Total(row.name, row.label, row.value) for row in rows), *deliveries)


def _add_to_totals(connection: Connection, totals: Mapping[tuple[str, str], float]) -> None:
    """Add to all totals in few statements, as a statement takes longer than its row."""
    known = {(row.name, row.label) for row in connection.execute(select(TOTALS.c.name, TOTALS.c.label))}
    new = [{"name": name, "label": label, "value": 0} for name, label in totals if (name, label) not in known]
    if new:
        connection.execute(insert(TOTALS), new)
    row = (TOTALS.c.name == bindparam("total_name")) & (TOTALS.c.label == bindparam("total_label"))
    added = update(TOTALS).where(row).values(value=TOTALS.c.value + bindparam("amount"))
    amounts = [
        {"total_name": name, "total_label": label, "amount": amount}
        for (name, label), amount in totals.items()
    ]
    connection.execute(added, amounts)


def _run_values(run: RunRecord) -> dict[str, object]:
    values = {field.name: getattr(run, field.name) for field in fields(run)}
    return {
        name: utc_timestamp(value) if isinstance(value, datetime) else value for name, value in values.items()
    }
