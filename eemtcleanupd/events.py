"""What a run and the daemon tell while they go on: frozen values, handed to whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from eemtcleanupd.model import Found, Job, JobClass, Outcome, Trigger

DURATION_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0)
"""Seconds up to which runs are counted, for the histogram of their durations."""


@dataclass(frozen=True, slots=True)
class ArtifactSize:
    """An artifact with its allocated bytes: measured in a plan, freed in a report."""

    found: Found
    size_bytes: int


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run begins; ``jobs_to_check`` are the terminal jobs whose data has not been cleaned."""

    run_id: str
    dry_run: bool
    trigger: Trigger
    policy: str
    jobs_to_check: int
    candidates: int


@dataclass(frozen=True, slots=True)
class JobPlanned:
    """A dry run would clean this job."""

    job: Job
    job_class: JobClass
    age: timedelta
    reason: str
    artifacts: tuple[ArtifactSize, ...]
    shared: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """All artifacts together."""
        return sum(artifact.size_bytes for artifact in self.artifacts)


@dataclass(frozen=True, slots=True)
class JobCleaned:
    """A job's data is gone (or, with a grace, in the trash) and recorded so.

    ``bytes_freed`` counts earlier, interrupted attempts too; ``age`` is None for a job that an earlier run
    had begun.  ``early`` says why a job went ahead of its retention, None for one that was due.
    """

    run_id: str
    job: Job
    job_class: JobClass
    age: timedelta | None
    artifacts: tuple[ArtifactSize, ...]
    bytes_freed: int
    in_trash: bool = False
    ahead_of_retention: str | None = None


@dataclass(frozen=True, slots=True)
class JobSkipped:
    """A job was kept for a reason that an operator may want to know; ``notable`` ones are warned of.

    ``vetoed`` marks those that a plugin keeps.
    """

    job: Job
    reason: str
    notable: bool
    vetoed: bool = False


@dataclass(frozen=True, slots=True)
class JobFailed:
    """A job could not be cleaned whole; it stays uncleaned and the next run tries again."""

    run_id: str
    job_id: str
    status: str
    error: str


@dataclass(frozen=True, slots=True)
class OrphanFound:
    """An entry of a root that no row names; ``removed`` when it went by ``orphans.delete_after_hours``."""

    found: Found
    size_bytes: int
    removed: bool


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that an operator should look at; the run goes on."""

    message: str


@dataclass(frozen=True, slots=True)
class JobTally:
    """Jobs and bytes of one kind."""

    jobs: int = 0
    bytes_freed: int = 0


@dataclass(frozen=True, slots=True)
class JobNote:
    """One job in a report; the id is in its printable form, ``words`` why it was kept or what went wrong."""

    job_id: str
    status: str
    bytes_freed: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class StoragePoint:
    """How much the jobs held, and how much was free, at one time (aware UTC)."""

    at: datetime
    used_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class StorageState:
    """The job store after a run: measured bytes of jobs, the results filesystem, a trend of 90 days.

    ``capacity_max_bytes`` is what the jobs may hold (``capacity.max_bytes``), None without a budget.
    """

    successful_bytes: int
    failed_bytes: int
    free_bytes: int
    total_bytes: int
    trash_jobs: int = 0
    trash_bytes: int = 0
    trend: tuple[StoragePoint, ...] = ()
    capacity_max_bytes: int | None = None

    @property
    def used_bytes(self) -> int:
        """What the measured jobs hold together."""
        return self.successful_bytes + self.failed_bytes


@dataclass(frozen=True, slots=True)
class Total:
    """What was counted since the ledger exists: ``jobs_cleaned`` of status ``completed``, and the like."""

    name: str
    label: str
    value: float


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the audit log: who did what, when (aware UTC), from where if over the network."""

    timestamp: datetime
    user: str
    action: str
    details: Mapping[str, Any]
    ip_address: str | None = None


@dataclass(frozen=True, slots=True)
class RunReport:
    """What one run did (or, when ``dry_run``, would do); times are aware UTC.

    ``outcome`` is ``success``, ``errors`` (some jobs could not be cleaned) or ``interrupted``.
    ``remaining`` are due jobs left to another run by a cap or a size limit; ``missing`` are uncleaned
    terminal jobs none of whose files exist.  ``early`` are those of the cleaned jobs that went ahead of their
    retention, ``pressure`` says why in words; None for a run that was not made by disk pressure.
    ``biggest``, ``failures`` and ``vetoed`` name some of the jobs.  ``storage`` and ``totals`` are empty in a
    dry run; ``next_run_at`` is known to the daemon.  ``is_test`` marks a report that ``notify-test`` made up.
    """

    run_id: str
    dry_run: bool
    trigger: Trigger
    user: str
    started_at: datetime
    finished_at: datetime
    outcome: Outcome
    successful: JobTally = field(default_factory=JobTally)
    failed: JobTally = field(default_factory=JobTally)
    orphans: JobTally = field(default_factory=JobTally)
    trash_purged: JobTally = field(default_factory=JobTally)
    orphans_found: int = 0
    missing: int = 0
    skipped: int = 0
    errors: int = 0
    remaining: int = 0
    early: JobTally = field(default_factory=JobTally)
    pressure: str | None = None
    host: str = ""
    biggest: tuple[JobNote, ...] = ()
    failures: tuple[JobNote, ...] = ()
    vetoed: tuple[JobNote, ...] = ()
    storage: StorageState | None = None
    totals: tuple[Total, ...] = ()
    next_run_at: datetime | None = None
    is_test: bool = False

    @property
    def bytes_freed(self) -> int:
        """All space that was freed."""
        return sum(t.bytes_freed for t in (self.successful, self.failed, self.orphans, self.trash_purged))


@dataclass(frozen=True, slots=True)
class RunFinished:
    """A run ended by itself or was asked to stop; its report says how."""

    report: RunReport


@dataclass(frozen=True, slots=True)
class RunFailed:
    """A run was refused or broke off; nothing more was touched.  ``failed_at`` is aware UTC."""

    run_id: str
    error: str
    trigger: Trigger | None = None
    host: str = ""
    failed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DaemonStarted:
    """The daemon listens; ``next_run_at`` is aware UTC, None while the schedule is off."""

    pid: int
    host: str
    next_run_at: datetime | None
    totals: tuple[Total, ...] = ()
    last_success_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DaemonStopping:
    """The daemon is on its way out; ``reason`` is in words."""

    reason: str


@dataclass(frozen=True, slots=True)
class ConfigReloaded:
    """A new configuration is in force; ``reason`` says what made the daemon read it."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class ConfigRejected:
    """A new configuration was refused, the one before stays in force; ``error`` names file, line and key."""

    file: str
    reason: str
    error: str


@dataclass(frozen=True, slots=True)
class DiskPressure:
    """The results filesystem is fuller than its high watermark; a run follows."""

    used_percent: float
    free_bytes: int
    high_watermark_percent: float
    low_watermark_percent: float


@dataclass(frozen=True, slots=True)
class CapacityWarning:
    """What the jobs hold has passed ``warn_percent`` of their budget, or all of it."""

    used_bytes: int
    max_bytes: int
    warn_percent: float

    @property
    def used_percent(self) -> float:
        """How much of the budget is used."""
        return 100 * self.used_bytes / self.max_bytes

    @property
    def is_over(self) -> bool:
        """Whether it is all of the budget, or more."""
        return self.used_bytes >= self.max_bytes


Event = (
    RunStarted
    | JobPlanned
    | JobCleaned
    | JobSkipped
    | JobFailed
    | OrphanFound
    | Warned
    | RunFinished
    | RunFailed
    | DaemonStarted
    | DaemonStopping
    | ConfigReloaded
    | ConfigRejected
    | DiskPressure
    | CapacityWarning
)
Emit = Callable[[Event], None]
