"""What the daemon asks of the job store between runs.

These are small questions of the daemon's own thread, which must keep going round: a database that is locked
is not waited for, and whatever fails is logged and asked again at the next tick.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from eemtcleanupd.clock import Clock
from eemtcleanupd.config import Config
from eemtcleanupd.deletion.filesystem import disk_usage
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.events import CapacityWarning, Total
from eemtcleanupd.model import Outcome
from eemtcleanupd.policy.capacity import Budget
from eemtcleanupd.policy.pressure import DiskUsage
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.ledger import Ledger

log = logging.getLogger(__name__)

_BUSY_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class LastCleanup:
    """The newest run in the ledger; ``began_at`` is when the last one began that looked at all jobs."""

    began_at: datetime | None
    was_killed: bool
    was_interrupted: bool


class StoreQueries:
    """Asks the ledger and the results filesystem.

    Args:
        clock: where the time comes from.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def last_cleanup(self, config: Config) -> LastCleanup | None:
        """Return the newest run, None before the first or when the ledger cannot be asked."""
        try:
            with _ledger(config) as ledger:
                newest = ledger.runs(1)
                if not newest:
                    return None
                outcome = newest[0].outcome
                return LastCleanup(ledger.last_cleanup_at(), outcome is None, outcome == Outcome.INTERRUPTED)
        except (CleanupError, _NoLedgerError) as error:
            _tell(error)
            return None

    def totals(self, config: Config) -> tuple[tuple[Total, ...], datetime | None]:
        """Return what was counted since the ledger exists, and when the last whole run ended well."""
        try:
            with _ledger(config) as ledger:
                return ledger.totals(), ledger.last_success_at()
        except (CleanupError, _NoLedgerError) as error:
            _tell(error)
            return (), None

    def has_expired_trash(self, config: Config) -> bool:
        """Tell whether something in the trash has outlived its grace."""
        try:
            with _ledger(config) as ledger:
                return bool(ledger.expired(self._clock(), 1))
        except (CleanupError, _NoLedgerError) as error:
            _tell(error)
            return False

    def sample(self, config: Config) -> CapacityWarning | None:
        """Add a point to the storage history, except where only dry runs are wanted.

        Returns what there is to tell when usage has passed a mark of the budget.
        """
        usage = self.usage(config)
        if usage is None or config.dry_run:
            return None
        try:
            with _ledger(config) as ledger:
                ledger.create_tables()  # an earlier version's history has no level
                free, total = usage.free_bytes, usage.total_bytes
                return ledger.add_storage_sample(None, free, total, self._clock(), Budget.of(config.capacity))
        except (CleanupError, _NoLedgerError) as error:
            _tell(error)
            return None

    def usage(self, config: Config) -> DiskUsage | None:
        """Return how full the results filesystem is, None when it cannot be said."""
        try:
            descriptor = os.open(config.paths.results, os.O_RDONLY | os.O_DIRECTORY)
            try:
                return disk_usage(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("%s cannot be looked at: %s", config.paths.results, error.strerror)
            return None


class _NoLedgerError(Exception):
    """There has been no run yet."""


@contextmanager
def _ledger(config: Config) -> Iterator[Ledger]:
    database = StoreAddress.of(config).open(_BUSY_TIMEOUT_SECONDS)
    try:
        ledger = Ledger(database)
        if not ledger.exists():
            raise _NoLedgerError
        yield ledger
    finally:
        database.close()


def _tell(error: Exception) -> None:
    if not isinstance(error, _NoLedgerError):
        log.warning("The ledger could not be asked: %s", error)
