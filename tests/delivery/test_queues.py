"""The outbox in the ledger is bounded, has one sender, and never blocks a run."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from eemtcleanupd.clock import monotonic_seconds
from tests.delivery.conftest import Recorder, wait_until, wake
from tests.notifiers.samples import FINISHED


def test_only_one_of_two_processes_sends(recorder: Recorder) -> None:
    holder = recorder.open()
    wake(holder)
    assert holder.drain(10)
    other = recorder.open()
    other.publish(FINISHED)
    assert other.drain(10)
    assert recorder.stats().waiting + len(recorder.events()) == 1
    wake(holder)
    wait_until(recorder.events)
    assert holder.drain(10)
    assert recorder.events() == ["RunFinished"]


def test_a_full_outbox_drops_the_oldest_messages(recorder: Recorder) -> None:
    recorder.set_code("raise RetryLater('busy')")
    dispatcher = recorder.open(max_waiting=3)
    for _ in range(5):
        dispatcher.publish(FINISHED)
    assert dispatcher.drain(10)
    assert (recorder.stats().waiting, recorder.stats().dropped) == (3, 2)


@pytest.mark.slow
def test_a_locked_database_delays_no_run_and_loses_no_message(recorder: Recorder) -> None:
    dispatcher = recorder.open()
    assert dispatcher.drain(10)
    connection = sqlite3.connect(recorder.store.path / "jobs.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    started = monotonic_seconds()
    dispatcher.publish(FINISHED)
    assert monotonic_seconds() - started < 15
    wait_until(recorder.events)
    connection.execute("ROLLBACK")
    connection.close()
    assert recorder.events() == ["RunFinished"]


def test_the_lock_file_is_beside_the_database(recorder: Recorder) -> None:
    dispatcher = recorder.open()
    assert dispatcher.drain(10)
    dispatcher.publish(FINISHED)
    assert dispatcher.drain(10)
    assert Path(f"{recorder.store.path}/jobs.db.eemtcleanupd.outbox.lock").exists()
