"""Which of several daemons on one job store cleans: the one that holds the lock; the others stand by.

Only a database on a server has such a lock, which a thread here keeps, or asks for until it is free.  The
server gives it to another half of ``ha.takeover_seconds`` after it heard of its holder for the last time.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

from eemtcleanupd.clock import Clock
from eemtcleanupd.daemon.messages import Enqueue, RoleChanged
from eemtcleanupd.errors import CleanupError, LockHeldError
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.lock import Holder, StoreLock, find_active_daemon

log = logging.getLogger(__name__)

_LOCK = "daemon"
_LOOKS_IN_A_TAKEOVER = 6


class LeaderElection:
    """The lock of the active daemon.

    Args:
        location: the job store.
        takeover_seconds: how soon another takes over (``ha.takeover_seconds``); 0: none stands by.
        put: the inbox, which is told when this daemon becomes active, or ceases to be.
        clock: the time of day.
    """

    def __init__(self, location: StoreAddress, takeover_seconds: float, put: Enqueue, clock: Clock) -> None:
        self._location = location
        self._may_stand_by = takeover_seconds > 0
        self.pause_seconds = (takeover_seconds or 30) / _LOOKS_IN_A_TAKEOVER
        self._put = put
        self._clock = clock
        self._lock: StoreLock | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.is_active = location.file is not None
        self.active: Holder | None = None
        """The other daemon that is active, as far as is known."""

    def begin(self) -> None:
        """Ask for the lock, and keep it or go on asking from now on.

        Raises:
            LockHeldError: another holds it, and none is to stand by.
            StoreError: the server cannot be asked.
        """
        if self._location.file is not None:
            return
        try:
            self._lock = StoreLock(self._location, _LOCK, self._clock())
            self.is_active = True
        except LockHeldError:
            if not self._may_stand_by:
                raise
            self._see_who_is()
        self._thread = threading.Thread(target=self._keep, name="leadership", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._closed.wait(self.pause_seconds):
            if self._lock is None:
                self._ask()
            else:
                self._insist(self._lock)

    def _ask(self) -> None:
        try:
            self._lock = StoreLock(self._location, _LOCK, self._clock())
        except LockHeldError:
            self._see_who_is()
        except CleanupError as error:
            log.debug("Whether another daemon is active cannot be said: %s", error)
        else:
            self.active, self.is_active = None, True
            self._put(RoleChanged(is_active=True, reason="no other daemon holds the lock"))

    def _insist(self, lock: StoreLock) -> None:
        try:
            lock.verify()
        except CleanupError as error:
            self.is_active, self._lock = False, None
            lock.close()
            self._see_who_is()
            self._put(RoleChanged(is_active=False, reason=str(error)))

    def _see_who_is(self) -> None:
        with suppress(CleanupError):
            self.active = find_active_daemon(self._location)

    def close(self) -> None:
        """Let go of the lock, so that another can be active at once."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        if self._lock is not None:
            self._lock.close()
