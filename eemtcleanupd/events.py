"""Events of runs and of the daemon: data, hook, filter name, severity and texts of each in one place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, Literal

from eemtcleanupd.formatting import human_age, human_size, local_time, printable, short_name
from eemtcleanupd.model import Found, Job, JobClass, Outcome, Trigger

Occasion = Literal[
    "success",
    "failure",
    "interrupted",
    "trash",
    "dry_run",
    "pressure",
    "capacity",
    "config_reloaded",
    "config_rejected",
    "daemon",
]
"""What ``on:`` in a notifier's settings can name.

The first five are results of runs.  ``failure`` is a run with errors, or one that was refused or failed;
``trash`` is a successful run that only emptied the trash.
"""
DURATION_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0)
"""Upper bounds, in seconds, of the histogram of run durations."""


class Severity(StrEnum):
    """How serious an event is; the values are Slack's colour names."""

    GOOD = "good"
    WARNING = "warning"
    DANGER = "danger"


_LOG_LEVELS = {
    Severity.GOOD: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.DANGER: logging.ERROR,
}


# -- values inside events --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ArtifactSize:
    """An artifact with its allocated bytes: measured in a plan, freed in a report."""

    found: Found
    size_bytes: int


@dataclass(frozen=True, slots=True)
class JobTally:
    """Number of jobs of one kind, and their bytes."""

    jobs: int = 0
    bytes_freed: int = 0


@dataclass(frozen=True, slots=True)
class JobNote:
    """One job in a report: its id in printable form, and why it was kept or what failed."""

    job_id: str
    status: str
    bytes_freed: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class StoragePoint:
    """Bytes that the jobs used, and free bytes, at one time (aware UTC)."""

    at: datetime
    used_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class StorageState:
    """The job store after a run: bytes of measured jobs, the results filesystem, the trend of 90 days.

    ``capacity_max_bytes`` is the budget of all jobs (``capacity.max_bytes``), None without a budget.
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
        """Bytes of all measured jobs."""
        return self.successful_bytes + self.failed_bytes


@dataclass(frozen=True, slots=True)
class Total:
    """A counter since the ledger was created, such as ``jobs_cleaned`` with the label ``completed``."""

    name: str
    label: str
    value: float


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the audit log: who did what, when (aware UTC), and from which network address."""

    timestamp: datetime
    user: str
    action: str
    details: Mapping[str, Any]
    ip_address: str | None = None


@dataclass(frozen=True, slots=True)
class RunReport:
    """What one run did, or would do when ``dry_run``; times are aware UTC.

    ``outcome`` is ``success``, ``errors`` (on some jobs) or ``interrupted``.
    ``remaining`` counts expired jobs that a cap or a size limit left to another run.
    ``missing`` counts uncleaned terminal jobs none of whose files exist.
    ``early`` counts the cleaned jobs whose retention had not passed.  ``pressure`` says why as text; it is
    None unless disk pressure started the run.
    ``biggest``, ``failures`` and ``vetoed`` name some of the jobs.  ``storage`` and ``totals`` are empty in a
    dry run.  Only the daemon sets ``next_run_at``.  ``is_test`` marks a report that ``notify-test`` made up.
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
        """Bytes freed from jobs, orphans and the trash."""
        return sum(t.bytes_freed for t in (self.successful, self.failed, self.orphans, self.trash_purged))


# -- events ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events.

    To add an event, subclass this class and emit it.  The hooks of plugins, the outbox, the filters of
    notifiers, their messages, the log and the console derive from the members below.
    """

    hook: ClassVar[str] = ""
    """Plugin hook that receives the event; empty for an event that only the log and the console show."""
    is_ephemeral: ClassVar[bool] = False
    """Whether the event is sent from memory only, and not to ``notify``: it is frequent or soon outdated."""
    is_frequent: ClassVar[bool] = False
    """Whether a run emits many of them, so that they are sent in batches."""

    @property
    def occasion(self) -> Occasion | None:
        """What ``on:`` in a notifier's settings must name to receive the event; None: always sent."""
        return None

    @property
    def severity(self) -> Severity:
        """How serious the event is."""
        return Severity.GOOD

    @property
    def log_level(self) -> int:
        """Level of :meth:`log_line`; follows from the severity."""
        return _LOG_LEVELS[self.severity]

    @property
    def is_test(self) -> bool:
        """Whether the event only shows what a real one looks like."""
        return False

    def log_line(self) -> str:
        """Return the event as one line of the log and of the console."""
        return self.headline()

    def log_lines(self) -> Iterator[tuple[int, str]]:
        """Yield each log line with its level; only events with several lines override this."""
        yield self.log_level, self.log_line()

    def headline(self) -> str:
        """Return the subject of a message to notifiers."""
        return f"EEMT cleanup: {type(self).__name__}"

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return title and value of each line of a message to notifiers."""
        return ()


Emit = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """A run started; ``jobs_to_check`` counts the terminal jobs whose data was not cleaned yet."""

    hook = "run_started"
    is_ephemeral = True

    run_id: str
    dry_run: bool
    trigger: Trigger
    policy: str
    jobs_to_check: int
    candidates: int

    def log_lines(self) -> Iterator[tuple[int, str]]:
        yield logging.INFO, "Starting job cleanup process"
        yield logging.INFO, f"Run {self.run_id}: {self.policy}"
        yield logging.INFO, f"Found {self.jobs_to_check} jobs to check"


@dataclass(frozen=True, slots=True)
class JobPlanned(Event):
    """A dry run would clean this job."""

    job: Job
    job_class: JobClass
    age: timedelta
    reason: str
    artifacts: tuple[ArtifactSize, ...]
    shared: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of all artifacts."""
        return sum(artifact.size_bytes for artifact in self.artifacts)

    def log_line(self) -> str:
        return f"[DRY RUN] Would clean job {short_name(self.job.id)}: {self.reason}"


@dataclass(frozen=True, slots=True)
class JobCleaned(Event):
    """A job's data was deleted, or moved to the trash for its grace, and the job was recorded as cleaned.

    ``bytes_freed`` includes earlier, interrupted attempts.  ``age`` is None for a job that an earlier run
    started to clean.  ``ahead_of_retention`` says why a job was cleaned before its retention passed, None
    for an expired job.
    """

    hook = "job_cleaned"
    is_ephemeral = True
    is_frequent = True

    run_id: str
    job: Job
    job_class: JobClass
    age: timedelta | None
    artifacts: tuple[ArtifactSize, ...]
    bytes_freed: int
    in_trash: bool = False
    ahead_of_retention: str | None = None

    def log_lines(self) -> Iterator[tuple[int, str]]:
        name = short_name(self.job.id)
        age = "left by an earlier run" if self.age is None else f"{human_age(self.age)} old"
        if self.ahead_of_retention:
            yield logging.WARNING, f"Cleaning job {name} before its retention: it {self.ahead_of_retention}"
        yield logging.INFO, f"Cleaning job {name} ({printable(self.job.status)}, {age})"
        verb = "Moved to the trash" if self.in_trash else "Deleted"
        for part in self.artifacts:
            yield logging.INFO, f"{verb} {short_name(part.found.label)} ({human_size(part.size_bytes)})"


@dataclass(frozen=True, slots=True)
class JobSkipped(Event):
    """A run kept a job; ``notable`` reasons need an operator's attention and are logged as warnings.

    ``vetoed`` marks jobs that a plugin keeps.
    """

    job: Job
    reason: str
    notable: bool
    vetoed: bool = False

    @property
    def severity(self) -> Severity:
        return Severity.WARNING if self.notable else Severity.GOOD

    @property
    def log_level(self) -> int:
        return logging.WARNING if self.notable else logging.DEBUG

    def log_line(self) -> str:
        return f"Kept job {short_name(self.job.id)}: {self.reason}"


@dataclass(frozen=True, slots=True)
class JobFailed(Event):
    """A job could not be cleaned completely; it stays uncleaned and the next run tries again."""

    severity = Severity.DANGER

    run_id: str
    job_id: str
    status: str
    error: str

    def log_line(self) -> str:
        return f"Job {short_name(self.job_id)} could not be cleaned: {printable(self.error)}"


@dataclass(frozen=True, slots=True)
class OrphanFound(Event):
    """An entry of a root that no row names; ``removed`` if ``orphans.delete_after_hours`` had passed."""

    found: Found
    size_bytes: int
    removed: bool

    def log_line(self) -> str:
        verb = "Removed" if self.removed else "Found"
        return f"{verb} orphan {short_name(self.found.label)} ({human_size(self.size_bytes)})"


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """A problem that an operator should check; the run continues."""

    severity = Severity.WARNING

    message: str

    def log_line(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class RunFinished(Event):
    """A run ended by itself or was asked to stop; its report has the details."""

    hook = "run_finished"

    report: RunReport

    @property
    def occasion(self) -> Occasion:
        report = self.report
        if report.dry_run:
            return "dry_run"
        if report.outcome is Outcome.SUCCESS:
            return "trash" if report.trigger is Trigger.TRASH else "success"
        return "interrupted" if report.outcome is Outcome.INTERRUPTED else "failure"

    @property
    def severity(self) -> Severity:
        if self.report.outcome is Outcome.SUCCESS:
            return Severity.GOOD
        return Severity.WARNING if self.report.outcome is Outcome.INTERRUPTED else Severity.DANGER

    @property
    def is_test(self) -> bool:
        return self.report.is_test

    def log_lines(self) -> Iterator[tuple[int, str]]:
        report = self.report
        jobs = f"{report.successful.jobs} successful, {report.failed.jobs} failed"
        yield logging.INFO, f"Cleanup summary: {jobs}, {human_size(report.bytes_freed)} freed"
        if report.pressure:
            early = f"{report.early.jobs} jobs before their retention"
            freed = human_size(report.early.bytes_freed)
            yield logging.WARNING, f"Cleaned {early} ({freed}): {report.pressure}"
        yield self.log_level, self.log_line()

    def log_line(self) -> str:
        if self.report.outcome is Outcome.SUCCESS:
            return "Cleanup completed successfully"
        if self.report.outcome is Outcome.ERRORS:
            return f"Cleanup completed with errors on {self.report.errors} jobs"
        return "Cleanup was interrupted; the next run continues"


@dataclass(frozen=True, slots=True)
class RunFailed(Event):
    """A run was refused or failed, and did nothing more.  ``failed_at`` is aware UTC."""

    hook = "run_failed"
    occasion = "failure"
    severity = Severity.DANGER

    run_id: str
    error: str
    trigger: Trigger | None = None
    host: str = ""
    failed_at: datetime | None = None

    def log_line(self) -> str:
        return f"Cleanup failed: {self.error}"

    def headline(self) -> str:
        return f"FAILED: EEMT cleanup{f' on {self.host}' if self.host else ''} did not run"

    def facts(self) -> tuple[tuple[str, str], ...]:
        run = f"{self.run_id} ({self.trigger or ''})"
        return ("Status", "Failed"), ("Error", self.error), ("Run", run)


@dataclass(frozen=True, slots=True)
class DaemonStarted(Event):
    """The daemon started; ``next_run_at`` is aware UTC, None while the schedule is off."""

    hook = "daemon_started"
    occasion = "daemon"

    pid: int
    host: str
    next_run_at: datetime | None
    totals: tuple[Total, ...] = ()
    last_success_at: datetime | None = None

    def log_line(self) -> str:
        next_run = f"{self.next_run_at:%Y-%m-%d %H:%M} UTC" if self.next_run_at else "not scheduled"
        return f"Daemon started, process {self.pid} on {self.host}; next run {next_run}"

    def headline(self) -> str:
        return f"EEMT cleanup started on {self.host}"

    def facts(self) -> tuple[tuple[str, str], ...]:
        return (("Next cleanup scheduled for", local_time(self.next_run_at)),)


@dataclass(frozen=True, slots=True)
class DaemonStopping(Event):
    """The daemon is stopping; ``reason`` says why as text."""

    hook = "daemon_stopping"
    occasion = "daemon"
    severity = Severity.WARNING
    log_level = logging.INFO

    reason: str

    def log_line(self) -> str:
        return f"Daemon stopping: {self.reason}"

    def headline(self) -> str:
        return "EEMT cleanup is stopping"

    def facts(self) -> tuple[tuple[str, str], ...]:
        return (("Reason", self.reason),)


@dataclass(frozen=True, slots=True)
class ConfigReloaded(Event):
    """A new configuration is in force; ``reason`` says why the daemon read it."""

    hook = "config_reloaded"
    occasion = "config_reloaded"

    file: str
    reason: str

    def log_line(self) -> str:
        return f"Configuration {self.file} is in force ({self.reason})"

    def headline(self) -> str:
        return "EEMT cleanup has a new configuration"

    def facts(self) -> tuple[tuple[str, str], ...]:
        return ("File", self.file), ("Reason", self.reason)


@dataclass(frozen=True, slots=True)
class ConfigRejected(Event):
    """A new configuration was rejected; the previous one stays in force.

    ``error`` names file, line and key.
    """

    hook = "config_rejected"
    occasion = "config_rejected"
    severity = Severity.DANGER

    file: str
    reason: str
    error: str

    def log_line(self) -> str:
        return (
            f"Configuration {self.file} was rejected, the previous one stays in force "
            f"({self.reason}): {self.error}"
        )

    def headline(self) -> str:
        return "EEMT cleanup rejected a configuration"

    def facts(self) -> tuple[tuple[str, str], ...]:
        return ("File", self.file), ("Reason", self.reason), ("Error", self.error)


@dataclass(frozen=True, slots=True)
class DiskPressure(Event):
    """The results filesystem is above its high watermark; a run follows."""

    hook = "disk_pressure"
    occasion = "pressure"
    severity = Severity.WARNING

    used_percent: float
    free_bytes: int
    high_watermark_percent: float
    low_watermark_percent: float

    def log_line(self) -> str:
        return (
            f"The results filesystem is {self.used_percent:.1f} % full (high watermark "
            f"{self.high_watermark_percent:g} %), {human_size(self.free_bytes)} free"
        )

    def headline(self) -> str:
        return f"EEMT disk is {self.used_percent:.1f} % full"

    def facts(self) -> tuple[tuple[str, str], ...]:
        return (
            ("Used", f"{self.used_percent:.1f} %"),
            ("Available Space", human_size(self.free_bytes)),
            ("Cleaning until", f"{self.low_watermark_percent:g} %"),
        )


@dataclass(frozen=True, slots=True)
class CapacityWarning(Event):
    """The jobs use more than ``warn_percent`` of their budget, or all of it."""

    hook = "capacity_warning"
    occasion = "capacity"
    log_level = logging.WARNING

    used_bytes: int
    max_bytes: int
    warn_percent: float

    @property
    def used_percent(self) -> float:
        """Used part of the budget, in percent."""
        return 100 * self.used_bytes / self.max_bytes

    @property
    def is_over(self) -> bool:
        """Whether the jobs use the complete budget or more."""
        return self.used_bytes >= self.max_bytes

    @property
    def severity(self) -> Severity:
        return Severity.DANGER if self.is_over else Severity.WARNING

    def log_line(self) -> str:
        used, budget = human_size(self.used_bytes), human_size(self.max_bytes)
        return f"Jobs use {used}, {self.used_percent:.1f} % of their budget of {budget}"

    def headline(self) -> str:
        used = "all" if self.is_over else f"{self.used_percent:.1f} %"
        return f"EEMT jobs use {used} of their budget of {human_size(self.max_bytes)}"

    def facts(self) -> tuple[tuple[str, str], ...]:
        return (
            ("Current Storage Usage", human_size(self.used_bytes)),
            ("Budget", f"{human_size(self.max_bytes)}, {self.used_percent:.1f} % used"),
            ("Warning from", f"{self.warn_percent:g} %"),
        )


# `slots=True` makes a second class, and the first stays a subclass: of each hook, the last class counts.
HOOK_EVENTS: dict[str, type[Event]] = {event.hook: event for event in Event.__subclasses__() if event.hook}
"""Event class by hook name, in the order of this module."""
