"""Leader election: of several daemons on one job store, the one that holds a database lock is active.

Only a database server has such a lock.  A thread verifies it, or tries to acquire it until it is free.  The
server releases the lock when the holder is silent for half of ``ha.takeover_seconds``.
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
_CHECKS_PER_TAKEOVER = 6


class LeaderElection:
    """The lock of the active daemon; ``put`` receives ``RoleChanged``.

    A standby takes over within ``takeover_seconds`` (``ha.takeover_seconds``); 0 allows no standby.
    """

    def __init__(self, address: StoreAddress, takeover_seconds: float, put: Enqueue, clock: Clock) -> None:
        self._address = address
        self._allows_standby = takeover_seconds > 0
        self.check_seconds = (takeover_seconds or 30) / _CHECKS_PER_TAKEOVER
        self._put = put
        self._clock = clock
        self._lock: StoreLock | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.is_active = address.file is not None
        self.active_daemon: Holder | None = None
        """The other daemon that is active, if it is known."""

    def begin(self) -> None:
        """Try to acquire the lock, and start the thread that verifies it or tries again.

        Raises:
            LockHeldError: another daemon holds it, and no standby is allowed.
            StoreError: the server does not respond.
        """
        if self._address.file is not None:
            return
        try:
            self._acquire()
        except LockHeldError:
            if not self._allows_standby:
                raise
            self._find_active_daemon()
        self._thread = threading.Thread(target=self._check_regularly, name="leader election", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Release the lock, so that a standby can take over at once."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        if self._lock is not None:
            self._lock.close()

    def _check_regularly(self) -> None:
        while not self._closed.wait(self.check_seconds):
            if self._lock is None:
                self._try_to_lead()
            else:
                self._verify(self._lock)

    def _try_to_lead(self) -> None:
        try:
            self._acquire()
        except LockHeldError:
            self._find_active_daemon()
        except CleanupError as error:
            log.debug("Cannot check the lock of the active daemon: %s", error)
        else:
            self._put(RoleChanged(is_active=True, reason="no other daemon holds the lock"))

    def _verify(self, lock: StoreLock) -> None:
        try:
            lock.verify()
        except CleanupError as error:
            self.is_active, self._lock = False, None
            lock.close()
            self._find_active_daemon()
            self._put(RoleChanged(is_active=False, reason=str(error)))

    def _acquire(self) -> None:
        self._lock = StoreLock(self._address, _LOCK, self._clock())
        self.active_daemon, self.is_active = None, True

    def _find_active_daemon(self) -> None:
        with suppress(CleanupError):
            self.active_daemon = find_active_daemon(self._address)
