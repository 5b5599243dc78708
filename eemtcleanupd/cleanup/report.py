"""What a run counts and reports: the outcome of each job, the events, and the report at its end."""

from __future__ import annotations

import heapq
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from eemtcleanupd.cleanup.context import RunContext
from eemtcleanupd.cleanup.session import StoreSession
from eemtcleanupd.events import (
    DURATION_BUCKETS,
    ArtifactSize,
    DatabaseSummary,
    JobCleaned,
    JobFailed,
    JobNote,
    JobSkipped,
    JobTally,
    OrphanFound,
    RunReport,
    RunStarted,
)
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Found, Job, JobClass, Outcome, RootName, Trigger
from eemtcleanupd.store.history import LogEntry
from eemtcleanupd.store.intents import IntentState
from eemtcleanupd.store.jobs import Backlog
from eemtcleanupd.store.runs import RunRecord

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from eemtcleanupd.cleanup.inventory import InventoryResult
    from eemtcleanupd.cleanup.planner import Selection
    from eemtcleanupd.cleanup.staging import ClaimedJob

NAMED_JOBS_LIMIT = 10
"""How many jobs of a kind a report names."""
ALREADY_TRASHED = "its data is in the trash already"
"""Why a run does not clean a job whose row was reset after its data was moved."""


@dataclass(slots=True)
class RunCounts:
    """What a run has done so far."""

    cleaned: dict[JobClass, int] = field(default_factory=lambda: dict.fromkeys(JobClass, 0))
    freed: dict[JobClass, int] = field(default_factory=lambda: dict.fromkeys(JobClass, 0))
    trashed: dict[JobClass, int] = field(default_factory=lambda: dict.fromkeys(JobClass, 0))
    freed_by_root: Counter[RootName] = field(default_factory=Counter)
    purge_after: datetime | None = None
    orphans: int = 0
    orphan_bytes: int = 0
    orphan_trashed_bytes: int = 0
    purged: int = 0
    purged_bytes: int = 0
    recovered: int = 0
    early: int = 0
    early_bytes: int = 0
    already_trashed: int = 0
    skipped: int = 0
    acknowledged: int = 0
    errors: int = 0
    largest: list[JobNote] = field(default_factory=list)
    failures: list[JobNote] = field(default_factory=list)

    @property
    def bytes_freed(self) -> int:
        """All freed space."""
        return sum(self.freed.values()) + self.orphan_bytes + self.purged_bytes

    @property
    def bytes_trashed(self) -> int:
        """All space that waits in the trash."""
        return sum(self.trashed.values()) + self.orphan_trashed_bytes

    def tally(self, job_class: JobClass) -> JobTally:
        """Return the cleaned jobs of a class."""
        return JobTally(self.cleaned[job_class], self.freed[job_class], self.trashed[job_class])


def _largest(notes: Iterable[JobNote]) -> list[JobNote]:
    return heapq.nlargest(NAMED_JOBS_LIMIT, notes, key=lambda note: note.bytes_cleaned)


class RunStats:
    """Counts and reports the outcome of each job of one run."""

    def __init__(self, run: RunContext, session: StoreSession) -> None:
        self._run = run
        self._session = session
        self.counts = RunCounts()

    def recorded(self, job: ClaimedJob, removed: Sequence[tuple[Found, int]], now: datetime) -> None:
        """Count and report a job recorded at ``now``: cleaned, moved to the trash, or purged from there."""
        total = sum(size for _, size in removed)
        in_trash = job.moves_to_trash(self._run.grace)
        freed, trashed = (0, total) if in_trash else (total, 0)
        if in_trash:
            self._count_trashed(job, trashed, now + self._run.grace)
        else:
            self.freed(job, removed)
        if job.intent.state is IntentState.TRASHED:
            self.counts.purged += 1
        elif job.is_orphan:
            self.counts.orphans += 1
            for found, size in removed:
                self._run.emit(OrphanFound(found, size, removed=True))
            return
        elif not job.marks_job_cleaned:
            reason = "it is held, its row changed, or its files are back, so it does not count as cleaned"
            self.skipped(job.job, reason)
            return
        else:
            self._count_cleaned(job, freed, trashed)
        self._run.emit(
            JobCleaned(
                self._run.id,
                job.job,
                job.job_class,
                job.age,
                tuple(ArtifactSize(found, size) for found, size in removed),
                job.intent.bytes_freed + freed,
                trashed,
                in_trash=in_trash,
                ahead_of_retention=job.early,
            )
        )

    def _count_trashed(self, job: ClaimedJob, size_bytes: int, purge_after: datetime) -> None:
        counts = self.counts
        if job.is_orphan:
            counts.orphan_trashed_bytes += size_bytes
        else:
            counts.trashed[job.job_class] += size_bytes
        self._run.progress.bytes_trashed += size_bytes
        counts.purge_after = max(purge_after, counts.purge_after or purge_after)

    def _count_cleaned(self, job: ClaimedJob, freed: int, trashed: int) -> None:
        counts = self.counts
        job_id, status = printable(job.job.id), printable(job.job.status)
        counts.cleaned[job.job_class] += 1
        counts.largest.append(JobNote(job_id, status, job.intent.bytes_freed + freed, bytes_trashed=trashed))
        if len(counts.largest) > 10 * NAMED_JOBS_LIMIT:
            counts.largest = _largest(counts.largest)
        if job.early:
            counts.early += 1
            counts.early_bytes += freed

    def freed(self, job: ClaimedJob, removed: Sequence[tuple[Found, int]]) -> None:
        """Count freed space for the kind of job, and for the roots of its artifacts."""
        size_bytes = sum(size for _, size in removed)
        for found, size in removed:
            self.counts.freed_by_root[found.artifact.root] += size
        if job.intent.state is IntentState.TRASHED:
            self.counts.purged_bytes += size_bytes
        elif job.is_orphan:
            self.counts.orphan_bytes += size_bytes
        else:
            self.counts.freed[job.job_class] += size_bytes

    def skipped(self, job: Job, reason: str) -> None:
        """Count a job that stays as it is, and report why, unless an operator has acknowledged this reason.

        An orphan has its path as id.
        """
        acknowledged = self._session.ledger.is_acknowledged(job.id, reason)
        self.counts.skipped += not acknowledged
        self.counts.acknowledged += acknowledged
        self._run.emit(JobSkipped(job, reason, notable=not acknowledged, acknowledged=acknowledged))

    def already_trashed(self, job: Job) -> None:
        """Count a job whose data an earlier run has moved to the trash, and counted as cleaned."""
        self.counts.already_trashed += 1
        self._run.emit(JobSkipped(job, ALREADY_TRASHED, notable=False))

    def failed(self, job: Job, error: str) -> None:
        """Record and report that a job could not be cleaned, and why."""
        run, session = self._run, self._session
        job_id, status = printable(job.id), printable(job.status)
        self.counts.errors += 1
        if len(self.counts.failures) < NAMED_JOBS_LIMIT:
            self.counts.failures.append(JobNote(job_id, status, message=printable(error)))
        now = run.clock()
        run.audit("failed", job_id=job_id, status=status, error=printable(error))
        entry = LogEntry(job.id, job.status, "failed", 0, error)

        def work(connection: Connection) -> None:
            session.ledger.add_log(connection, run.id, [entry], now)
            session.ledger.add_to_run(connection, run.id, {"errors": 1})

        session.database.write(work)
        run.emit(JobFailed(run.id, job.id, job.status, error))


def run_started_event(run: RunContext, backlog: Backlog, database: DatabaseSummary | None) -> RunStarted:
    """Return the event that a run begins with."""
    return RunStarted(
        run.id,
        run.request.dry_run,
        run.request.trigger,
        str(run.policy),
        backlog.uncleaned,
        backlog.candidates,
        database,
    )


def build_report(
    run: RunContext,
    backlog: Backlog,
    counts: RunCounts,
    selection: Selection,
    inventory: InventoryResult,
    *,
    pressure: str | None = None,
) -> RunReport:
    """Return the report of a run that ends now.

    Args:
        run: the run.
        backlog: the jobs that it found.
        counts: what it did.
        selection: the jobs left for another run.
        inventory: the result of the inventory.
        pressure: how full the disk was and is, for a run that disk pressure started.
    """
    interrupted = run.stop.is_set()
    # A dry run cleans nothing, so every uncleaned job still is.
    uncleaned = backlog.uncleaned - (0 if run.request.dry_run else sum(counts.cleaned.values()))
    uncleaned -= counts.already_trashed
    # An interrupted run, or one that plans no jobs, has not looked at all roots.
    looked = not interrupted and run.request.trigger.plans_jobs
    return RunReport(
        run_id=run.id,
        dry_run=run.request.dry_run,
        trigger=run.request.trigger,
        user=run.request.user,
        started_at=run.started_at,
        finished_at=run.clock(),
        outcome=Outcome.INTERRUPTED if interrupted else Outcome.ERRORS if counts.errors else Outcome.SUCCESS,
        successful=counts.tally(JobClass.SUCCESSFUL),
        failed=counts.tally(JobClass.FAILED),
        orphans=JobTally(counts.orphans, counts.orphan_bytes, counts.orphan_trashed_bytes),
        trash_purged=JobTally(counts.purged, counts.purged_bytes),
        orphans_found=inventory.orphans,
        missing=max(0, uncleaned - inventory.jobs_with_files) if looked else 0,
        skipped=counts.skipped + selection.kept_notable,
        acknowledged=counts.acknowledged + selection.acknowledged,
        errors=counts.errors,
        remaining=selection.remaining,
        remaining_bytes=selection.remaining_bytes,
        early=JobTally(counts.early, counts.early_bytes),
        pressure=pressure,
        purge_after=counts.purge_after,
        host=socket.gethostname(),
        biggest=tuple(_largest(counts.largest)),
        failures=tuple(counts.failures),
        vetoed=tuple(selection.vetoed),
        vetoed_jobs=selection.vetoed_jobs,
    )


def is_idle_purge(report: RunReport, counts: RunCounts) -> bool:
    """Return whether this was a purge of the trash that found nothing to do: it is not recorded."""
    did = counts.purged + counts.recovered + counts.skipped + counts.errors
    return report.trigger is Trigger.TRASH and report.outcome is Outcome.SUCCESS and not did


def run_totals(report: RunReport) -> dict[tuple[str, str], float]:
    """Return what the end of a run adds to the totals of the ledger, by name and label."""
    seconds = (report.finished_at - report.started_at).total_seconds()
    return {
        ("runs", report.outcome): 1,
        ("run_seconds", ""): max(0.0, seconds),
        **{("run_seconds_bucket", f"{bound:g}"): 1 for bound in DURATION_BUCKETS if seconds <= bound},
        ("skipped", ""): report.skipped,
    }


def audit_summary(report: RunReport) -> dict[str, object]:
    """Return what the audit log says about a report."""
    return {
        "outcome": report.outcome,
        "successful": report.successful.jobs,
        "failed": report.failed.jobs,
        "errors": report.errors,
        "bytes_freed": report.bytes_freed,
        "bytes_trashed": report.bytes_trashed,
    }


def finished_record(record: RunRecord, report: RunReport) -> RunRecord:
    """Return the ledger's row of a run that reached its end."""
    return replace(
        record,
        finished_at=report.finished_at,
        outcome=report.outcome,
        successful=report.successful.jobs,
        failed=report.failed.jobs,
        orphans=report.orphans.jobs,
        skipped=report.skipped,
        errors=report.errors,
        bytes_freed=report.bytes_freed,
        bytes_trashed=report.bytes_trashed,
        purge_after=report.purge_after,
    )
