"""One notifier's courier: a thread and patience of its own, so that it harms neither a run nor another."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from eemtcleanupd.clock import Clock
from eemtcleanupd.delivery.queues import MessageQueues
from eemtcleanupd.delivery.serialization import DIGESTIBLE, decode, is_test
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.events import RunFailed, RunFinished
from eemtcleanupd.hookspecs import Digest, RetryLater
from eemtcleanupd.plugins import Plugins
from eemtcleanupd.store.outbox import Message, Outbox

log = logging.getLogger(__name__)

_MAX_IN_DIGEST = 500
_FIRST_WAIT_SECONDS = 5.0
_LONGEST_WAIT = timedelta(hours=1)
_GIVE_UP_AFTER = timedelta(days=3)
_POLL_SECONDS = 30.0
_BATCH_SECONDS = 0.5
_JOIN_SECONDS = 0.5
# A send has a timeout of its own for each answer; this many of them, and it is left alone.
_TIMEOUTS_A_SEND = 3
_MAX_ABANDONED = 3


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """What came of one attempt; ``error`` is None when it was delivered."""

    message: str
    error: str | None = None
    retry: bool = False
    after_seconds: float | None = None


class NotifierWorker:
    """One notifier's thread: takes what is due, sends it, and knows when to try again."""

    def __init__(
        self, name: str, plugins: Plugins, outboxes: MessageQueues, clock: Clock, *, hurry: bool
    ) -> None:
        self._name = name
        self._plugins = plugins
        self._outboxes = outboxes
        self._clock = clock
        self._hurry = hurry
        self._condition = threading.Condition()
        self._pending = 1  # what the outbox may hold from before
        self._is_urgent = True
        self._closing = False
        self._sending_since: float | None = None
        self._caller = _CallThread(name)
        self._abandoned: list[_CallThread] = []
        self.last: DeliveryResult | None = None
        self._thread = threading.Thread(target=self._run, name=f"notifier ({name})", daemon=True)
        self._thread.start()

    def configure(self, plugins: Plugins) -> None:
        """Tell the notifier as these plugins have it from now on."""
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
        """Wait until all that is due has had an attempt; False when that took longer."""
        with self._condition:
            self._is_urgent = True
            self._condition.notify_all()
            return self._condition.wait_for(lambda: not self._pending or self._closing, seconds)

    def close(self) -> None:
        """End the thread, soon."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join(2 * _JOIN_SECONDS)

    def unresponsive_seconds(self) -> float | None:
        """Return for how long the notifier has been silent, None while that is no longer than it may be."""
        since = self._sending_since
        silent = None if since is None else time.monotonic() - since
        return silent if silent is not None and silent > self._timeout() else None

    def _timeout(self) -> float:
        return self._plugins.settings(self._name).timeout_seconds

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._condition:
                # To wake for each of many jobs would cost the run, which is in the same interpreter.
                self._condition.wait_for(lambda: self._is_urgent or self._closing, _BATCH_SECONDS)
            done, wait = self._drain()
            with self._condition:
                self._pending -= done
                if self._closing:
                    self._caller.finish()
                    self._caller.join(_JOIN_SECONDS)
                    return
                if self._pending:
                    continue
                self._is_urgent = False
                self._condition.notify_all()
                self._condition.wait(wait)

    def _drain(self) -> tuple[int, float]:
        """Send all that is due; returns how much of what was put in that covers, and how long to wait."""
        while True:
            with self._condition:
                pending, closing = self._pending, self._closing
            if closing:
                return 0, 0.0
            try:
                wait = self._process_batch()
            except CleanupError as error:
                log.warning("Notifier %s: the outbox cannot be asked: %s", self._name, error)
                wait = _POLL_SECONDS
            except Exception:
                log.exception("Notifier %s: its messages cannot be looked at", self._name)
                wait = _POLL_SECONDS
            if wait > 0:
                return pending, wait

    def _process_batch(self) -> float:
        """Send what is due from one outbox; returns the seconds until there may be more, 0 for at once."""
        waits = [_POLL_SECONDS]
        settings = self._plugins.settings(self._name)
        lasting = (self._outboxes.ledger,) if settings.outlives_restarts else ()
        for opened in (self._outboxes.memory, *lasting):
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
                    self._record_result(outbox, batch, answer)
            return 0.0
        return min(waits)

    def _batch(self, due: list[Message]) -> list[Message]:
        """Return what goes as one: a digest's messages together, any other alone."""
        if due and self._plugins.settings(self._name).digest and due[0].event in DIGESTIBLE:
            return [message for message in due if message.event in DIGESTIBLE]
        return due[:1]

    def _send(self, batch: Sequence[Message]) -> DeliveryResult:
        try:
            hook, event = self._event(batch)
        except ValueError:
            return DeliveryResult(
                "", error="it was written by another version of the program and cannot be read"
            )
        call = self._plugins.hook_for(self._name, hook)
        if call is None:
            return DeliveryResult("nothing to do")
        self._abandoned = [caller for caller in self._abandoned if caller.is_alive()]
        if len(self._abandoned) >= _MAX_ABANDONED:
            return DeliveryResult("", error=f"{len(self._abandoned)} earlier attempts still hang", retry=True)
        self._sending_since = time.monotonic()
        try:
            return self._call(call, event)
        finally:
            self._sending_since = None

    def _event(self, batch: Sequence[Message]) -> tuple[str, object]:
        settings = self._plugins.settings(self._name)
        events = [decode(message.event, message.payload) for message in batch]
        if not settings.digest or batch[0].event not in DIGESTIBLE or is_test(events[0]):
            return batch[0].event, events[0]
        return "digest", Digest(
            batch[0].created_at,
            batch[-1].created_at,
            tuple(event for event in events if isinstance(event, RunFinished)),
            tuple(event for event in events if isinstance(event, RunFailed)),
        )

    def _call(self, call: Callable[[object], object], event: object) -> DeliveryResult:
        limit = _TIMEOUTS_A_SEND * self._timeout()
        answer = self._caller.call(lambda: self._result(call, event), limit)
        if answer is None:
            self._abandoned.append(self._caller)
            self._caller = _CallThread(self._name)
            return DeliveryResult("", error=f"no answer within {limit:g} seconds", retry=True)
        return answer

    def _result(self, call: Callable[[object], object], event: object) -> DeliveryResult:
        try:
            return DeliveryResult(self._redacted(str(call(event) or "delivered")))
        except RetryLater as error:
            words = self._redacted(str(error))
            return DeliveryResult("", error=words, retry=True, after_seconds=error.after_seconds)
        except Exception as error:
            return DeliveryResult("", error=self._redacted(f"{type(error).__name__}: {error}"))

    def _redacted(self, text: str) -> str:
        return self._plugins.redact(self._name, text)

    def _record_result(self, outbox: Outbox, batch: Sequence[Message], answer: DeliveryResult) -> None:
        now = self._clock()
        is_known = self.last is not None and self.last.error == answer.error
        self.last = answer
        oldest = min(message.created_at for message in batch)
        if answer.error is None:
            outbox.done(batch, "delivered", None, now)
            log.debug("Notifier %s: %s: %s", self._name, batch[0].event, answer.message)
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


class _CallThread:
    """A thread that calls a plugin, so that whoever waits for the answer need not wait for ever."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[Callable[[], DeliveryResult] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[DeliveryResult] = queue.SimpleQueue()
        self._name = f"notifier ({name}) sending"
        self._thread: threading.Thread | None = None

    def call(self, work: Callable[[], DeliveryResult], seconds: float) -> DeliveryResult | None:
        """Return the answer, None when it does not come in time; then the thread is of no more use."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._work.put(work)
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            self.finish()
            return None

    def finish(self) -> None:
        """Let the thread end once it has nothing to do."""
        self._work.put(None)

    def join(self, seconds: float) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            self._answers.put(work())


def backoff(attempts: int, after_seconds: float | None) -> timedelta:
    """Return how long to wait after so many attempts before this one: doubling from 5 s, with jitter.

    What the other side asked for counts when it is longer; neither is more than an hour.
    """
    wait = _FIRST_WAIT_SECONDS * 2 ** min(attempts, 16) * random.uniform(0.5, 1.0)  # noqa: S311
    return min(_LONGEST_WAIT, timedelta(seconds=max(wait, after_seconds or 0.0)))
