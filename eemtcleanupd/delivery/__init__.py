"""Delivery of events to notifiers: a queue, a thread and retries for each, isolated from runs and each other.

An event is written into the ledger's outbox when it happens, and deleted when the notifier has received it.
If several processes share a job store, the one that holds the outbox's lock sends.  When that process dies,
the lock is released and the next process sends the rest.
"""

from eemtcleanupd.delivery.dispatcher import Dispatcher
from eemtcleanupd.delivery.worker import DeliveryResult

__all__ = ["DeliveryResult", "Dispatcher"]
