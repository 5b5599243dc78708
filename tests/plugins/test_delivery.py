"""Messages arrive once, late rather than never, and nobody waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.config.plugin_settings import NotifierSettings
from eemtcleanupd.delivery import Dispatcher, dispatcher, queues
from eemtcleanupd.delivery.serialization import HOOKS, decode, encode, next_digest, wants
from eemtcleanupd.delivery.worker import backoff
from eemtcleanupd.events import (
    CapacityWarning,
    ConfigRejected,
    ConfigReloaded,
    DaemonStarted,
    DaemonStopping,
    DiskPressure,
    Event,
    JobCleaned,
    RunFinished,
)
from eemtcleanupd.model import Job, JobClass, Outcome, Trigger
from eemtcleanupd.plugins import Plugins
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.outbox import (
    DeliveryStats,
    LedgerOutbox,
    MemoryOutbox,
    Message,
    Outbox,
    delivery_stats,
)
from eemtcleanupd.store.sqlite import SqliteDatabase
from tests.cleanup.conftest import NOW, JobStore
from tests.notifiers.samples import FAILED, FINISHED, HOSTILE_REPORT, report
from tests.plugins.conftest import MakePlugins, Module

BOX = """
from pathlib import Path
class S(NotifierSettings):
    box: Path
@hookimpl
def register_settings():
    return S
@hookimpl
def notify(event, settings):
    order = settings.box.with_suffix('.do')
    if order.exists():
        exec(order.read_text())
    with settings.box.open('a') as file:
        print(type(event).__name__, file=file)
    return 'thanks'
"""


class Post:
    """A notifier that writes into a file, or does what a test says, and deliveries to it."""

    def __init__(self, module: Module, plugins: MakePlugins, store: JobStore, stack: ExitStack) -> None:
        self._name = module("letterbox", BOX)
        self._build, self.store, self._stack = plugins, store, stack
        self.box = store.path / "letters"
        self.now = NOW

    def plugins(self, more: str = "") -> Plugins:
        return self._build(
            f"plugins: [{self._name}]\nblocked_plugins: [prometheus, audit_log]\n"
            f"notifications: {{letterbox: {{box: {self.box}{more}}}}}"
        )

    def open(self, more: str = "", *, durable: bool = True) -> Dispatcher:
        delivery = Dispatcher(StoreAddress.of_file(self.store.path / "jobs.db"), lambda: self.now)
        delivery.configure(self.plugins(more), durable=durable)
        self._stack.callback(delivery.close)
        return delivery

    def order(self, code: str | None) -> None:
        file = self.box.with_suffix(".do")
        if code is None:
            file.unlink()
        else:
            file.write_text(code)

    def letters(self) -> list[str]:
        return self.box.read_text().split() if self.box.exists() else []

    def tally(self) -> DeliveryStats:
        database = SqliteDatabase(self.store.path / "jobs.db", busy_timeout_seconds=5)
        try:
            return delivery_stats(database).get("letterbox", DeliveryStats())
        finally:
            database.close()


@pytest.fixture
def post(module: Module, plugins: MakePlugins, store: JobStore) -> Iterator[Post]:
    with ExitStack() as stack:
        yield Post(module, plugins, store, stack)


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = monotonic_seconds() + seconds
    while not condition():
        assert monotonic_seconds() < deadline, "it did not come to that"
        time.sleep(0.01)


def wake(delivery: Dispatcher) -> None:
    for courier in delivery._couriers.values():
        courier.wake()


def test_what_is_told_arrives_once_and_is_counted(post: Post) -> None:
    delivery = post.open()
    delivery.publish(FINISHED)
    delivery.publish(FAILED)
    assert delivery.drain(10)
    assert post.letters() == ["RunFinished", "RunFailed"]
    assert (post.tally().delivered, post.tally().waiting) == (2, 0)


def test_one_that_cannot_be_reached_is_told_later(post: Post) -> None:
    post.order("raise RetryLater('busy')")
    delivery = post.open()
    delivery.publish(FINISHED)
    assert delivery.drain(10)
    assert post.letters() == []
    assert (post.tally().retried, post.tally().waiting, post.tally().last_error) == (1, 1, "busy")
    post.order(None)
    wake(delivery)
    assert delivery.drain(10)
    assert post.letters() == []  # it is not time yet
    post.now += timedelta(seconds=6)
    wake(delivery)
    assert delivery.drain(10)
    assert post.letters() == ["RunFinished"]
    assert post.tally().waiting == 0


def test_what_is_of_no_use_to_try_again_is_not(post: Post) -> None:
    post.order("raise ValueError('never')")
    delivery = post.open()
    delivery.publish(FINISHED)
    assert delivery.drain(10)
    assert (post.tally().failed, post.tally().waiting) == (1, 0)
    assert post.tally().last_error == "ValueError: never"


def test_after_three_days_it_is_given_up(post: Post) -> None:
    post.order("raise RetryLater('busy')")
    delivery = post.open()
    delivery.publish(FINISHED)
    assert delivery.drain(10)
    post.now += timedelta(days=3, seconds=1)
    wake(delivery)
    assert delivery.drain(10)
    assert (post.tally().failed, post.tally().waiting) == (1, 0)


def test_what_was_not_delivered_is_after_a_restart_and_only_once(post: Post) -> None:
    post.order("raise RetryLater('busy')")
    first = post.open()
    first.publish(FINISHED)
    assert first.drain(10)
    first.close()
    post.order(None)
    post.now += timedelta(minutes=1)
    second = post.open()
    until(post.letters)
    second.close()
    third = post.open()
    assert third.drain(10)
    assert post.letters() == ["RunFinished"]


def test_of_two_processes_only_one_sends(post: Post) -> None:
    holder = post.open()
    assert holder.drain(10)
    wake(holder)
    other = post.open()
    other.publish(FINISHED)
    assert other.drain(10)
    assert post.tally().waiting + len(post.letters()) == 1
    wake(holder)
    until(post.letters)
    assert holder.drain(10)
    assert post.letters() == ["RunFinished"]


def test_nothing_is_written_where_only_dry_runs_are_wanted(post: Post) -> None:
    delivery = post.open(", on: [dry_run]", durable=False)
    delivery.publish(RunFinished(replace(FINISHED.report, dry_run=True)))
    assert delivery.drain(10)
    assert post.letters() == ["RunFinished"]
    assert post.store.sql("SELECT count(*) FROM sqlite_master WHERE name LIKE 'cleanup%'") == [(0,)]


def test_one_that_hangs_is_left_alone_and_tried_again_later(post: Post) -> None:
    post.order("import threading; threading.Event().wait(30)")
    delivery = post.open(", timeout_seconds: 0.05")
    started = monotonic_seconds()
    delivery.publish(FINISHED)
    assert monotonic_seconds() - started < 5
    assert delivery.drain(20)
    assert post.tally().last_error == "no answer within 0.15 seconds"
    post.order(None)
    post.now += timedelta(minutes=1)
    wake(delivery)
    assert delivery.drain(20)
    assert post.letters() == ["RunFinished"]


def test_no_more_than_three_attempts_hang_at_a_time(post: Post) -> None:
    post.order("import threading; threading.Event().wait(30)")
    delivery = post.open(", timeout_seconds: 0.02")
    delivery.publish(FINISHED)
    for _ in range(4):
        assert delivery.drain(20)
        post.now += timedelta(hours=2)
        wake(delivery)
    assert delivery.drain(20)
    assert post.tally().last_error == "3 earlier attempts still hang"


def test_too_many_push_the_oldest_out(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "_MAX_WAITING", 3)
    post.order("raise RetryLater('busy')")
    delivery = post.open()
    for _ in range(5):
        delivery.publish(FINISHED)
    assert delivery.drain(10)
    assert (post.tally().waiting, post.tally().dropped) == (3, 2)


def test_a_locked_database_delays_nobody_and_loses_nothing(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    monkeypatch.setattr(queues, "_BUSY_TIMEOUT_SECONDS", 0.05)
    delivery = post.open()
    assert delivery.drain(10)
    connection = sqlite3.connect(post.store.path / "jobs.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    delivery.publish(FINISHED)
    until(post.letters)
    connection.execute("ROLLBACK")
    connection.close()
    assert post.letters() == ["RunFinished"]


def test_a_digest_is_one_message_a_day(post: Post) -> None:
    delivery = post.open(", digest: '07:00'")
    delivery.publish(FINISHED)
    delivery.publish(FAILED)
    delivery.publish(DiskPressure(95, 1, 90, 80))
    assert delivery.drain(10)
    assert post.letters() == ["DiskPressure"]
    post.now += timedelta(days=1)
    wake(delivery)
    assert delivery.drain(10)
    assert post.letters() == ["DiskPressure", "Digest"]
    assert post.tally().waiting == 0


def test_a_notifier_that_a_reload_takes_away_is_not_told(post: Post, plugins: MakePlugins) -> None:
    delivery = post.open()
    delivery.configure(post.plugins(", enabled: false"))
    delivery.publish(FINISHED)
    assert delivery.drain(10)
    assert post.letters() == []


@pytest.mark.parametrize(
    "event", [FINISHED, FAILED, HOSTILE_REPORT, DiskPressure(1, 2, 3, 4), CapacityWarning(1, 2, 3)], ids=str
)
def test_an_event_comes_out_of_the_outbox_as_it_went_in(event: Event) -> None:
    back = decode(HOOKS[type(event)], encode(event))
    assert type(back) is type(event)
    if event is not HOSTILE_REPORT:  # bytes that are not UTF-8 come back in words
        assert back == event


WANTED = [
    (FINISHED, {"on": ("success",)}, True),
    (FINISHED, {"on": ("failure",)}, False),
    (RunFinished(report(Outcome.ERRORS, errors=1)), {"on": ("failure",)}, True),
    (RunFinished(report(Outcome.ERRORS, errors=1)), {"on": ("success",)}, False),
    (RunFinished(report("interrupted")), {"on": ("interrupted",)}, True),
    (RunFinished(report(dry_run=True)), {"on": ("success",)}, False),
    (RunFinished(report(dry_run=True)), {"on": ("dry_run",)}, True),
    (RunFinished(report(trigger=Trigger.TRASH)), {"on": ("success",)}, False),
    (RunFinished(report(trigger=Trigger.TRASH)), {"on": ("trash",)}, True),
    (RunFinished(report(Outcome.ERRORS, errors=1, trigger=Trigger.TRASH)), {"on": ("failure",)}, True),
    (FAILED, {"on": ("failure",)}, True),
    (FAILED, {"on": ("success",)}, False),
    (DiskPressure(1, 2, 3, 4), {"on": ("pressure",)}, True),
    (CapacityWarning(1, 2, 3), {}, True),
    (CapacityWarning(1, 2, 3), {"on": ("pressure",)}, False),
    (ConfigReloaded("f", "r"), {"on": ("config_rejected",)}, False),
    (ConfigRejected("f", "r", "e"), {"on": ("config_rejected",)}, True),
    (DaemonStarted(1, "h", None), {"on": ("daemon",)}, True),
    (DaemonStopping("r"), {"on": ("success",)}, False),
    (FINISHED, {"only_if_cleaned": True}, True),
    (RunFinished(report(is_test=True)), {"on": ("failure",)}, True),
]


@pytest.mark.parametrize(("event", "settings", "wanted"), WANTED)
def test_on_and_only_if_cleaned_say_what_is_told(
    event: Event, settings: dict[str, object], wanted: bool
) -> None:
    assert wants(NotifierSettings(**settings), event) == wanted


def test_a_run_that_cleaned_nothing_is_not_told_with_only_if_cleaned() -> None:
    from eemtcleanupd.events import JobTally as Cleaned

    nothing = RunFinished(report(successful=Cleaned(), failed=Cleaned()))
    assert not wants(NotifierSettings(only_if_cleaned=True), nothing)
    assert wants(NotifierSettings(), nothing)


def test_the_wait_doubles_and_is_never_more_than_an_hour() -> None:
    for attempts in range(40):
        seconds = backoff(attempts, None).total_seconds()
        assert min(3600, 2.5 * 2**attempts) <= seconds <= min(3600, 5 * 2**attempts)
    assert backoff(0, 77).total_seconds() == 77
    assert backoff(0, 999_999).total_seconds() == 3600


@pytest.mark.parametrize(
    ("now", "due"),
    [
        (datetime(2026, 6, 15, 4, 59, tzinfo=UTC), datetime(2026, 6, 15, 5, tzinfo=UTC)),
        (datetime(2026, 6, 15, 5, 0, tzinfo=UTC), datetime(2026, 6, 16, 5, tzinfo=UTC)),
        (datetime(2026, 10, 24, 12, tzinfo=UTC), datetime(2026, 10, 25, 6, tzinfo=UTC)),
    ],
)
def test_the_digest_is_due_at_the_next_such_local_time(
    monkeypatch: pytest.MonkeyPatch, now: datetime, due: datetime
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert next_digest("07:00", now) == due


@pytest.fixture(params=["memory", "ledger"])
def outbox(request: pytest.FixtureRequest, store: JobStore) -> Iterator[Outbox]:
    if request.param == "memory":
        yield MemoryOutbox(5)
        return
    database = SqliteDatabase(store.path / "jobs.db", busy_timeout_seconds=5)
    yield LedgerOutbox(database, 5)
    database.close()


def message(notifier: str, due: timedelta = timedelta()) -> Message:
    return Message(notifier, "run_failed", encode(FAILED), NOW, NOW + due)


def test_both_outboxes_do_the_same(outbox: Outbox) -> None:
    outbox.put([message("a"), message("b"), message("a", timedelta(hours=1))])
    (first,) = outbox.due("a", NOW, 10)
    assert outbox.next_due("a") == NOW
    outbox.retry([first], NOW + timedelta(minutes=5), "busy", NOW)
    assert outbox.due("a", NOW, 10) == []
    later = outbox.due("a", NOW + timedelta(hours=2), 10)
    assert [each.attempts for each in later] == [1, 0]
    outbox.done(later, "delivered", None, NOW)
    assert outbox.next_due("a") is None
    assert len(outbox.due("b", NOW, 10)) == 1


def test_no_outbox_holds_more_than_it_may(outbox: Outbox) -> None:
    for _ in range(9):
        outbox.put([message("a")])
    assert len(outbox.due("a", NOW, 100)) == 5


def test_what_waits_for_a_notifier_that_is_gone_is_dropped_after_a_week(outbox: Outbox) -> None:
    if isinstance(outbox, MemoryOutbox):
        return
    outbox.put([message("gone")])
    outbox.put([replace(message("a"), created_at=NOW + timedelta(days=8))])
    assert outbox.next_due("gone") is None
    assert outbox.next_due("a") is not None


def test_a_lock_file_is_left_beside_the_database(post: Post) -> None:
    delivery = post.open()
    assert delivery.drain(10)
    delivery.publish(FINISHED)
    assert delivery.drain(10)
    assert Path(f"{post.store.path}/jobs.db.eemtcleanupd.outbox.lock").exists()


def test_many_jobs_are_told_in_their_order_and_from_memory(
    module: Module, plugins: MakePlugins, store: JobStore
) -> None:
    told = store.path / "told"
    name = module(
        "listener",
        f"@hookimpl\ndef job_cleaned(event):\n"
        f"    with open({str(told)!r}, 'a') as file:\n        print(event.job.id, file=file)\n",
    )
    delivery = Dispatcher(StoreAddress.of_file(store.path / "jobs.db"), lambda: NOW)
    delivery.configure(plugins(f"plugins: [{name}]"))
    for number in range(2000):
        job = Job(f"job-{number}", "completed")
        delivery.publish(JobCleaned("run", job, JobClass.SUCCESSFUL, None, (), 1))
    assert delivery.drain(30)
    delivery.close()
    assert told.read_text().split() == [f"job-{number}" for number in range(2000)]
    assert store.sql("SELECT count(*) FROM sqlite_master WHERE name = 'cleanup_outbox'") == [(0,)]


def test_a_fault_of_our_own_ends_no_run(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(event: Event) -> str:
        raise TypeError(event)

    delivery = post.open()
    monkeypatch.setattr(dispatcher, "encode", broken)
    delivery.publish(FINISHED)
    monkeypatch.undo()
    delivery.publish(FINISHED)
    assert delivery.drain(10)
    assert post.letters() == ["RunFinished"]
