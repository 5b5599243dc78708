"""Values inside events: the report of a run, sizes of jobs and of the store, totals and audit entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from eemtcleanupd.formatting import human_amounts, plural, printable
from eemtcleanupd.model import Found, Outcome, Trigger

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
    ``missing`` counts uncleaned terminal jobs none of whose files exist.
    ``early`` counts the cleaned jobs whose retention had not passed.  ``pressure`` says why as text; it is
    None unless disk pressure started the run.
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
        """The freed space as text, and that which waits in the trash."""
        return human_amounts(self.bytes_freed, self.bytes_trashed, self.purge_after)
