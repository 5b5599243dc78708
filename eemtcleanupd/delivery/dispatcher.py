"""Dispatcher: puts each event into the queue of every notifier that wants it."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from eemtcleanupd.clock import Clock
from eemtcleanupd.delivery.queues import MAX_WAITING, MessageQueues
from eemtcleanupd.delivery.routing import DIGEST_HOOKS, next_digest, wants
from eemtcleanupd.delivery.serialization import encode
from eemtcleanupd.delivery.worker import DeliveryResult, NotifierWorker
from eemtcleanupd.events import HOOK_EVENTS, Event
from eemtcleanupd.plugins import Plugins
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.outbox import Message

log = logging.getLogger(__name__)


class Dispatcher:
    """Sends events to notifiers; without a location, all messages are kept in memory.

    With ``single_attempt`` it never retries a message (``notify-test``).  Above ``max_waiting`` messages of
    a notifier in the ledger the oldest are dropped.
    """

    def __init__(
        self,
        location: StoreAddress | None,
        clock: Clock,
        *,
        single_attempt: bool = False,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._location = location
        self._clock = clock
        self._single_attempt = single_attempt
        self._workers: dict[str, NotifierWorker] = {}
        self._queues = MessageQueues(location, clock, max_waiting)
        self._plugins: Plugins | None = None

    def configure(self, plugins: Plugins, *, durable: bool = True) -> None:
        """Send to the notifiers among these plugins, and no longer to any other.

        The ledger keeps no message unless ``durable``, as when the configuration allows only dry runs.
        """
        self._plugins = plugins
        self._queues.is_durable = durable and self._location is not None
        notifiers = [
            name for name in plugins.names if any(plugins.hook_for(name, hook) for hook in HOOK_EVENTS)
        ]
        for name in set(self._workers) - set(notifiers):
            self._workers.pop(name).close()
        for name in notifiers:
            if name in self._workers:
                self._workers[name].plugins = plugins
            else:
                self._workers[name] = NotifierWorker(
                    name, plugins, self._queues, self._clock, single_attempt=self._single_attempt
                )

    def publish(self, event: Event) -> None:
        """Queue an event for each notifier that wants it; never raises, never waits long."""
        try:
            self._publish(event)
        except Exception:  # no error of a notifier's queue ends the run that emits the event
            log.exception("Could not queue %s for the notifiers", type(event).__name__)

    def _publish(self, event: Event) -> None:
        if not event.hook or self._plugins is None:
            return
        now = self._clock()
        durable, transient = [], []
        for name in self._workers:
            settings = self._plugins.settings(name)
            if self._plugins.hook_for(name, event.hook) is None or not wants(settings, event):
                continue
            is_durable = settings.outlives_restarts and not event.is_ephemeral and not event.is_test
            can_wait = event.hook in DIGEST_HOOKS and not event.is_test
            due = next_digest(settings.digest, now) if settings.digest and can_wait else now
            if is_durable and self._queues.is_durable:
                durable.append(Message(name, event.hook, encode(event), now, due))
            else:
                transient.append(Message(name, event.hook, event, now, due))
        if durable and not self._queues.put(durable):
            transient += [replace(message, payload=event) for message in durable]
        if transient:
            with self._queues.memory() as outbox:
                outbox.put(transient)
        for name in {message.notifier for message in (*durable, *transient)}:
            self._workers[name].wake(batch=event.is_frequent)

    def last_results(self) -> dict[str, DeliveryResult]:
        """Return the result of each notifier's last attempt."""
        return {name: w.last for name, w in self._workers.items() if w.last is not None}

    def unresponsive(self) -> dict[str, float]:
        """Return the seconds since the call, for each notifier whose answer is overdue."""
        return {name: s for name, w in self._workers.items() if (s := w.unresponsive_seconds()) is not None}

    def drain(self, seconds: float) -> bool:
        """Wait until every due message had an attempt; return False on timeout."""
        deadline = time.monotonic() + seconds
        return all(w.wait_idle(max(0.0, deadline - time.monotonic())) for w in self._workers.values())

    def close(self) -> None:
        """Stop sending; messages in the outbox stay there."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        self._queues.close()
