"""What became of jobs: counted for the report, and told."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from eemtcleanupd.cleanup.claims import ClaimedJob, RemovedArtifacts, Tools
from eemtcleanupd.events import ArtifactSize, JobCleaned, JobFailed, JobNote, JobSkipped, OrphanFound
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Job, JobClass
from eemtcleanupd.store.history import LogEntry
from eemtcleanupd.store.intents import IntentKind, IntentState

NAMED_JOBS_LIMIT = 10
"""How many jobs a report names of a kind."""


@dataclass(slots=True)
class RunCounts:
    """What the run has done so far."""

    cleaned: dict[JobClass, int] = field(default_factory=lambda: dict.fromkeys(JobClass, 0))
    freed: dict[JobClass, int] = field(default_factory=lambda: dict.fromkeys(JobClass, 0))
    orphans: int = 0
    orphan_bytes: int = 0
    purged: int = 0
    purged_bytes: int = 0
    early: int = 0
    early_bytes: int = 0
    skipped: int = 0
    errors: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    biggest: list[JobNote] = field(default_factory=list)
    failures: list[JobNote] = field(default_factory=list)

    @property
    def bytes_freed(self) -> int:
        """All space that was freed."""
        return sum(self.freed.values()) + self.orphan_bytes + self.purged_bytes

    def note_cleaned(self, note: JobNote) -> None:
        """Remember a job if it is among the biggest."""
        self.biggest.append(note)
        if len(self.biggest) > 10 * NAMED_JOBS_LIMIT:
            self.biggest = largest(self.biggest)

    def note_failed(self, note: JobNote) -> None:
        """Remember a job that could not be cleaned, if there are not many yet."""
        if len(self.failures) < NAMED_JOBS_LIMIT:
            self.failures.append(note)


def largest(notes: Iterable[JobNote]) -> list[JobNote]:
    """Return the few that freed most, the biggest first."""
    return heapq.nlargest(NAMED_JOBS_LIMIT, notes, key=lambda note: note.bytes_freed)


class RunStats:
    """Counts and tells what became of the jobs of one run."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self.counts = RunCounts()

    def recorded(self, job: ClaimedJob, gone: RemovedArtifacts) -> None:
        """Count and tell what a job came to that is recorded: cleaned, in the trash, or purged from there."""
        freed = sum(size or 0 for _, size in gone)
        self.freed(job, freed)
        if job.intent.state is IntentState.TRASHED:
            self.counts.purged += 1
        elif job.intent.kind is IntentKind.ORPHAN:
            self.counts.orphans += 1
            for found, size in gone:
                self._tools.emit(OrphanFound(found, size or 0, removed=True))
            return
        elif not job.marks_job_cleaned:
            self.skipped(
                job.job, "it was run again, or is in its place again, so it does not count as cleaned"
            )
            return
        else:
            self.counts.cleaned[job.job_class] += 1
            self.counts.by_status[printable(job.job.status)] += 1
            self.counts.note_cleaned(
                JobNote(printable(job.job.id), printable(job.job.status), job.intent.bytes_freed + freed)
            )
            if job.early:
                self.counts.early += 1
                self.counts.early_bytes += freed
        self._tools.emit(
            JobCleaned(
                self._tools.run_id,
                job.job,
                job.job_class,
                job.age,
                tuple(ArtifactSize(found, size or 0) for found, size in gone),
                job.intent.bytes_freed + freed,
                in_trash=job.moves_to_trash(self._tools.grace),
                ahead_of_retention=job.early,
            )
        )

    def freed(self, job: ClaimedJob, size_bytes: int) -> None:
        """Count space that was freed, by what it was."""
        if job.intent.state is IntentState.TRASHED:
            self.counts.purged_bytes += size_bytes
        elif job.intent.kind is IntentKind.ORPHAN:
            self.counts.orphan_bytes += size_bytes
        else:
            self.counts.freed[job.job_class] += size_bytes

    def skipped(self, job: Job, reason: str) -> None:
        """Tell that a job stays as it is, and why."""
        self.counts.skipped += 1
        self._tools.emit(JobSkipped(job, reason, notable=True))

    def failed(self, job: ClaimedJob, error: str) -> None:
        """Write down and tell that a job could not be cleaned, and why."""
        self.counts.errors += 1
        now = self._tools.clock()
        job_id, status = printable(job.job.id), printable(job.job.status)
        self.counts.note_failed(JobNote(job_id, status, message=printable(error)))
        self._tools.audit([("failed", {"job_id": job_id, "status": status, "error": printable(error)})])
        entry = LogEntry(job.job.id, job.job.status, "failed", 0, error)
        self._tools.database.write(lambda c: self._tools.ledger.add_log(c, self._tools.run_id, [entry], now))
        self._tools.emit(JobFailed(self._tools.run_id, job.job.id, job.job.status, error))
