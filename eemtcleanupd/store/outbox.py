"""Queues of messages for notifiers, in the ledger or in memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from sqlalchemy import Connection, delete, func, insert, select, update

from eemtcleanupd.store.base import corruption_guard
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.tables import DELIVERY_OUTCOMES, NOTIFIERS, OUTBOX
from eemtcleanupd.store.values import utc_timestamp

_STALE_AFTER = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Message:
    """One event for one notifier.

    ``payload`` is the event as its producer serialized it.  ``recipients`` are those who have not received
    it; empty means all.
    """

    notifier: str
    event: str
    payload: object
    created_at: datetime
    due_at: datetime
    attempts: int = 0
    id: int = 0
    recipients: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeliveryStats:
    """Delivery statistics of a notifier.  ``waiting`` counts the messages in the outbox.

    ``next_attempt_at`` is when the first of them is due.
    """

    delivered: int = 0
    retried: int = 0
    failed: int = 0
    dropped: int = 0
    waiting: int = 0
    last_delivered_at: datetime | None = None
    last_error: str | None = None
    last_error_at: datetime | None = None
    next_attempt_at: datetime | None = None


class Outbox(Protocol):
    """A queue of messages.  Every method can raise StoreError."""

    def put(self, messages: Sequence[Message]) -> None:
        """Add messages."""

    def due(self, notifier: str, now: datetime, limit: int) -> list[Message]:
        """Return a notifier's messages that are due, oldest first."""

    def next_due(self, notifier: str) -> datetime | None:
        """Return when the next message of a notifier is due, or None if there is none."""

    def done(self, messages: Sequence[Message], outcome: str, error: str | None, now: datetime) -> None:
        """Remove messages.  ``outcome`` is one of ``DELIVERY_OUTCOMES``."""

    def retry(
        self,
        messages: Sequence[Message],
        due_at: datetime,
        error: str,
        now: datetime,
        recipients: tuple[str, ...] = (),
    ) -> None:
        """Keep messages for another attempt at ``due_at``, for these recipients; empty means all."""


class MemoryOutbox:
    """An outbox in memory.  Above ``limit`` messages per notifier the oldest are dropped."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._messages: dict[str, dict[int, Message]] = {}
        self._last_id = 0
        self.dropped = 0

    def put(self, messages: Sequence[Message]) -> None:
        """Add messages."""
        for message in messages:
            self._last_id += 1
            waiting = self._messages.setdefault(message.notifier, {})
            waiting[self._last_id] = replace(message, id=self._last_id)
            if len(waiting) > self._limit:
                del waiting[next(iter(waiting))]
                self.dropped += 1

    def due(self, notifier: str, now: datetime, limit: int) -> list[Message]:
        """Return a notifier's messages that are due, oldest first."""
        waiting = self._messages.get(notifier, {}).values()
        return list(itertools.islice((message for message in waiting if message.due_at <= now), limit))

    def next_due(self, notifier: str) -> datetime | None:
        """Return when the next message of a notifier is due, or None if there is none."""
        return min((message.due_at for message in self._messages.get(notifier, {}).values()), default=None)

    def done(self, messages: Sequence[Message], outcome: str, error: str | None, now: datetime) -> None:
        """Remove messages."""
        del outcome, error, now
        for message in messages:
            self._messages[message.notifier].pop(message.id, None)

    def retry(
        self,
        messages: Sequence[Message],
        due_at: datetime,
        error: str,
        now: datetime,
        recipients: tuple[str, ...] = (),
    ) -> None:
        """Keep messages for another attempt at ``due_at``, for these recipients; empty means all."""
        del error, now
        for message in messages:
            waiting = self._messages[message.notifier]
            if message.id in waiting:
                waiting[message.id] = replace(
                    message, due_at=due_at, attempts=message.attempts + 1, recipients=recipients
                )


class LedgerOutbox:
    """An outbox in the ledger, which survives a crash.  Only one thread at a time can use it.

    Args:
        database: the job database.
        limit: the maximum number of messages per notifier.  Above it the oldest are dropped.
    """

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._limit = limit

    def exists(self) -> bool:
        """Return whether the ledger has an outbox, with the columns of this version."""
        with self._database.read() as connection:
            existing = self._database.ledger_columns(connection)
        return all((OUTBOX.name, column.name) in existing for column in OUTBOX.columns)

    def put(self, messages: Sequence[Message]) -> None:
        """Add messages in one transaction."""
        Ledger(self._database).create_tables()

        rows = [
            {
                "notifier": message.notifier,
                "event": message.event,
                "payload": message.payload,
                "created_at": utc_timestamp(message.created_at),
                "due_at": utc_timestamp(message.due_at),
                "attempts": message.attempts,
            }
            for message in messages
        ]

        def work(connection: Connection) -> None:
            connection.execute(insert(OUTBOX), rows)
            now = messages[0].created_at
            _drop_stale(connection, now)
            for notifier in {message.notifier for message in messages}:
                self._drop_oldest(connection, notifier, now)

        self._database.write(work)

    def _drop_oldest(self, connection: Connection, notifier: str, now: datetime) -> None:
        mine = OUTBOX.c.notifier == notifier
        count = connection.execute(select(func.count()).where(mine)).scalar_one()
        if count > self._limit:
            oldest = select(OUTBOX.c.id).where(mine).order_by(OUTBOX.c.id).limit(count - self._limit)
            connection.execute(delete(OUTBOX).where(OUTBOX.c.id.in_(oldest)))
            _count(connection, notifier, "dropped", count - self._limit, error="The queue was full.", now=now)

    def due(self, notifier: str, now: datetime, limit: int) -> list[Message]:
        """Return a notifier's messages that are due, oldest first."""
        statement = (
            select(OUTBOX)
            .where((OUTBOX.c.notifier == notifier) & (OUTBOX.c.due_at <= utc_timestamp(now)))
            .order_by(OUTBOX.c.id)
            .limit(limit)
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        with corruption_guard(OUTBOX.name):
            return [
                Message(
                    row.notifier,
                    row.event,
                    row.payload,
                    _utc(row.created_at),
                    _utc(row.due_at),
                    row.attempts,
                    row.id,
                    tuple(json.loads(row.recipients or "[]")),
                )
                for row in rows
            ]

    def next_due(self, notifier: str) -> datetime | None:
        """Return when the next message of a notifier is due, or None if there is none."""
        statement = select(func.min(OUTBOX.c.due_at)).where(OUTBOX.c.notifier == notifier)
        with self._database.read() as connection:
            first = connection.execute(statement).scalar()
        return None if first is None else _utc(first)

    def done(self, messages: Sequence[Message], outcome: str, error: str | None, now: datetime) -> None:
        """Remove messages and count their outcome."""

        def work(connection: Connection) -> None:
            connection.execute(delete(OUTBOX).where(OUTBOX.c.id.in_([message.id for message in messages])))
            _count(connection, messages[0].notifier, outcome, len(messages), error=error, now=now)

        self._database.write(work)

    def retry(
        self,
        messages: Sequence[Message],
        due_at: datetime,
        error: str,
        now: datetime,
        recipients: tuple[str, ...] = (),
    ) -> None:
        """Keep messages for another attempt at ``due_at``, for these recipients, and count this one."""

        def work(connection: Connection) -> None:
            connection.execute(
                update(OUTBOX)
                .where(OUTBOX.c.id.in_([message.id for message in messages]))
                .values(
                    due_at=utc_timestamp(due_at),
                    attempts=OUTBOX.c.attempts + 1,
                    error=error,
                    recipients=json.dumps(recipients) if recipients else None,
                )
            )
            _count(connection, messages[0].notifier, "retried", 1, error=error, now=now)

        self._database.write(work)


def delivery_stats(database: Database) -> dict[str, DeliveryStats]:
    """Return the delivery statistics by notifier name."""
    if not Ledger(database).exists():
        return {}
    with database.read() as connection:
        rows = connection.execute(select(NOTIFIERS)).all()
        columns = OUTBOX.c.notifier, func.count(), func.min(OUTBOX.c.due_at)
        waiting = connection.execute(select(*columns).group_by(OUTBOX.c.notifier)).all()
    stats = {
        row.name: DeliveryStats(
            row.delivered,
            row.retried,
            row.failed,
            row.dropped,
            0,
            row.last_delivered_at and _utc(row.last_delivered_at),
            row.last_error,
            row.last_error_at and _utc(row.last_error_at),
        )
        for row in rows
    }
    for name, count, due_at in waiting:
        stats[name] = replace(stats.get(name, DeliveryStats()), waiting=count, next_attempt_at=_utc(due_at))
    return stats


def _drop_stale(connection: Connection, now: datetime) -> None:
    """Remove the messages of notifiers that were disabled or removed."""
    stale = OUTBOX.c.created_at < utc_timestamp(now - _STALE_AFTER)
    grouped = select(OUTBOX.c.notifier, func.count()).where(stale).group_by(OUTBOX.c.notifier)
    for notifier, count in connection.execute(grouped).all():
        _count(
            connection, notifier, "dropped", count, error="The message was not sent within a week.", now=now
        )
    connection.execute(delete(OUTBOX).where(stale))


def _count(
    connection: Connection, notifier: str, outcome: str, amount: int, *, error: str | None, now: datetime
) -> None:
    mine = NOTIFIERS.c.name == notifier
    if not connection.execute(select(func.count()).where(mine)).scalar_one():
        connection.execute(insert(NOTIFIERS).values(name=notifier, **dict.fromkeys(DELIVERY_OUTCOMES, 0)))
    values: dict[str, object] = {outcome: NOTIFIERS.c[outcome] + amount}
    if outcome == "delivered":
        values["last_delivered_at"] = utc_timestamp(now)
    else:
        values |= {"last_error": error, "last_error_at": utc_timestamp(now)}
    connection.execute(update(NOTIFIERS).where(mine).values(values))


def _utc(value: str) -> datetime:
    with corruption_guard(OUTBOX.name):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
