"""Domain values that modules exchange: jobs, holds, artifacts, decisions, triggers and outcomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

TRASH_NAME = ".eemtcleanupd-trash"
"""The folder inside each root that receives artifacts before they are deleted."""
KEEP_NAME = ".eemt-keep"
"""A file with this name in a job's results folder keeps the job, as a hold does."""


class RootName(StrEnum):
    """The three folders of a job store."""

    RESULTS = "results"
    UPLOADS = "uploads"
    TEMP = "temp"


class Trigger(StrEnum):
    """What started a run.  The value appears in the ledger, the log and JSON documents."""

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
        """Whether the daemon starts such a cleanup itself, so that it can be delayed and retried."""
        return self in {Trigger.SCHEDULE, Trigger.START, Trigger.RECOVERY}

    @property
    def plans_jobs(self) -> bool:
        """Whether such a run considers all jobs.

        A run of the trash only empties it.  A recovery run only finishes or undoes what an earlier run left.
        """
        return self not in {Trigger.TRASH, Trigger.RECOVERY}


class Outcome(StrEnum):
    """How a run ended: without errors, with errors on some jobs, stopped on request, failed, or killed.

    A refused run did not begin.
    """

    SUCCESS = "success"
    ERRORS = "errors"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    KILLED = "killed"
    REFUSED = "refused"

    @classmethod
    def unsuccessful(cls) -> frozenset[Outcome]:
        """Return the outcomes of runs that ended with an error of the whole run."""
        return frozenset({cls.FAILED, cls.REFUSED})


class JobClass(StrEnum):
    """What a job's status means for its retention."""

    SUCCESSFUL = "successful"
    FAILED = "failed"
    LIVE = "live"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Job:
    """A row of table ``jobs``.

    Its times are aware and in UTC, or None if absent or unreadable.  Of an ambiguous time (a clock change),
    ``completed_at`` is the latest interpretation, ``started_at`` and ``created_at`` are the earliest.
    """

    id: str
    status: str
    workflow_type: str | None = None
    completed_at: datetime | None = None
    dem_filename: str | None = None
    parameters: str | None = None
    started_at: datetime | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """A person's request never to clean a job.  ``until`` is aware UTC, or None for no end."""

    job_id: str
    reason: str
    owner: str
    until: datetime | None = None

    def is_active(self, now: datetime) -> bool:
        """Return whether the hold applies at ``now`` (aware UTC)."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A person's statement that the warning about a kept job needs no attention.

    ``warning`` is the reason for which the job was kept then, ``reason`` says why that needs no attention.
    """

    job_id: str
    warning: str
    reason: str
    owner: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """An entry directly inside a root.  The name is a single path component."""

    root: RootName
    name: str

    @property
    def label(self) -> str:
        """The entry as output shows it, without knowing whether it is a folder."""
        return f"{self.root}/{self.name}"


@dataclass(frozen=True, slots=True)
class Found:
    """An artifact that exists.

    ``is_small`` says that it is a file, or was a folder of few entries without subfolders.
    """

    artifact: Artifact
    is_folder: bool
    is_small: bool = field(default=False, compare=False)

    @property
    def label(self) -> str:
        """The artifact as output shows it: ``results/<id>/``, ``uploads/<name>``."""
        return f"{self.artifact.label}{'/' if self.is_folder else ''}"


@dataclass(frozen=True, slots=True)
class ArtifactPath:
    """An artifact of a job that is about to be deleted, and its present path.

    ``root_id`` is the device and inode of the root.  Compare them with those of the folder that you open: the
    owner of a folder above can replace the root.
    """

    found: Found
    path: Path
    root_id: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to keep or clean a job, and why.

    Attributes:
        age: time since the job ended, or None if its end is unknown.
        notable: a kept job that an operator should see, such as one with an unknown status.
        ahead_of_retention: the job is cleaned before its retention ends because the disk is nearly full.
        vetoed: a plugin kept the job.
    """

    job: Job
    job_class: JobClass
    clean: bool
    reason: str
    age: timedelta | None = None
    notable: bool = False
    ahead_of_retention: bool = False
    vetoed: bool = False
