"""Telling: a queue, a thread and patience for each notifier, so that none can harm a run or another.

What a notifier is to be told is written into the outbox of the ledger when it happens, and taken out when
the notifier has it.  Of several processes on one job store the one that holds the outbox's lock sends; when
it dies, the lock is free and what it left is sent by the next.
"""

from __future__ import annotations

import json
import logging
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from eemtcleanupd.clock import Clock, local_zone
from eemtcleanupd.config.notifier import NotifierSettings
from eemtcleanupd.errors import CleanupError, LockHeldError, StoreError
from eemtcleanupd.events import (
    CapacityWarning,
    ConfigRejected,
    ConfigReloaded,
    DaemonStarted,
    DaemonStopping,
    DiskPressure,
    Event,
    JobCleaned,
    RunFailed,
    RunFinished,
    RunStarted,
)
from eemtcleanupd.hookspecs import Digest, RetryLater
from eemtcleanupd.plugins import PluginSet
from eemtcleanupd.store.location import Location, StoreLock
from eemtcleanupd.store.outbox import LedgerOutbox, MemoryOutbox, Message, Outbox
from eemtcleanupd.store.runs import TRASH_TRIGGER

log = logging.getLogger(__name__)

HOOKS: dict[type[Any], str] = {
    DaemonStarted: "daemon_started",
    DaemonStopping: "daemon_stopping",
    ConfigReloaded: "config_reloaded",
    ConfigRejected: "config_rejected",
    RunStarted: "run_started",
    JobCleaned: "job_cleaned",
    RunFinished: "run_finished",
    RunFailed: "run_failed",
    DiskPressure: "disk_pressure",
    CapacityWarning: "capacity_warning",
}
"""The hook that is told of an event."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_TYPES = {hook: kind for kind, hook in HOOKS.items()}
# Told from memory: they are many, or stale after a restart.
_FLEETING = (RunStarted, JobCleaned)
_DIGESTIBLE = ("run_finished", "run_failed")
_MAX_WAITING = 1000
_MAX_WAITING_IN_MEMORY = 10_000
_MAX_IN_DIGEST = 500
_FIRST_WAIT_SECONDS = 5.0
_LONGEST_WAIT = timedelta(hours=1)
_GIVE_UP_AFTER = timedelta(days=3)
_POLL_SECONDS = 30.0
_LEISURE_SECONDS = 0.5
_JOIN_SECONDS = 0.5
_BUSY_TIMEOUT_SECONDS = 2.0
# A send has a timeout of its own for each answer; this many of them, and it is left alone.
_TIMEOUTS_A_SEND = 3
_MAX_ABANDONED = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt; ``error`` is None when it was delivered."""

    words: str
    error: str | None = None
    retry: bool = False
    after_seconds: float | None = None


class Delivery:
    """Tells notifiers of events.

    Args:
        location: the job database, whose ledger has the outbox; None keeps all messages in memory.
        clock: the time of day.
        hurry: send nothing twice: every message has one attempt (``notify-test``).
    """

    def __init__(self, location: Location | None, clock: Clock, *, hurry: bool = False) -> None:
        self._location = location
        self._clock = clock
        self.hurry = hurry
        self._couriers: dict[str, _Courier] = {}
        self._store = _Store(location, clock)
        self._plugins: PluginSet | None = None

    def use(self, plugins: PluginSet, *, durable: bool = True) -> None:
        """Tell the notifiers of these plugins from now on.

        Args:
            plugins: those of the configuration in force.
            durable: whether the ledger may be written; where only dry runs are wanted it may not.
        """
        self._plugins = plugins
        self._store.is_durable = durable and self._location is not None
        wanted = [name for name in plugins.names if any(plugins.listener(name, hook) for hook in _TYPES)]
        for name in set(self._couriers) - set(wanted):
            self._couriers.pop(name).close()
        for name in wanted:
            if name in self._couriers:
                self._couriers[name].use(plugins)
            else:
                self._couriers[name] = _Courier(name, plugins, self._store, self._clock, hurry=self.hurry)

    def tell(self, event: Event) -> None:
        """Put an event into the outbox of each notifier that wants it; never raises, never waits long."""
        try:
            self._tell(event)
        except Exception:  # whatever it is, it must not end the run that tells it
            log.exception("Notifiers were not told of %s", type(event).__name__)

    def _tell(self, event: Event) -> None:
        hook = HOOKS.get(type(event))
        if hook is None or self._plugins is None:
            return
        now = self._clock()
        durable, fleeting = [], []
        for name in self._couriers:
            settings = self._plugins.settings(name)
            if self._plugins.listener(name, hook) is None or not wants(settings, event):
                continue
            lasts = settings.outlives_restarts and not isinstance(event, _FLEETING) and not _is_test(event)
            due = next_digest(settings.digest, now) if settings.digest and hook in _DIGESTIBLE else now
            if lasts and self._store.is_durable:
                durable.append(Message(name, hook, encode(event), now, due))
            else:
                fleeting.append(Message(name, hook, event, now, due))
        if durable and not self._store.put(durable):
            fleeting += [replace(message, payload=event) for message in durable]
        if fleeting:
            self._store.memory_put(fleeting)
        for name in {message.notifier for message in (*durable, *fleeting)}:
            self._couriers[name].wake(leisurely=isinstance(event, JobCleaned))

    def answers(self) -> dict[str, Answer]:
        """Return what came of each notifier's last attempt."""
        return {name: c.last for name, c in self._couriers.items() if c.last is not None}

    def hanging(self) -> dict[str, float]:
        """Return for how many seconds each notifier that has not answered in time has been silent."""
        return {name: s for name, c in self._couriers.items() if (s := c.hanging_seconds()) is not None}

    def drain(self, seconds: float) -> bool:
        """Wait until everything that is due has had an attempt; False when that took longer."""
        deadline = time.monotonic() + seconds
        return all(c.wait_idle(max(0.0, deadline - time.monotonic())) for c in self._couriers.values())

    def close(self) -> None:
        """Stop sending; what is in the outbox stays there."""
        for courier in self._couriers.values():
            courier.close()
        self._couriers.clear()
        self._store.close()


def wants(settings: NotifierSettings, event: Event) -> bool:
    """Tell whether a notifier's settings let an event through (``on``, ``only_if_cleaned``)."""
    match event:
        case RunFinished(report):
            if report.is_test:
                return True
            if report.dry_run:
                return "dry_run" in settings.on
            if report.outcome == "success":
                if report.trigger == TRASH_TRIGGER:
                    return "trash" in settings.on
                nothing = not (report.bytes_freed or report.successful.jobs or report.failed.jobs)
                return "success" in settings.on and not (nothing and settings.only_if_cleaned)
            return ("interrupted" if report.outcome == "interrupted" else "failure") in settings.on
        case RunFailed():
            return "failure" in settings.on
        case DiskPressure():
            return "pressure" in settings.on
        case CapacityWarning():
            return "capacity" in settings.on
        case ConfigReloaded():
            return "config_reloaded" in settings.on
        case ConfigRejected():
            return "config_rejected" in settings.on
        case DaemonStarted() | DaemonStopping():
            return "daemon" in settings.on
        case _:
            return True


def next_digest(time_of_day: str, now: datetime) -> datetime:
    """Return when the next message a day is due: the next such local time, aware UTC."""
    local = now.astimezone(local_zone())
    hour, minute = map(int, time_of_day.split(":"))
    due = local.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if due <= local:
        due += timedelta(days=1)
    return due.astimezone(UTC)


def encode(event: Event) -> str:
    """Return an event as JSON; bytes of names that are not UTF-8 are escaped."""
    text = json.dumps(asdict(event), default=_as_text, ensure_ascii=False)
    return _SURROGATE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", text)


def decode(hook: str, payload: object) -> object:
    """Return the event that :func:`encode` wrote, or the event itself if it never was.

    Raises:
        ValueError: it cannot be read, for another version of the program wrote it.
    """
    if not isinstance(payload, str):
        return payload
    from pydantic import TypeAdapter  # noqa: PLC0415  (late: only what waits in the ledger needs it)

    return TypeAdapter(_TYPES[hook]).validate_json(payload)


def _is_test(event: Event) -> bool:
    return isinstance(event, RunFinished) and event.report.is_test


def _as_text(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


class _Store:
    """Both outboxes for all couriers, one caller at a time; what fails in the database is only logged."""

    def __init__(self, location: Location | None, clock: Clock) -> None:
        self._location = location
        self._clock = clock
        self._lock = threading.Lock()
        self._memory = MemoryOutbox(_MAX_WAITING_IN_MEMORY)
        self._sender: StoreLock | None = None
        self.is_durable = location is not None

    def put(self, messages: Sequence[Message]) -> bool:
        try:
            with self._ledger() as outbox:
                outbox.put(messages)
        except CleanupError as error:
            log.warning("Messages are kept in memory only: %s", error)
            return False
        return True

    def memory_put(self, messages: Sequence[Message]) -> None:
        with self._lock:
            self._memory.put(messages)

    @contextmanager
    def memory(self) -> Iterator[Outbox]:
        with self._lock:
            yield self._memory

    @contextmanager
    def ledger(self) -> Iterator[Outbox | None]:
        """Give the outbox of the ledger, None when another process sends what is in there."""
        with self._lock:
            is_ours = self.is_durable and self._is_ours()
        if not is_ours:
            yield None
            return
        with self._ledger() as outbox:
            yield outbox if outbox.exists() else None

    @contextmanager
    def _ledger(self) -> Iterator[LedgerOutbox]:
        if self._location is None:
            raise StoreError("there is no ledger")
        with self._lock:
            database = self._location.open(_BUSY_TIMEOUT_SECONDS)
            try:
                yield LedgerOutbox(database, _MAX_WAITING)
            finally:
                database.close()

    def _is_ours(self) -> bool:
        """Hold the outbox's lock; one that another process holds is asked for again later."""
        if self._location is None:
            return False
        try:
            if self._sender is None:
                self._sender = StoreLock(self._location, "outbox", self._clock())
            self._sender.insist()
        except LockHeldError:
            self.close()
            return False
        except StoreError as error:
            log.warning("Nothing in the outbox is sent: %s", error)
            self.close()
            return False
        return True

    def close(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None


class _Courier:
    """One notifier's thread: takes what is due, sends it, and knows when to try again."""

    def __init__(self, name: str, plugins: PluginSet, store: _Store, clock: Clock, *, hurry: bool) -> None:
        self._name = name
        self._plugins = plugins
        self._store = store
        self._clock = clock
        self._hurry = hurry
        self._condition = threading.Condition()
        self._pending = 1  # what the outbox may hold from before
        self._is_urgent = True
        self._closing = False
        self._sending_since: float | None = None
        self._caller = _Caller(name)
        self._abandoned: list[_Caller] = []
        self.last: Answer | None = None
        self._thread = threading.Thread(target=self._live, name=f"notifier ({name})", daemon=True)
        self._thread.start()

    def use(self, plugins: PluginSet) -> None:
        self._plugins = plugins

    def wake(self, *, leisurely: bool = False) -> None:
        """Look into the outboxes: there is something new; leisurely, so that many are looked at together."""
        with self._condition:
            self._pending += 1
            if not leisurely:
                self._is_urgent = True
                self._condition.notify_all()
            elif self._pending == 1:
                self._condition.notify_all()

    def wait_idle(self, seconds: float) -> bool:
        with self._condition:
            self._is_urgent = True
            self._condition.notify_all()
            return self._condition.wait_for(lambda: not self._pending or self._closing, seconds)

    def close(self) -> None:
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join(2 * _JOIN_SECONDS)

    def hanging_seconds(self) -> float | None:
        since = self._sending_since
        silent = None if since is None else time.monotonic() - since
        return silent if silent is not None and silent > self._timeout() else None

    def _timeout(self) -> float:
        return self._plugins.settings(self._name).timeout_seconds

    # -- the thread --------------------------------------------------------------------------------

    def _live(self) -> None:
        while True:
            with self._condition:
                # To wake for each of many jobs would cost the run, which is in the same interpreter.
                self._condition.wait_for(lambda: self._is_urgent or self._closing, _LEISURE_SECONDS)
            done, wait = self._work_off()
            with self._condition:
                self._pending -= done
                if self._closing:
                    self._caller.leave()
                    self._caller.join(_JOIN_SECONDS)
                    return
                if self._pending:
                    continue
                self._is_urgent = False
                self._condition.notify_all()
                self._condition.wait(wait)

    def _work_off(self) -> tuple[int, float]:
        """Send all that is due; returns how much of what was put in that covers, and how long to wait."""
        while True:
            with self._condition:
                pending, closing = self._pending, self._closing
            if closing:
                return 0, 0.0
            try:
                wait = self._round()
            except CleanupError as error:
                log.warning("Notifier %s: the outbox cannot be asked: %s", self._name, error)
                wait = _POLL_SECONDS
            except Exception:
                log.exception("Notifier %s: its messages cannot be looked at", self._name)
                wait = _POLL_SECONDS
            if wait > 0:
                return pending, wait

    def _round(self) -> float:
        """Send what is due from one outbox; returns the seconds until there may be more, 0 for at once."""
        waits = [_POLL_SECONDS]
        settings = self._plugins.settings(self._name)
        lasting = (self._store.ledger,) if settings.outlives_restarts else ()
        for opened in (self._store.memory, *lasting):
            now = self._clock()
            with opened() as outbox:
                if outbox is None:
                    continue
                batch = self._batch(outbox.due(self._name, now, _MAX_IN_DIGEST if settings.digest else 1))
                if not batch:
                    first = outbox.next_due(self._name)
                    if first is not None:
                        waits.append(max(0.5, (first - now).total_seconds()))
                    continue
            answer = self._send(batch)
            with opened() as outbox:
                if outbox is not None:
                    self._conclude(outbox, batch, answer)
            return 0.0
        return min(waits)

    def _batch(self, due: list[Message]) -> list[Message]:
        """Return what goes as one: a digest's messages together, any other alone."""
        if due and self._plugins.settings(self._name).digest and due[0].event in _DIGESTIBLE:
            return [message for message in due if message.event in _DIGESTIBLE]
        return due[:1]

    def _send(self, batch: Sequence[Message]) -> Answer:
        try:
            hook, event = self._event(batch)
        except ValueError:
            return Answer("", error="it was written by another version of the program and cannot be read")
        call = self._plugins.listener(self._name, hook)
        if call is None:
            return Answer("nothing to do")
        self._abandoned = [caller for caller in self._abandoned if caller.is_alive()]
        if len(self._abandoned) >= _MAX_ABANDONED:
            return Answer("", error=f"{len(self._abandoned)} earlier attempts still hang", retry=True)
        self._sending_since = time.monotonic()
        try:
            return self._call(call, event)
        finally:
            self._sending_since = None

    def _event(self, batch: Sequence[Message]) -> tuple[str, object]:
        settings = self._plugins.settings(self._name)
        events = [decode(message.event, message.payload) for message in batch]
        if not settings.digest or batch[0].event not in _DIGESTIBLE or _is_test(events[0]):  # type: ignore[arg-type]
            return batch[0].event, events[0]
        return "digest", Digest(
            batch[0].created_at,
            batch[-1].created_at,
            tuple(event for event in events if isinstance(event, RunFinished)),
            tuple(event for event in events if isinstance(event, RunFailed)),
        )

    def _call(self, call: Callable[[object], object], event: object) -> Answer:
        limit = _TIMEOUTS_A_SEND * self._timeout()
        answer = self._caller.ask(lambda: self._answer(call, event), limit)
        if answer is None:
            self._abandoned.append(self._caller)
            self._caller = _Caller(self._name)
            return Answer("", error=f"no answer within {limit:g} seconds", retry=True)
        return answer

    def _answer(self, call: Callable[[object], object], event: object) -> Answer:
        try:
            return Answer(self._redacted(str(call(event) or "delivered")))
        except RetryLater as error:
            words = self._redacted(str(error))
            return Answer("", error=words, retry=True, after_seconds=error.after_seconds)
        except Exception as error:
            return Answer("", error=self._redacted(f"{type(error).__name__}: {error}"))

    def _redacted(self, text: str) -> str:
        return self._plugins.redacted(self._name, text)

    def _conclude(self, outbox: Outbox, batch: Sequence[Message], answer: Answer) -> None:
        now = self._clock()
        is_known = self.last is not None and self.last.error == answer.error
        self.last = answer
        oldest = min(message.created_at for message in batch)
        if answer.error is None:
            outbox.done(batch, "delivered", None, now)
            log.debug("Notifier %s: %s: %s", self._name, batch[0].event, answer.words)
        elif answer.retry and not self._hurry and now - oldest < _GIVE_UP_AFTER:
            due = now + backoff(max(message.attempts for message in batch), answer.after_seconds)
            outbox.retry(batch, due, answer.error, now)
            log.warning(
                "Notifier %s: %s; it is told again in %.0f seconds",
                self._name,
                answer.error,
                (due - now).total_seconds(),
            )
        else:
            outbox.done(batch, "failed", answer.error, now)
            if not self._hurry and not (is_known and batch[0].event == "job_cleaned"):
                log.error("Notifier %s was not told of %s: %s", self._name, batch[0].event, answer.error)


class _Caller:
    """A thread that calls a plugin, so that whoever waits for the answer need not wait for ever."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[Callable[[], Answer] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._name = f"notifier ({name}) sending"
        self._thread: threading.Thread | None = None

    def ask(self, work: Callable[[], Answer], seconds: float) -> Answer | None:
        """Return the answer, None when it does not come in time; then the thread is of no more use."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name=self._name, daemon=True)
            self._thread.start()
        self._work.put(work)
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            self.leave()
            return None

    def leave(self) -> None:
        """Let the thread end once it has nothing to do."""
        self._work.put(None)

    def join(self, seconds: float) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _live(self) -> None:
        while (work := self._work.get()) is not None:
            self._answers.put(work())


def backoff(attempts: int, after_seconds: float | None) -> timedelta:
    """Return how long to wait after so many attempts before this one: doubling from 5 s, with jitter.

    What the other side asked for counts when it is longer; neither is more than an hour.
    """
    wait = _FIRST_WAIT_SECONDS * 2 ** min(attempts, 16) * random.uniform(0.5, 1.0)  # noqa: S311
    return min(_LONGEST_WAIT, timedelta(seconds=max(wait, after_seconds or 0.0)))
