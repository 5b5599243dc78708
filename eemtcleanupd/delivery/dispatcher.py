"""Who is told of an event: it goes into the outbox of each notifier that wants it."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from eemtcleanupd.clock import Clock
from eemtcleanupd.delivery.queues import MessageQueues
from eemtcleanupd.delivery.serialization import DIGESTIBLE, HOOKS, encode, is_test, next_digest, wants
from eemtcleanupd.delivery.worker import DeliveryResult, NotifierWorker
from eemtcleanupd.events import Event, JobCleaned, RunStarted
from eemtcleanupd.plugins import Plugins
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.outbox import Message

log = logging.getLogger(__name__)

# Told from memory: they are many, or stale after a restart.
_EPHEMERAL = (RunStarted, JobCleaned)


class Dispatcher:
    """Tells notifiers of events.

    Args:
        location: the job database, whose ledger has the outbox; None keeps all messages in memory.
        clock: the time of day.
        hurry: send nothing twice: every message has one attempt (``notify-test``).
    """

    def __init__(self, location: StoreAddress | None, clock: Clock, *, hurry: bool = False) -> None:
        self._location = location
        self._clock = clock
        self.hurry = hurry
        self._couriers: dict[str, NotifierWorker] = {}
        self._outboxes = MessageQueues(location, clock)
        self._plugins: Plugins | None = None

    def configure(self, plugins: Plugins, *, durable: bool = True) -> None:
        """Tell the notifiers of these plugins from now on.

        Args:
            plugins: those of the configuration in force.
            durable: whether the ledger may be written; where only dry runs are wanted it may not.
        """
        self._plugins = plugins
        self._outboxes.is_durable = durable and self._location is not None
        hooks = HOOKS.values()
        wanted = [name for name in plugins.names if any(plugins.hook_for(name, hook) for hook in hooks)]
        for name in set(self._couriers) - set(wanted):
            self._couriers.pop(name).close()
        for name in wanted:
            if name in self._couriers:
                self._couriers[name].configure(plugins)
            else:
                self._couriers[name] = NotifierWorker(
                    name, plugins, self._outboxes, self._clock, hurry=self.hurry
                )

    def publish(self, event: Event) -> None:
        """Put an event into the outbox of each notifier that wants it; never raises, never waits long."""
        try:
            self._publish(event)
        except Exception:  # whatever it is, it must not end the run that tells it
            log.exception("Notifiers were not told of %s", type(event).__name__)

    def _publish(self, event: Event) -> None:
        hook = HOOKS.get(type(event))
        if hook is None or self._plugins is None:
            return
        now = self._clock()
        durable, fleeting = [], []
        for name in self._couriers:
            settings = self._plugins.settings(name)
            if self._plugins.hook_for(name, hook) is None or not wants(settings, event):
                continue
            lasts = settings.outlives_restarts and not isinstance(event, _EPHEMERAL) and not is_test(event)
            due = next_digest(settings.digest, now) if settings.digest and hook in DIGESTIBLE else now
            if lasts and self._outboxes.is_durable:
                durable.append(Message(name, hook, encode(event), now, due))
            else:
                fleeting.append(Message(name, hook, event, now, due))
        if durable and not self._outboxes.put(durable):
            fleeting += [replace(message, payload=event) for message in durable]
        if fleeting:
            self._outboxes.memory_put(fleeting)
        for name in {message.notifier for message in (*durable, *fleeting)}:
            self._couriers[name].wake(leisurely=isinstance(event, JobCleaned))

    def last_results(self) -> dict[str, DeliveryResult]:
        """Return what came of each notifier's last attempt."""
        return {name: c.last for name, c in self._couriers.items() if c.last is not None}

    def unresponsive(self) -> dict[str, float]:
        """Return for how many seconds each notifier that has not answered in time has been silent."""
        return {name: s for name, c in self._couriers.items() if (s := c.unresponsive_seconds()) is not None}

    def drain(self, seconds: float) -> bool:
        """Wait until everything that is due has had an attempt; False when that took longer."""
        deadline = time.monotonic() + seconds
        return all(c.wait_idle(max(0.0, deadline - time.monotonic())) for c in self._couriers.values())

    def close(self) -> None:
        """Stop sending; what is in the outbox stays there."""
        for courier in self._couriers.values():
            courier.close()
        self._couriers.clear()
        self._outboxes.close()
