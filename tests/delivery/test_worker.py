"""A worker retries what can succeed later, gives up in the end, and abandons calls that hang."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from datetime import timedelta

import pytest

from eemtcleanupd.delivery.worker import backoff
from eemtcleanupd.events import DiskPressure
from tests.delivery.conftest import Recorder, wait_until, wake
from tests.notifiers.samples import FAILED, FINISHED


def test_a_message_is_retried_when_the_backoff_has_passed(recorder: Recorder) -> None:
    recorder.set_code("raise RetryLater('busy')")
    dispatcher = recorder.open()
    dispatcher.publish(FINISHED)
    assert dispatcher.drain(10)
    assert recorder.events() == []
    stats = recorder.stats()
    assert (stats.retried, stats.waiting, stats.last_error) == (1, 1, "busy")
    recorder.set_code(None)
    wake(dispatcher)
    assert dispatcher.drain(10)
    assert recorder.events() == []  # the backoff has not passed yet
    recorder.now += timedelta(seconds=6)
    wake(dispatcher)
    assert dispatcher.drain(10)
    assert recorder.events() == ["RunFinished"]
    assert recorder.stats().waiting == 0


def test_a_permanent_error_is_not_retried(recorder: Recorder) -> None:
    recorder.set_code("raise ValueError('never')")
    dispatcher = recorder.open()
    dispatcher.publish(FINISHED)
    assert dispatcher.drain(10)
    assert (recorder.stats().failed, recorder.stats().waiting) == (1, 0)
    assert recorder.stats().last_error == "ValueError: never"


def test_the_log_names_the_event_of_a_forged_message_on_one_short_line(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.set_code("raise RetryLater('busy')")
    dispatcher = recorder.open()
    dispatcher.publish(FINISHED)
    assert dispatcher.drain(10)
    event = "\x1b[2J\nRun finished" + "x" * 1_000_000
    recorder.store.sql("UPDATE cleanup_outbox SET event = ?", event)
    recorder.now += timedelta(seconds=6)
    wake(dispatcher)
    assert dispatcher.drain(10)
    assert recorder.stats().failed == 1
    (line,) = (each.getMessage() for each in caplog.records if each.levelname == "ERROR")
    assert line.isprintable()
    assert len(line) < 1000


def test_a_message_is_given_up_after_three_days(recorder: Recorder) -> None:
    recorder.set_code("raise RetryLater('busy')")
    dispatcher = recorder.open()
    dispatcher.publish(FINISHED)
    assert dispatcher.drain(10)
    recorder.now += timedelta(days=3, seconds=1)
    wake(dispatcher)
    assert dispatcher.drain(10)
    assert (recorder.stats().failed, recorder.stats().waiting) == (1, 0)


def test_an_undelivered_message_is_sent_once_after_a_restart(recorder: Recorder) -> None:
    recorder.set_code("raise RetryLater('busy')")
    first = recorder.open()
    first.publish(FINISHED)
    assert first.drain(10)
    first.close()
    recorder.set_code(None)
    recorder.now += timedelta(minutes=1)
    second = recorder.open()
    assert second.drain(10)
    second.close()
    third = recorder.open()
    assert third.drain(10)
    assert recorder.events() == ["RunFinished"]


def test_a_retry_is_for_those_who_have_not_received_the_message_even_after_a_restart(
    recorder: Recorder,
) -> None:
    recorder.set_code("raise RetryLater('busy', recipients=['second'])")
    first = recorder.open()
    first.publish(FINISHED)
    assert first.drain(10)
    first.close()
    recorder.set_code("raise RetryLater('no connection')")
    recorder.now += timedelta(minutes=1)
    second = recorder.open()
    wait_until(lambda: recorder.stats().retried == 2)
    second.close()
    recorder.set_code(None)
    recorder.now += timedelta(minutes=1)
    recorder.open()
    wait_until(recorder.events)
    assert recorder.events() == ["RunFinished:second"]


def test_digests_for_different_recipients_are_separate(recorder: Recorder) -> None:
    recorder.set_code("raise RetryLater('busy', recipients=['second'])")
    dispatcher = recorder.open(", digest: '07:00'")
    dispatcher.publish(FINISHED)
    recorder.now += timedelta(days=1)
    wake(dispatcher)
    wait_until(lambda: recorder.stats().retried == 1)
    recorder.set_code(None)
    dispatcher.publish(FINISHED)
    recorder.now += timedelta(days=1)
    wake(dispatcher)
    wait_until(lambda: len(recorder.events()) == 2)
    assert sorted(recorder.events()) == ["Digest", "Digest:second"]


def test_a_call_that_hangs_is_abandoned_and_retried(recorder: Recorder) -> None:
    recorder.set_code("import threading; threading.Event().wait(30)")
    dispatcher = recorder.open(", timeout_seconds: 0.05")
    dispatcher.publish(FINISHED)
    assert dispatcher.drain(20)
    assert "0.15 seconds" in (recorder.stats().last_error or "")
    recorder.set_code(None)
    dispatcher.configure(recorder.plugins(", timeout_seconds: 20"))
    recorder.now += timedelta(minutes=1)
    wake(dispatcher)
    assert dispatcher.drain(20)
    assert recorder.events() == ["RunFinished"]


def test_at_most_three_calls_hang_at_a_time(recorder: Recorder) -> None:
    recorder.set_code("import threading; threading.Event().wait(30)")
    dispatcher = recorder.open(", timeout_seconds: 0.02")
    dispatcher.publish(FINISHED)
    for _ in range(4):
        assert dispatcher.drain(20)
        recorder.now += timedelta(hours=2)
        wake(dispatcher)
    assert dispatcher.drain(20)
    assert (recorder.stats().last_error or "").startswith("3 earlier attempts")


def test_a_digest_is_one_message_a_day(recorder: Recorder) -> None:
    dispatcher = recorder.open(", digest: '07:00'")
    dispatcher.publish(FINISHED)
    dispatcher.publish(FAILED)
    dispatcher.publish(DiskPressure(95, 1, 90, 80))
    assert dispatcher.drain(10)
    assert recorder.events() == ["DiskPressure"]
    recorder.now += timedelta(days=1)
    wake(dispatcher)
    assert dispatcher.drain(10)
    assert recorder.events() == ["DiskPressure", "Digest"]
    assert recorder.stats().waiting == 0


def test_the_backoff_doubles_up_to_one_hour() -> None:
    for attempts in range(40):
        seconds = backoff(attempts, None).total_seconds()
        assert min(3600, 2.5 * 2**attempts) <= seconds <= min(3600, 5 * 2**attempts)
    assert backoff(0, 77).total_seconds() == 77
    assert backoff(0, 999_999).total_seconds() == 3600


def test_a_message_is_not_sent_again_while_its_result_cannot_be_recorded(recorder: Recorder) -> None:
    started, go = recorder.store.path / "started", recorder.store.path / "go"
    recorder.set_code(
        f"import time\nPath({str(started)!r}).touch()\nwhile not Path({str(go)!r}).exists(): time.sleep(0.01)"
    )
    dispatcher = recorder.open()
    dispatcher.publish(FINISHED)
    wait_until(started.exists)
    with closing(sqlite3.connect(recorder.store.path / "jobs.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        go.touch()
        assert dispatcher.drain(20)
        wake(dispatcher)
        assert dispatcher.drain(20)
        writer.execute("ROLLBACK")
    wake(dispatcher)
    assert dispatcher.drain(20)
    assert recorder.events() == ["RunFinished"]
    assert (recorder.stats().delivered, recorder.stats().waiting) == (1, 0)


def test_a_message_is_sent_once_a_thread_for_it_can_be_started(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, refused = threading.Thread.start, threading.Event()

    def start_later(self: threading.Thread) -> None:
        if self.name.endswith("sending") and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_later)
    dispatcher = recorder.open(", timeout_seconds: 30")
    dispatcher.publish(FINISHED)
    assert refused.wait(20)
    wake(dispatcher)
    assert dispatcher.drain(20)
    assert recorder.events() == ["RunFinished"]
