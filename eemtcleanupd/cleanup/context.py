"""The context of one run: who asks for what, with which policy, clock, stop flag, listener and hooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.clock import Clock
from eemtcleanupd.config import Config
from eemtcleanupd.deletion.blockers import Blockers, LockList
from eemtcleanupd.deletion.pool import DeletionPool
from eemtcleanupd.deletion.rate_limit import RateLimits
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.events import AuditEntry, Emit
from eemtcleanupd.model import ArtifactPath, Job, Trigger
from eemtcleanupd.policy.pressure import Pressure
from eemtcleanupd.policy.retention import Policy

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from eemtcleanupd.store.ledger import Ledger


class RunHooks(Protocol):
    """What a run calls, in its own thread, so that others can veto, prepare or record what it does.

    ``read_jobs`` says whether a hook can read a job's parameters; a run does not load them otherwise.
    """

    @property
    def read_jobs(self) -> bool:
        """Whether a hook looks at jobs before they are cleaned."""

    def veto(self, job: Job) -> str | None:
        """Return why an expired job must stay, None when it can be cleaned; never raises."""

    def before_stage(self, job: Job, artifacts: Sequence[ArtifactPath]) -> str | None:
        """Prepare the removal of these artifacts; return why they must stay, None when they can go."""

    def audit(self, entries: Sequence[AuditEntry]) -> None:
        """Record what the run is about to do, or did.

        Raises:
            AuditError: the entries are not recorded, so the run must not continue.
        """

    def expect_audit(self, ledger: Ledger) -> None:
        """Compare the audit log with its anchor in the ledger when the next entry is recorded.

        Raises:
            StoreError: the anchor is not readable.
        """

    def anchor_audit(self, ledger: Ledger, connection: Connection) -> None:
        """Move the anchor in the ledger to the newest entry, in the transaction of a record."""


class NullHooks:
    """Hooks that never object and record nothing."""

    read_jobs = False

    def veto(self, job: Job) -> str | None:
        """Return None."""

    def before_stage(self, job: Job, artifacts: Sequence[ArtifactPath]) -> str | None:
        """Return None."""

    def audit(self, entries: Sequence[AuditEntry]) -> None:
        """Do nothing."""

    def expect_audit(self, ledger: Ledger) -> None:
        """Do nothing."""

    def anchor_audit(self, ledger: Ledger, connection: Connection) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a person or a schedule asks of one run.

    ``trigger`` also says what the run considers: see :attr:`Trigger.plans_jobs`.
    ``skip_larger_than_bytes`` leaves larger jobs to another run.  ``purge_older_than`` also deletes trash
    that is older, before the end of its grace, and ``forget_missing`` gives up what the trash should contain
    and does not.  ``allow_orphans`` lets the run delete any number of orphans
    (``safety.max_orphan_fraction``).  ``pressure`` lets the run clean jobs ahead of their retention until the
    disk is no longer full, and without a grace.
    """

    user: str
    trigger: Trigger = Trigger.MANUAL
    dry_run: bool = False
    force: bool = False
    allow_orphans: bool = False
    skip_larger_than_bytes: int | None = None
    purge_older_than: timedelta | None = None
    forget_missing: bool = False
    pressure: Pressure | None = None


@dataclass(slots=True)
class Progress:
    """The progress of a run, for readers in other threads; jobs include those that are kept.

    A job is done when it is kept, or when its data is deleted or in the trash.  ``limits`` is set when other
    rate limits than those of the run's configuration are in force.  ``run_id`` is empty until the run starts.
    """

    run_id: str = ""
    jobs_total: int = 0
    bytes_trashed: int = 0
    pool: DeletionPool | None = None
    limits: RateLimits | None = None
    _decided: int = 0
    _open: set[str] = field(default_factory=set)

    @property
    def jobs_done(self) -> int:
        """The number of jobs that need nothing more in this run."""
        return max(0, self._decided - len(self._open))

    @property
    def bytes_freed(self) -> int:
        """The bytes freed so far."""
        return 0 if self.pool is None else self.pool.bytes_freed

    def decided(self, jobs: int, to_clean: Iterable[str]) -> None:
        """Note that so many more jobs were decided on, of which these are to be cleaned."""
        self._open.update(to_clean)  # first, so that no reader sees them as done
        self._decided += jobs

    def done(self, job_ids: Iterable[str]) -> None:
        """Note that these jobs need nothing more."""
        self._open.difference_update(job_ids)

    def apply_limits(self, config: Config) -> None:
        """Apply the rate limits of another configuration; everything else stays as the run started."""
        self.limits = rate_limits(config)
        if self.pool is not None:
            self.pool.controls.apply(self.limits)

    def attach(self, pool: DeletionPool) -> None:
        """Follow a pool, and apply to it the limits that were set before."""
        self.pool = pool
        if self.limits is not None:
            pool.controls.apply(self.limits)


def rate_limits(config: Config) -> RateLimits:
    """Return the rate limits and priorities of deletion that a configuration asks for."""
    performance = config.performance
    return RateLimits(
        deletes_per_second=performance.max_deletes_per_second,
        bytes_per_second=performance.max_bytes_per_second,
        truncate_chunk_bytes=performance.truncate_chunk,
        nice=performance.nice,
        idle_io=performance.io_priority == "idle",
    )


@dataclass(frozen=True, slots=True)
class RunContext:
    """One run: its request, the configuration it started with, and its connections to the outside."""

    id: str
    started_at: datetime
    config: Config
    request: RunRequest
    policy: Policy
    emit: Emit
    stop: StopFlag
    clock: Clock
    progress: Progress
    hooks: RunHooks

    @classmethod
    def reading(cls, config: Config, policy: Policy, now: datetime, hooks: RunHooks) -> RunContext:
        """Return the context of what only looks at a job store, as a dry run at this moment does."""
        return cls(
            id="",
            started_at=now,
            config=config,
            request=RunRequest(user="", dry_run=True),
            policy=policy,
            emit=lambda _: None,
            stop=StopFlag(),
            clock=lambda: now,
            progress=Progress(),
            hooks=hooks,
        )

    @property
    def workers(self) -> int:
        """The number of workers, or their maximum with ``max_workers: auto``."""
        performance = self.config.performance
        if not performance.parallel_delete:
            return 1
        return performance.auto_max_workers if performance.max_workers == "auto" else performance.max_workers

    @property
    def grace(self) -> timedelta:
        """How long cleaned data waits in the trash."""
        return timedelta(hours=0 if self.request.pressure else self.config.trash.grace_hours)

    @property
    def purge_trashed_before(self) -> datetime | None:
        """The time before which data moved to the trash is purged before its grace ends; None for none."""
        older_than = self.request.purge_older_than
        return None if older_than is None else self.started_at - older_than

    def blockers(self, roots: Iterable[Root], locks: LockList | None = None) -> Blockers:
        """Return what keeps entries of the roots in place now; ``locks`` was begun a moment ago."""
        idle = timedelta(minutes=self.config.safety.min_idle_minutes)
        return Blockers.snapshot(roots, (self.clock() - idle).timestamp() if idle else None, locks)

    def audit(self, action: str, **details: object) -> None:
        """Record one action in the audit log; see :meth:`audit_all`."""
        self.audit_all([(action, details)])

    def audit_all(self, actions: Iterable[tuple[str, Mapping[str, object]]]) -> None:
        """Record actions, with their details, in the audit log.

        Raises:
            AuditError: they are not recorded, so the run must not continue.
        """
        now, user = self.clock(), self.request.user
        entries = [AuditEntry(now, user, action, {"run_id": self.id, **more}) for action, more in actions]
        if entries:
            self.hooks.audit(entries)
