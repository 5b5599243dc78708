"""Worker of one notifier: a thread that sends its messages, with timeouts and retries."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from eemtcleanupd.clock import Clock
from eemtcleanupd.delivery.queues import MessageQueues
from eemtcleanupd.delivery.routing import DIGEST_HOOKS
from eemtcleanupd.delivery.serialization import decode
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.events import HOOK_EVENTS, RunFailed, RunFinished
from eemtcleanupd.formatting import plural, short_name
from eemtcleanupd.hookspecs import Digest, RetryLater
from eemtcleanupd.plugins import Plugins
from eemtcleanupd.plugins.guard import class_name, text_of
from eemtcleanupd.store.outbox import Message, Outbox

log = logging.getLogger(__name__)

_MAX_IN_DIGEST = 500
_FIRST_WAIT_SECONDS = 5.0
_LONGEST_WAIT = timedelta(hours=1)
_GIVE_UP_AFTER = timedelta(days=3)
_POLL_SECONDS = 30.0
_BATCH_SECONDS = 0.5
_JOIN_SECONDS = 0.5
# A notifier applies its own timeout to each answer; a call that lasts this many timeouts is abandoned.
_TIMEOUTS_PER_CALL = 3
_MAX_ABANDONED = 3


_OpenQueue = Callable[[], AbstractContextManager[Outbox | None]]


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """Result of one attempt; ``error`` is None if the message was delivered."""

    message: str
    error: str | None = None
    retry: bool = False
    after_seconds: float | None = None
    recipients: tuple[str, ...] = ()
    """Those whom a retry is for; empty means all."""


class NotifierWorker:
    """Sends the due messages of one notifier in a thread and schedules retries."""

    def __init__(
        self, name: str, plugins: Plugins, queues: MessageQueues, clock: Clock, *, single_attempt: bool
    ) -> None:
        self._name = name
        self.plugins = plugins
        self._queues = queues
        self._clock = clock
        self._single_attempt = single_attempt
        self._condition = threading.Condition()
        self._pending = 1  # the outbox can hold messages of an earlier process
        self._is_urgent = True
        self._closing = False
        self._sending_since: float | None = None
        self._call_thread = _CallThread(name)
        self._abandoned: list[_CallThread] = []
        self._unrecorded: tuple[_OpenQueue, Sequence[Message], DeliveryResult] | None = None
        self.last: DeliveryResult | None = None
        self._thread = threading.Thread(target=self._run, name=f"notifier ({name})", daemon=True)
        self._thread.start()

    def wake(self, *, batch: bool = False) -> None:
        """Check the queues for new messages; ``batch`` waits a moment to send many together."""
        with self._condition:
            self._pending += 1
            if not batch:
                self._is_urgent = True
                self._condition.notify_all()
            elif self._pending == 1:
                self._condition.notify_all()

    def wait_idle(self, seconds: float) -> bool:
        """Wait until every due message was attempted; return False on timeout."""
        with self._condition:
            self._is_urgent = True
            self._condition.notify_all()
            return self._condition.wait_for(lambda: not self._pending or self._closing, seconds)

    def close(self) -> None:
        """Stop the thread after the current message; wait a moment for it."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join(2 * _JOIN_SECONDS)

    def unresponsive_seconds(self) -> float | None:
        """Return how long the current call has lasted if it exceeds the notifier's timeout, else None."""
        since = self._sending_since
        seconds = None if since is None else time.monotonic() - since
        return seconds if seconds is not None and seconds > self._timeout() else None

    def _timeout(self) -> float:
        return self.plugins.settings(self._name).timeout_seconds

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._condition:
                # Waking for each of many jobs would slow down the run, which shares the interpreter.
                self._condition.wait_for(lambda: self._is_urgent or self._closing, _BATCH_SECONDS)
            done, wait = self._drain()
            with self._condition:
                self._pending -= done
                if self._closing:
                    self._call_thread.finish()
                    self._call_thread.join(_JOIN_SECONDS)
                    return
                if self._pending:
                    continue
                self._is_urgent = False
                self._condition.notify_all()
                self._condition.wait(wait)

    def _drain(self) -> tuple[int, float]:
        """Send all due messages; return how many wake-ups that covers, and the seconds to wait."""
        while True:
            with self._condition:
                pending, closing = self._pending, self._closing
            if closing:
                return 0, 0.0
            try:
                wait = self._process_batch()
            except CleanupError as error:
                log.warning("Notifier %s: cannot read the outbox: %s", self._name, error)
                wait = _POLL_SECONDS
            except Exception:
                log.exception("Notifier %s: processing its messages failed", self._name)
                wait = _POLL_SECONDS
            if wait > 0:
                return pending, wait

    def _process_batch(self) -> float:
        """Send due messages of one queue; return the seconds until more can be due, 0 for immediately."""
        waits = [_POLL_SECONDS]
        settings = self.plugins.settings(self._name)
        durable = (self._queues.ledger,) if settings.outlives_restarts else ()
        for open_queue in (self._queues.memory, *durable):
            now = self._clock()
            if self._unrecorded is not None and self._unrecorded[0] == open_queue:
                self._record_result()  # first: otherwise what was sent would be sent again
            with open_queue() as outbox:
                if outbox is None:
                    continue
                batch = self._batch(outbox.due(self._name, now, _MAX_IN_DIGEST if settings.digest else 1))
                if not batch:
                    first = outbox.next_due(self._name)
                    if first is not None:
                        waits.append(max(0.5, (first - now).total_seconds()))
                    continue
            self._unrecorded = (open_queue, batch, self._send(batch))
            self._record_result()
            return 0.0
        return min(waits)

    def _batch(self, due: list[Message]) -> list[Message]:
        """Return the messages to send in one call: all of a digest for the same recipients, or the first."""
        if due and self.plugins.settings(self._name).digest and due[0].event in DIGEST_HOOKS:
            recipients = due[0].recipients
            return [
                message
                for message in due
                if message.event in DIGEST_HOOKS and message.recipients == recipients
            ]
        return due[:1]

    def _send(self, batch: Sequence[Message]) -> DeliveryResult:
        try:
            hook, event = self._event(batch)
        except ValueError:
            return DeliveryResult(
                "", error="the message was written by another version of eemtcleanupd and is not readable"
            )
        call = self.plugins.hook_for(self._name, hook)
        if call is None:
            return DeliveryResult("nothing to do")
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        if len(self._abandoned) >= _MAX_ABANDONED:
            return DeliveryResult("", error=f"{len(self._abandoned)} earlier attempts still hang", retry=True)
        self._sending_since = time.monotonic()
        try:
            return self._call(partial(call, event, batch[0].recipients))
        finally:
            self._sending_since = None

    def _event(self, batch: Sequence[Message]) -> tuple[str, object]:
        settings = self.plugins.settings(self._name)
        events = [decode(message.event, message.payload) for message in batch]
        if not settings.digest or batch[0].event not in DIGEST_HOOKS or events[0].is_test:
            return batch[0].event, events[0]
        return "digest", Digest(
            batch[0].created_at,
            batch[-1].created_at,
            tuple(event for event in events if isinstance(event, RunFinished)),
            tuple(event for event in events if isinstance(event, RunFailed)),
        )

    def _call(self, call: Callable[[], object]) -> DeliveryResult:
        limit = _TIMEOUTS_PER_CALL * self._timeout()
        result = self._call_thread.call(lambda: self._result(call), limit)
        if result is None:
            self._abandoned.append(self._call_thread)
            self._call_thread = _CallThread(self._name)
            return DeliveryResult("", error=f"no answer within {limit:g} seconds", retry=True)
        return result

    def _result(self, call: Callable[[], object]) -> DeliveryResult:
        redact = partial(self.plugins.redact, self._name)
        try:
            return DeliveryResult(redact(text_of(call() or "delivered")))
        except RetryLater as error:
            return DeliveryResult(
                "",
                error=redact(text_of(error)),
                retry=True,
                after_seconds=_wait_seconds(error),
                recipients=_recipients(error),
            )
        except BaseException as error:
            return DeliveryResult("", error=redact(f"{class_name(error)}: {text_of(error)}"))

    def _record_result(self) -> None:
        """Record the result of the last attempt.

        Raises:
            CleanupError: the ledger cannot be written now; a later call tries again.
        """
        if self._unrecorded is None:
            return
        open_queue, batch, result = self._unrecorded
        with open_queue() as outbox:
            if outbox is not None:  # None: another process sends now, and decides about these messages
                self._apply_result(outbox, batch, result)
        self._unrecorded = None

    def _apply_result(self, outbox: Outbox, batch: Sequence[Message], result: DeliveryResult) -> None:
        now = self._clock()
        hook = batch[0].event
        shown = short_name(hook)  # of the outbox, in which other programs can write
        is_repeated = self.last is not None and self.last.error == result.error
        self.last = result
        oldest = min(message.created_at for message in batch)
        if result.error is None:
            outbox.done(batch, "delivered", None, now)
            log.debug("Notifier %s: %s: %s", self._name, shown, result.message)
        elif result.retry and not self._single_attempt and now - oldest < _GIVE_UP_AFTER:
            due = now + backoff(max(message.attempts for message in batch), result.after_seconds)
            outbox.retry(batch, due, result.error, now, result.recipients or batch[0].recipients)
            seconds = (due - now).total_seconds()
            wait = plural(max(1, round(seconds)), "second")
            log.warning("Notifier %s: %s; retrying in %s", self._name, result.error, wait)
        else:
            outbox.done(batch, "failed", result.error, now)
            is_frequent = hook in HOOK_EVENTS and HOOK_EVENTS[hook].is_frequent
            if not self._single_attempt and not (is_repeated and is_frequent):
                log.error("Notifier %s did not receive %s: %s", self._name, shown, result.error)


class _CallThread:
    """A thread that calls a plugin, so that the worker can stop waiting for a call that hangs."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], DeliveryResult] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[DeliveryResult] = queue.SimpleQueue()
        self._name = f"notifier ({name}) sending"
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], DeliveryResult], seconds: float) -> DeliveryResult | None:
        """Return the result, None on timeout; after a timeout the thread cannot be used again."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        self._calls.put(function)
        try:
            return self._results.get(timeout=seconds)
        except queue.Empty:
            self.finish()
            return None

    def finish(self) -> None:
        self._calls.put(None)

    def join(self, seconds: float) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        while (function := self._calls.get()) is not None:
            self._results.put(function())


def _wait_seconds(error: RetryLater) -> float | None:
    """Return the wait that a notifier asks for, None if that is not a number of seconds."""
    try:
        seconds = float(error.after_seconds or 0)
    except BaseException:
        return None
    return min(seconds, _LONGEST_WAIT.total_seconds()) if seconds > 0 else None


def _recipients(error: RetryLater) -> tuple[str, ...]:
    """Return the recipients that a notifier names, none if these are not texts."""
    try:
        return tuple(str(recipient) for recipient in error.recipients)
    except BaseException:
        return ()


def backoff(attempts: int, after_seconds: float | None) -> timedelta:
    """Return the wait before the next attempt: 5 s, doubled for each earlier attempt, with jitter.

    A longer wait that the receiver asked for (``after_seconds``) takes precedence; the limit is one hour.
    """
    wait = _FIRST_WAIT_SECONDS * 2 ** min(attempts, 16) * random.uniform(0.5, 1.0)  # noqa: S311
    return min(_LONGEST_WAIT, timedelta(seconds=max(wait, after_seconds or 0.0)))
