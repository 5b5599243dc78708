"""Events of a run and of its jobs, and what they contain: its report, sizes, totals, audit entries."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from eemtcleanupd.events.base import Event, Occasion, Severity
from eemtcleanupd.formatting import human_age, human_amounts, human_size, plural, printable, short_name
from eemtcleanupd.model import Found, Job, JobClass, Outcome, Trigger

DURATION_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0)
"""Upper bounds, in seconds, of the histogram of run durations."""


@dataclass(frozen=True, slots=True)
class ArtifactSize:
    """An artifact with its allocated bytes: measured in a plan, freed in a report."""

    found: Found
    size_bytes: int


@dataclass(frozen=True, slots=True)
class JobTally:
    """Number of jobs of one kind, and their bytes: those freed, and those that wait in the trash."""

    jobs: int = 0
    bytes_freed: int = 0
    bytes_trashed: int = 0


@dataclass(frozen=True, slots=True)
class JobNote:
    """One job in a report: its id in printable form, and why it was kept or what failed."""

    job_id: str
    status: str
    bytes_freed: int = 0
    message: str = ""
    bytes_trashed: int = 0

    @property
    def bytes_cleaned(self) -> int:
        """Bytes of the cleaned data, freed or in the trash."""
        return self.bytes_freed + self.bytes_trashed


@dataclass(frozen=True, slots=True)
class DatabaseSummary:
    """The job database in use: its path or redacted URL, its number of jobs, and when the last one ended.

    ``last_job_ended_at`` is aware, and None if no job has an end that can be read.
    """

    path: str
    jobs: int
    last_job_ended_at: datetime | None

    def __str__(self) -> str:
        ended = self.last_job_ended_at
        last = "" if ended is None else f" The last one ended on {ended.astimezone():%Y-%m-%d %H:%M}."
        return f"Job database {printable(self.path)} has {plural(self.jobs, 'job')}.{last}"

    def document(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        ended = self.last_job_ended_at
        return {
            "path": self.path,
            "jobs": self.jobs,
            "last_job_ended_at": None if ended is None else ended.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class StoragePoint:
    """Bytes that the jobs used, and free bytes, at one time (aware UTC)."""

    at: datetime
    used_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class StorageState:
    """The job store after a run: bytes of measured jobs, the results filesystem, the trend of 90 days.

    ``trash_purge_at`` is when the first data in the trash is deleted, None if the trash is empty.
    ``capacity_max_bytes`` is the budget of all jobs (``capacity.max_bytes``), None without a budget.
    """

    successful_bytes: int
    failed_bytes: int
    free_bytes: int
    total_bytes: int
    trash_jobs: int = 0
    trash_bytes: int = 0
    trash_purge_at: datetime | None = None
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
class AuditAnchor:
    """A line of an audit log, by its number and its hash; the number 0 is the beginning of every log."""

    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class RunReport:
    """What one run did, or would do when ``dry_run``; times are aware UTC.

    ``outcome`` is ``success``, ``errors`` (on some jobs) or ``interrupted``.
    ``remaining`` counts expired jobs that a cap or a size limit left to another run.
    ``remaining_bytes`` is the size of those that exceed the size limit.
    ``skipped`` counts kept jobs that need attention, ``acknowledged`` those whose warning was acknowledged.
    ``missing`` counts uncleaned terminal jobs that have no files left.
    ``early`` counts the cleaned jobs whose retention had not passed.
    ``pressure`` describes the disk pressure that started the run; it is None for other runs.
    ``purge_after`` is when the last data that this run moved to the trash is deleted, None if it moved none.
    ``biggest``, ``failures`` and ``vetoed`` name some of the jobs: ``errors`` and ``vetoed_jobs`` count all.
    ``storage`` and ``totals`` are empty in a dry run.  ``next_run_at`` is None without a daemon.  ``is_test``
    marks a report that ``notify-test`` made up.
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
    acknowledged: int = 0
    errors: int = 0
    remaining: int = 0
    remaining_bytes: int = 0
    early: JobTally = field(default_factory=JobTally)
    pressure: str | None = None
    purge_after: datetime | None = None
    host: str = ""
    biggest: tuple[JobNote, ...] = ()
    failures: tuple[JobNote, ...] = ()
    vetoed: tuple[JobNote, ...] = ()
    vetoed_jobs: int = 0
    storage: StorageState | None = None
    totals: tuple[Total, ...] = ()
    next_run_at: datetime | None = None
    is_test: bool = False

    @property
    def bytes_freed(self) -> int:
        """Bytes freed from jobs, orphans and the trash."""
        return sum(t.bytes_freed for t in (self.successful, self.failed, self.orphans, self.trash_purged))

    @property
    def bytes_trashed(self) -> int:
        """Bytes that this run moved to the trash: their space is not free yet."""
        return sum(t.bytes_trashed for t in (self.successful, self.failed, self.orphans))

    @property
    def amounts(self) -> str:
        """The freed space as text, and the space of data in the trash."""
        return human_amounts(self.bytes_freed, self.bytes_trashed, self.purge_after)


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """A run started; ``jobs_to_check`` counts the terminal jobs whose data was not cleaned yet.

    ``database`` is None for a run that plans no jobs.
    """

    hook = "run_started"
    is_ephemeral = True

    run_id: str
    dry_run: bool
    trigger: Trigger
    policy: str
    jobs_to_check: int
    candidates: int
    database: DatabaseSummary | None = None

    def log_lines(self) -> Iterator[tuple[int, str]]:
        if self.trigger is Trigger.RECOVERY:
            text = f"Run {self.run_id}: finishing what an interrupted run left. No job is planned."
            yield logging.INFO, text
            return
        yield logging.INFO, "Starting job cleanup process"
        yield logging.INFO, f"Run {self.run_id}: {self.policy}"
        if self.database is not None:
            yield logging.INFO, str(self.database)
        yield logging.INFO, f"Found {plural(self.jobs_to_check, 'job', grouped=False)} to check"


@dataclass(frozen=True, slots=True)
class JobPlanned(Event):
    """A dry run would clean this job."""

    job: Job
    job_class: JobClass
    age: timedelta
    reason: str
    artifacts: tuple[ArtifactSize, ...]
    shared: tuple[str, ...] = ()
    to_trash: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of all artifacts."""
        return sum(artifact.size_bytes for artifact in self.artifacts)

    def log_line(self) -> str:
        return f"[DRY RUN] Would clean job {short_name(self.job.id)}: {self.reason}"


@dataclass(frozen=True, slots=True)
class JobCleaned(Event):
    """A job's data was deleted, or moved to the trash for its grace, and the job was recorded as cleaned.

    ``bytes_freed`` includes earlier, interrupted attempts.  ``bytes_trashed`` waits in the trash.  ``age`` is
    None for a job that an earlier run started to clean.  ``ahead_of_retention`` says why a job was cleaned
    before its retention passed, None for an expired job.
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
    bytes_trashed: int = 0
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


ORPHAN = "orphan"
"""The status of an orphan where an event is about a job; its id is its path."""


@dataclass(frozen=True, slots=True)
class JobSkipped(Event):
    """A run kept a job; ``notable`` reasons need an operator's attention and are logged as warnings.

    ``vetoed`` marks jobs that a plugin keeps.  ``acknowledged`` marks jobs whose warning a person
    acknowledged; they are not notable.
    """

    job: Job
    reason: str
    notable: bool
    vetoed: bool = False
    acknowledged: bool = False

    @property
    def severity(self) -> Severity:
        return Severity.WARNING if self.notable else Severity.GOOD

    @property
    def log_level(self) -> int:
        return logging.WARNING if self.notable else logging.DEBUG

    def log_line(self) -> str:
        noun = "orphan" if self.job.status == ORPHAN else "job"
        return f"Kept {noun} {short_name(self.job.id)}: {self.reason}"


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
    """An entry of a root that no row names, or that an interrupted run left behind.

    ``removed`` if ``orphans.delete_after_hours`` had passed.  ``planned`` if a run would remove it.
    ``acknowledged`` if a person knows that it stays.
    """

    found: Found
    size_bytes: int
    removed: bool
    planned: bool = False
    acknowledged: bool = False

    def log_line(self) -> str:
        verb = "[DRY RUN] Would remove" if self.planned else "Removed" if self.removed else "Found"
        return f"{verb} orphan {short_name(self.found.label)} ({human_size(self.size_bytes)})"


@dataclass(frozen=True, slots=True)
class PurgePlanned(Event):
    """A dry run found something in the trash that a run would delete; ``job_id`` is empty for an orphan."""

    job_id: str
    artifacts: tuple[str, ...]
    size_bytes: int

    def log_line(self) -> str:
        labels = ", ".join(map(short_name, self.artifacts))
        return f"[DRY RUN] Would delete from the trash: {labels} ({human_size(self.size_bytes)})"


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """A problem that an operator should check; the run continues."""

    severity = Severity.WARNING

    message: str

    def log_line(self) -> str:
        return self.message


_OCCASIONS: dict[Trigger, Occasion] = {Trigger.TRASH: "trash", Trigger.RECOVERY: "recovery"}


@dataclass(frozen=True, slots=True)
class RunFinished(Event):
    """A run ended by itself or was asked to stop; its report has the details."""

    hook = "run_finished"

    report: RunReport

    @property
    def page(self) -> str | None:
        report = self.report
        if report.dry_run:
            return None
        return "" if report.is_test else f"runs/{quote(report.run_id, safe='')}"

    @property
    def occasion(self) -> Occasion:
        report = self.report
        if report.dry_run:
            return "dry_run"
        if report.outcome is Outcome.SUCCESS:
            return _OCCASIONS.get(report.trigger, "success")
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
        yield logging.INFO, f"{self._noun} summary: {jobs}, {report.amounts}"
        if report.pressure:
            early = f"{plural(report.early.jobs, 'job')} before their retention"
            freed = human_size(report.early.bytes_freed)
            yield logging.WARNING, f"Cleaned {early} ({freed}): {report.pressure}"
        yield self.log_level, self.log_line()

    def log_line(self) -> str:
        if self.report.outcome is Outcome.SUCCESS:
            return f"{self._noun} completed successfully"
        if self.report.outcome is Outcome.ERRORS:
            return f"{self._noun} completed with errors on {plural(self.report.errors, 'job')}"
        return f"{self._noun} was interrupted; the next run continues"

    @property
    def _noun(self) -> str:
        is_recovery = self.report.trigger is Trigger.RECOVERY
        return "Recovery of an interrupted run" if is_recovery else "Cleanup"


@dataclass(frozen=True, slots=True)
class RunFailed(Event):
    """A run was refused or failed, and did nothing more.

    ``failed_at`` and ``next_run_at`` are aware UTC.  The latter is None without a daemon.
    """

    hook = "run_failed"
    occasion = "failure"
    severity = Severity.DANGER

    run_id: str
    error: str
    trigger: Trigger | None = None
    host: str = ""
    failed_at: datetime | None = None
    next_run_at: datetime | None = None

    @property
    def page(self) -> str:
        return ""  # the list of runs might not contain a refused run

    def log_line(self) -> str:
        return f"Cleanup failed: {self.error}"

    def headline(self) -> str:
        return f"FAILED: EEMT cleanup{f' on {self.host}' if self.host else ''}"

    def facts(self) -> tuple[tuple[str, str], ...]:
        run = f"{self.run_id} ({self.trigger or ''})"
        return ("Status", "Failed"), ("Error", self.error), ("Run", run)
