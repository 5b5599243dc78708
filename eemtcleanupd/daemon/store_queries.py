"""Short queries of the job store that the daemon makes between runs.

They run in the daemon's own thread, which must not block.  A locked database is therefore not waited for: the
failure is logged, and the next timer tick asks again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TypeVar

from eemtcleanupd.cleanup.context import RunHooks
from eemtcleanupd.clock import Clock
from eemtcleanupd.config import Config
from eemtcleanupd.deletion.filesystem import disk_usage
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.events import CapacityWarning, RunFailed, StorageState, Total
from eemtcleanupd.model import Outcome
from eemtcleanupd.policy.capacity import Budget
from eemtcleanupd.policy.pressure import DiskUsage
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.lock import Holder
from eemtcleanupd.store.runs import RunRecord

log = logging.getLogger(__name__)

_BUSY_TIMEOUT_SECONDS = 2.0
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class LastCleanup:
    """The last cleanup in the ledger.

    ``began_at`` is the start of the last run that considered all jobs.  ``needs_recovery`` says whether the
    newest run was killed, or ended early and left deletions that it had started.  ``error`` is why the newest
    run failed, None if it did not.
    """

    began_at: datetime | None
    needs_recovery: bool
    error: str | None = None


class StoreQueries:
    """Queries the ledger and the results filesystem."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def last_cleanup(self, config: Config) -> LastCleanup | None:
        """Return the newest run; None before the first one, or when the query fails."""

        def query(ledger: Ledger) -> LastCleanup | None:
            newest = ledger.runs(1)
            if not newest:
                return None
            outcome = newest[0].outcome
            ended_early = outcome not in {None, Outcome.SUCCESS, Outcome.ERRORS}
            is_open = outcome in {None, Outcome.KILLED}
            needs_recovery = is_open or (ended_early and bool(ledger.open_intents()))
            error = newest[0].error if outcome in Outcome.unsuccessful() else None
            return LastCleanup(ledger.last_cleanup_at(), needs_recovery, error)

        return _ask(config, query)

    def totals(self, config: Config) -> tuple[tuple[Total, ...], datetime | None]:
        """Return the totals of all runs, and when the last complete run succeeded."""
        return _ask(config, lambda ledger: (ledger.totals(), ledger.last_success_at())) or ((), None)

    def metrics(
        self, config: Config
    ) -> tuple[tuple[Total, ...], datetime | None, StorageState | None] | None:
        """Return the totals, the time of the last success, and the storage; None when the query fails."""
        usage = self.usage(config)

        def storage(ledger: Ledger) -> StorageState | None:
            if usage is None:
                return None
            state = ledger.storage_state(self._clock(), usage.free_bytes, usage.total_bytes)
            return replace(state, capacity_max_bytes=config.capacity.max_bytes)

        return _ask(config, lambda ledger: (ledger.totals(), ledger.last_success_at(), storage(ledger)))

    def has_expired_trash(self, config: Config) -> bool:
        """Tell whether the grace of something in the trash has passed."""
        return bool(_ask(config, lambda ledger: ledger.expired(self._clock(), 1)))

    def run_holder(self, config: Config) -> Holder | None:
        """Return the process that holds the lock of a run; None if there is none, or when the query fails."""
        try:
            with closing(StoreAddress.of(config).open(_BUSY_TIMEOUT_SECONDS)) as database:
                return database.holder("run")
        except CleanupError as error:
            log.warning("Cannot query the lock of the run: %s", error)
            return None

    def sample(self, config: Config) -> CapacityWarning | None:
        """Add a point to the storage history, except in dry-run mode.

        Returns a warning when usage has crossed a threshold of the budget.
        """
        usage = self.usage(config)
        if usage is None or config.dry_run:
            return None

        def query(ledger: Ledger) -> CapacityWarning | None:
            ledger.create_tables()  # an earlier version's history has no level
            free, total = usage.free_bytes, usage.total_bytes
            return ledger.add_storage_sample(None, free, total, self._clock(), Budget.of(config.capacity))

        return _ask(config, query)

    def anchor_audit(self, config: Config, hooks: RunHooks) -> None:
        """Move the ledger's anchor of the audit log to the newest line, except in dry-run mode."""

        def query(ledger: Ledger) -> None:
            hooks.expect_audit(ledger)
            ledger.move_audit_anchor(partial(hooks.anchor_audit, ledger))

        if not config.dry_run:
            _ask(config, query)

    def record_refusal(self, config: Config, failed: RunFailed, user: str) -> None:
        """Write into the ledger why a run did not begin, so that it is known after a restart too."""
        now = failed.failed_at or self._clock()
        record = RunRecord(
            id=failed.run_id,
            started_at=now,
            finished_at=now,
            trigger=failed.trigger or "",
            user=user,
            host=failed.host,
            pid=os.getpid(),
            policy=str(Policy.from_config(config.retention)),
            outcome=Outcome.REFUSED,
            error=failed.error,
        )
        _ask(config, lambda ledger: ledger.add_refused_run(record) if ledger.is_current() else None)

    def usage(self, config: Config) -> DiskUsage | None:
        """Return the usage of the results filesystem, None when it cannot be read."""
        try:
            descriptor = os.open(config.paths.results, os.O_RDONLY | os.O_DIRECTORY)
            try:
                return disk_usage(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("Cannot read the disk usage of %s: %s", config.paths.results, error.strerror)
            return None


def _ask(config: Config, query: Callable[[Ledger], _Result]) -> _Result | None:
    """Return the result of a query; None before the first run, or when the query fails."""
    try:
        with closing(StoreAddress.of(config).open(_BUSY_TIMEOUT_SECONDS)) as database:
            ledger = Ledger(database)
            return query(ledger) if ledger.exists() else None
    except CleanupError as error:
        log.warning("Cannot query the ledger: %s", error)
        return None
