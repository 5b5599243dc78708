"""What is asked of one run, and what goes with it from its beginning to its end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup.hooks import RunHooks
from eemtcleanupd.clock import Clock
from eemtcleanupd.config import Config
from eemtcleanupd.deletion.pool import DeletionPool
from eemtcleanupd.deletion.rate_limit import RateLimits
from eemtcleanupd.events import AuditEntry, Emit
from eemtcleanupd.model import Trigger
from eemtcleanupd.policy.pressure import Pressure
from eemtcleanupd.policy.retention import Policy


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What is asked of one run.

    ``skip_larger_than_bytes`` leaves bigger jobs to another run.  ``only_trash`` cleans no job, it only
    empties the trash of what has outlived its grace, or has been there for ``purge_older_than``.
    ``pressure`` makes it go on, ahead of the retention, until the disk is no longer full; then nothing waits
    in the trash.
    """

    user: str
    trigger: Trigger = Trigger.MANUAL
    dry_run: bool = False
    force: bool = False
    skip_larger_than_bytes: int | None = None
    only_trash: bool = False
    purge_older_than: timedelta | None = None
    pressure: Pressure | None = None


@dataclass(slots=True)
class Progress:
    """How far a run is, for whoever watches from another thread; jobs include those that are kept.

    ``limits`` are set when others than those of the run's configuration are to be in force.
    """

    jobs_total: int = 0
    jobs_done: int = 0
    pool: DeletionPool | None = None
    limits: RateLimits | None = None

    def limit(self, config: Config) -> None:
        """Put the limits of another configuration in force: all else stays as it was when the run began."""
        self.limits = limits_of(config)
        if self.pool is not None:
            self.pool.controls.apply(self.limits)

    def begin(self, pool: DeletionPool) -> None:
        """Watch a pool; limits that came before it are put in force."""
        self.pool = pool
        if self.limits is not None:
            pool.controls.apply(self.limits)


def limits_of(config: Config) -> RateLimits:
    """Return how fast and how politely a configuration wants files to be deleted."""
    performance = config.performance
    return RateLimits(
        deletes_per_second=performance.max_deletes_per_second,
        bytes_per_second=performance.max_bytes_per_second,
        truncate_chunk_bytes=performance.truncate_chunk,
        nice=performance.nice,
        idle_io=performance.io_priority == "idle",
    )


@dataclass(frozen=True, slots=True)
class Run:
    """One run: what it was asked, the configuration that it keeps, and those it listens and talks to."""

    id: str
    started_at: datetime
    config: Config
    request: RunRequest
    policy: Policy
    emit: Emit
    stop: StopFlag
    clock: Clock
    progress: Progress
    guards: RunHooks

    @property
    def workers(self) -> int:
        """How many workers there are, or may be at most."""
        performance = self.config.performance
        if not performance.parallel_delete:
            return 1
        return performance.auto_max_workers if performance.max_workers == "auto" else performance.max_workers

    def audit(self, action: str, **details: object) -> None:
        """Write down what the run does.

        Raises:
            AuditError: it cannot be; then nothing more may be done.
        """
        entry = AuditEntry(self.clock(), self.request.user, action, {"run_id": self.id, **details})
        self.guards.audit([entry])
