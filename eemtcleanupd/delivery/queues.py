"""Message queues of one process: the outbox in the ledger, which one process sends, and one in memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Final

from eemtcleanupd.clock import Clock
from eemtcleanupd.errors import CleanupError, LockHeldError, StoreError
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.lock import StoreLock
from eemtcleanupd.store.outbox import LedgerOutbox, MemoryOutbox, Message, Outbox

log = logging.getLogger(__name__)

MAX_WAITING: Final = 1000
"""Messages of one notifier in the ledger; above that, the oldest are dropped."""
_MAX_WAITING_IN_MEMORY = 10_000
_BUSY_TIMEOUT_SECONDS = 2.0


class MessageQueues:
    """Both queues for all workers, used by one thread at a time; errors of the database are only logged."""

    def __init__(self, location: StoreAddress | None, clock: Clock, max_waiting: int = MAX_WAITING) -> None:
        self._location = location
        self._clock = clock
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._memory = MemoryOutbox(_MAX_WAITING_IN_MEMORY)
        self._sender_lock: StoreLock | None = None
        self.is_durable = location is not None

    def put(self, messages: Sequence[Message]) -> bool:
        """Add messages to the ledger; return False if that failed."""
        try:
            with self._open_ledger() as outbox:
                outbox.put(messages)
        except CleanupError as error:
            log.warning("Messages to notifiers are kept in memory only: %s", error)
            return False
        return True

    @contextmanager
    def memory(self) -> Iterator[Outbox]:
        """Yield the queue in memory, for messages that need not survive the process."""
        with self._lock:
            yield self._memory

    @contextmanager
    def ledger(self) -> Iterator[Outbox | None]:
        """Yield the outbox of the ledger, None if another process sends its messages."""
        with self._lock:
            is_sender = self.is_durable and self._hold_sender_lock()
        if not is_sender:
            yield None
            return
        with self._open_ledger() as outbox:
            yield outbox if outbox.exists() else None

    @contextmanager
    def _open_ledger(self) -> Iterator[LedgerOutbox]:
        if self._location is None:
            raise StoreError("there is no ledger")
        with self._lock, closing(self._location.open(_BUSY_TIMEOUT_SECONDS)) as database:
            yield LedgerOutbox(database, self._max_waiting)

    def _hold_sender_lock(self) -> bool:
        """Acquire or verify the outbox's lock; a later call tries again if another process holds it."""
        if self._location is None:
            return False
        try:
            if self._sender_lock is None:
                self._sender_lock = StoreLock(self._location, "outbox", self._clock())
            self._sender_lock.verify()
        except (LockHeldError, StoreError) as error:
            if isinstance(error, StoreError):
                log.warning("Messages in the outbox are not sent: %s", error)
            self.close()
            return False
        return True

    def close(self) -> None:
        """Release the lock, so that another process can send the messages in the ledger."""
        if self._sender_lock is not None:
            self._sender_lock.close()
            self._sender_lock = None
