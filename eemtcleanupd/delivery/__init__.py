"""Telling: a queue, a thread and patience for each notifier, so that none can harm a run or another.

What a notifier is to be told is written into the outbox of the ledger when it happens, and taken out when
the notifier has it.  Of several processes on one job store the one that holds the outbox's lock sends; when
it dies, the lock is free and what it left is sent by the next.
"""

from eemtcleanupd.delivery.dispatcher import Dispatcher
from eemtcleanupd.delivery.worker import DeliveryResult

__all__ = ["DeliveryResult", "Dispatcher"]
