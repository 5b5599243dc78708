"""The outboxes of one process: messages in the ledger, which it may be the one to send, and in memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from eemtcleanupd.clock import Clock
from eemtcleanupd.errors import CleanupError, LockHeldError, StoreError
from eemtcleanupd.store.address import StoreAddress, StoreLock
from eemtcleanupd.store.outbox import LedgerOutbox, MemoryOutbox, Message, Outbox

log = logging.getLogger(__name__)

_MAX_WAITING = 1000
_MAX_WAITING_IN_MEMORY = 10_000
_BUSY_TIMEOUT_SECONDS = 2.0


class MessageQueues:
    """Both outboxes for all couriers, one caller at a time; what fails in the database is only logged."""

    def __init__(self, location: StoreAddress | None, clock: Clock) -> None:
        self._location = location
        self._clock = clock
        self._lock = threading.Lock()
        self._memory = MemoryOutbox(_MAX_WAITING_IN_MEMORY)
        self._sender: StoreLock | None = None
        self.is_durable = location is not None

    def put(self, messages: Sequence[Message]) -> bool:
        """Add messages to the ledger; False when they could not be."""
        try:
            with self._ledger() as outbox:
                outbox.put(messages)
        except CleanupError as error:
            log.warning("Messages are kept in memory only: %s", error)
            return False
        return True

    def memory_put(self, messages: Sequence[Message]) -> None:
        """Add messages that need not outlive the process."""
        with self._lock:
            self._memory.put(messages)

    @contextmanager
    def memory(self) -> Iterator[Outbox]:
        """Give the outbox in memory."""
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
            self._sender.verify()
        except LockHeldError:
            self.close()
            return False
        except StoreError as error:
            log.warning("Nothing in the outbox is sent: %s", error)
            self.close()
            return False
        return True

    def close(self) -> None:
        """Let another process send what is in the ledger."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None
