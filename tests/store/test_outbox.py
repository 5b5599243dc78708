"""Both outboxes, in memory and in the ledger, behave the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from eemtcleanupd.store.outbox import LedgerOutbox, MemoryOutbox, Message, Outbox
from eemtcleanupd.store.sqlite import SqliteDatabase
from tests.cleanup.conftest import NOW, JobStore


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Outbox]:
    database = SqliteDatabase(JobStore(tmp_path / "store").path / "jobs.db", busy_timeout_seconds=5)
    yield LedgerOutbox(database, 5)
    database.close()


@pytest.fixture(params=["memory", "ledger"])
def outbox(request: pytest.FixtureRequest) -> Outbox:
    if request.param == "memory":
        return MemoryOutbox(5)
    outbox: Outbox = request.getfixturevalue("ledger")
    return outbox


def message(notifier: str, due: timedelta = timedelta()) -> Message:
    return Message(notifier, "run_failed", "{}", NOW, NOW + due)


def test_due_messages_are_retried_and_removed(outbox: Outbox) -> None:
    outbox.put([message("a"), message("b"), message("a", timedelta(hours=1))])
    (first,) = outbox.due("a", NOW, 10)
    assert outbox.next_due("a") == NOW
    outbox.retry([first], NOW + timedelta(minutes=5), "busy", NOW)
    assert outbox.due("a", NOW, 10) == []
    later = outbox.due("a", NOW + timedelta(hours=2), 10)
    assert [message.attempts for message in later] == [1, 0]
    outbox.done(later, "delivered", None, NOW)
    assert outbox.next_due("a") is None
    assert len(outbox.due("b", NOW, 10)) == 1


def test_an_outbox_keeps_at_most_its_limit(outbox: Outbox) -> None:
    for _ in range(9):
        outbox.put([message("a")])
    assert len(outbox.due("a", NOW, 100)) == 5


def test_messages_for_a_removed_notifier_are_dropped_after_a_week(ledger: Outbox) -> None:
    ledger.put([message("removed")])
    ledger.put([replace(message("a"), created_at=NOW + timedelta(days=8))])
    assert ledger.next_due("removed") is None
    assert ledger.next_due("a") is not None
