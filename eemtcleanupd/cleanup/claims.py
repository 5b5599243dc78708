"""What a real run works with, and a job on its way through it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup.hooks import RunHooks
from eemtcleanupd.cleanup.planner import Planner
from eemtcleanupd.clock import Clock
from eemtcleanupd.deletion.pool import DeletionPool, RemovalResult
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.events import AuditEntry, Emit
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Found, Job, JobClass, RootName
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.intents import Intent
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.ledger import Ledger

RemovedArtifacts = Sequence[tuple[Found, int | None]]
"""Artifacts of a job that went, with the bytes that each freed: None while it waits in the trash."""


@dataclass(slots=True)
class ClaimedJob:
    """A job on its way; ``entries`` are its artifacts with their items, once staged those in the trash.

    ``known_size`` is the size in bytes that was measured earlier.  ``marks_job_cleaned`` is False where the
    job was held, run again or copied back since the claim, or its row is gone: then only the leftovers are
    deleted.  ``early`` says why a job is cleaned ahead of its retention.
    """

    intent: Intent
    job: Job
    job_class: JobClass
    age: timedelta | None
    items: list[tuple[Found, str]] = field(default_factory=list)
    removals: list[tuple[Found, Future[RemovalResult]]] = field(default_factory=list)
    known_size: int = 0
    marks_job_cleaned: bool = True
    early: str | None = None

    def moves_to_trash(self, grace: timedelta) -> bool:
        """Tell whether the job's artifacts wait in the trash from now on, since there is a grace."""
        return bool(grace) and not self.removals and bool(self.items)


@dataclass(frozen=True, slots=True)
class Tools:
    """What one real run works with."""

    database: Database
    catalog: JobTable
    ledger: Ledger
    planner: Planner
    policy: Policy
    roots: Mapping[RootName, Root]
    trashes: Mapping[RootName, Trash]
    pool: DeletionPool
    clock: Clock
    emit: Emit
    stop: StopFlag
    run_id: str
    user: str
    logs_folder: Path
    grace: timedelta
    workers: int
    guards: RunHooks

    def audit(self, done: Iterable[tuple[str, Mapping[str, object]]]) -> None:
        """Write down what is done, or about to be done: actions with their details."""
        now = self.clock()
        entries = [
            AuditEntry(now, self.user, action, {"run_id": self.run_id, **details}) for action, details in done
        ]
        if entries:
            self.guards.audit(entries)


def audit_details(job: ClaimedJob) -> dict[str, object]:
    """Return what the audit log says of a job whose files are about to go."""
    labels = [printable(found.label) for found, _ in job.items]
    return {"job_id": printable(job.job.id), "status": printable(job.job.status), "artifacts": labels}


def describe_oserror(error: OSError) -> str:
    """Return what was wrong, and with which file, as a record of a job says it."""
    name = f" {printable(str(error.filename))}" if error.filename else ""
    return f"{error.strerror or error}{name}"
