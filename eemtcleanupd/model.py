"""The words of the domain as frozen values; what crosses a module border is one of these."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

TRASH_NAME = ".eemtcleanupd-trash"
"""The folder inside each root where artifacts go first (DESIGN, Words)."""
KEEP_NAME = ".eemt-keep"
"""A file of this name in a job's results folder keeps the job, as a hold does."""


class RootName(StrEnum):
    """The three folders of a job store."""

    RESULTS = "results"
    UPLOADS = "uploads"
    TEMP = "temp"


class Trigger(StrEnum):
    """What a run was started for; the value is what the ledger, the log and the documents show."""

    MANUAL = "manual"
    SCHEDULE = "schedule"
    START = "start"
    RECOVERY = "recovery"
    PRESSURE = "pressure"
    TRASH = "trash"
    API = "api"
    SIGNAL = "signal"
    TEST = "notify-test"

    @property
    def is_automatic(self) -> bool:
        """Whether the daemon starts such a run by itself, to clean: it can wait, and be tried again."""
        return self in {Trigger.SCHEDULE, Trigger.START, Trigger.RECOVERY}


class Outcome(StrEnum):
    """How a run ended: without errors, with errors on some jobs, asked to stop, refused, or killed."""

    SUCCESS = "success"
    ERRORS = "errors"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    KILLED = "killed"


class JobClass(StrEnum):
    """What a job's status means for its retention."""

    SUCCESSFUL = "successful"
    FAILED = "failed"
    LIVE = "live"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Job:
    """A row of table ``jobs``.  ``completed_at`` is aware and in UTC; None when absent or unreadable."""

    id: str
    status: str
    workflow_type: str | None = None
    completed_at: datetime | None = None
    dem_filename: str | None = None
    parameters: str | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """A person's "never clean this job"; ``until`` is aware UTC, None for ever."""

    job_id: str
    reason: str
    owner: str
    until: datetime | None = None

    def is_active(self, now: datetime) -> bool:
        """Tell whether the hold still counts at ``now`` (aware UTC)."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True)
class Artifact:
    """An entry at the top of a root: the name is a single path component."""

    root: RootName
    name: str


@dataclass(frozen=True, slots=True)
class Found:
    """An artifact that exists."""

    artifact: Artifact
    is_folder: bool

    @property
    def label(self) -> str:
        """The artifact as the user's document writes it: ``results/<id>/``, ``uploads/<name>``."""
        return f"{self.artifact.root}/{self.artifact.name}{'/' if self.is_folder else ''}"


@dataclass(frozen=True, slots=True)
class Decision:
    """Keep or clean, with the reason in words; ``age`` is None for a job without a readable end.

    ``notable`` marks a keep that an operator should hear of (undated, unknown status, bad name); ``early``
    a clean ahead of the retention, for the sake of a full disk; ``vetoed`` a keep that a plugin asked for.
    """

    job: Job
    job_class: JobClass
    clean: bool
    reason: str
    age: timedelta | None = None
    notable: bool = False
    ahead_of_retention: bool = False
    vetoed: bool = False
