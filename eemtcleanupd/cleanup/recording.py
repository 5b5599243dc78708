"""The record of jobs whose bytes are gone, or in the trash: in their rows, the ledger and the audit log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection

from eemtcleanupd.cleanup.claims import ClaimedJob, RemovedArtifacts, Tools, audit_details
from eemtcleanupd.cleanup.outcomes import RunStats
from eemtcleanupd.cleanup.planner import has_files_in_place
from eemtcleanupd.cleanup.staging import Staging
from eemtcleanupd.formatting import human_size, printable
from eemtcleanupd.store.history import AuditLine, LogEntry
from eemtcleanupd.store.intents import Intent, IntentKind, IntentState

_JOBS_AT_ONCE = 25  # in one transaction, which then lasts some 7 ms


class Recording:
    """Records what a run did with its jobs."""

    def __init__(self, tools: Tools, staging: Staging, outcomes: RunStats) -> None:
        self._tools = tools
        self._staging = staging
        self._outcomes = outcomes

    def record(self, jobs: Sequence[tuple[ClaimedJob, RemovedArtifacts]]) -> None:
        """Write that these jobs are cleaned, or in the trash; some of them in each transaction."""
        tools = self._tools
        # Another run may have put back what this one was about to delete: then nothing may be said of it.
        tools.database.verify_lock()
        # The renames and removals must be on the disk before the record of them is: on a power cut the
        # database must not know more than the folders.
        for root in {found.artifact.root for _, gone in jobs for found, _ in gone}:
            tools.trashes[root].sync()
        tools.audit((self._action(job), self._done(job, gone)) for job, gone in jobs)
        now = tools.clock()

        # Few at a time: while one of these transactions lasts, the web interface cannot write.
        for start in range(0, len(jobs), _JOBS_AT_ONCE):
            self._record_some(jobs[start : start + _JOBS_AT_ONCE], now)

    def _record_some(self, jobs: Sequence[tuple[ClaimedJob, RemovedArtifacts]], now: datetime) -> None:
        """Record some jobs and tell what became of them; what must not stay in the trash goes back."""
        tools = self._tools
        for job, _ in jobs:
            if job.intent.kind is IntentKind.JOB and has_files_in_place(tools.roots, job.job):
                job.marks_job_cleaned = False  # somebody copied it back, say: the next run looks at it anew
        again = tools.database.write(lambda connection: self._write(connection, jobs, now))
        undone = [job for job, _ in jobs if job.intent.id in again and self._goes_to_trash(job)]
        tools.audit(("put_back", audit_details(job)) for job in undone)
        for job, gone in jobs:
            job.marks_job_cleaned = job.marks_job_cleaned and job.intent.id not in again
            if job in undone:
                self._staging.put_back(job, job.items)
                self._outcomes.skipped(job.job, "its row changed while it was staged")
            else:
                self._outcomes.recorded(job, gone)

    def _write(
        self, connection: Connection, jobs: Sequence[tuple[ClaimedJob, RemovedArtifacts]], now: datetime
    ) -> set[str]:
        """Record some jobs; returns the intents of those that were run again in this moment.

        What of them is in the trash is not recorded: it must go back.  A transaction may be tried again, so
        nothing is remembered here.
        """
        tools = self._tools
        rows = tools.catalog.rows(
            connection, [job.job.id for job, _ in jobs if job.marks_job_cleaned], lock=True
        )
        again = {
            job.intent.id
            for job, _ in jobs
            if job.marks_job_cleaned and (row := rows.get(job.job.id)) is not None and row.job != job.job
        }
        done = [(j, gone) for j, gone in jobs if j.intent.id not in again or not self._goes_to_trash(j)]
        cleaned = []
        for job, gone in done:
            if self._goes_to_trash(job):
                tools.ledger.save_intent(connection, self._trashed(job, now))
            is_first = job.intent.kind is IntentKind.JOB and job.intent.state is not IntentState.TRASHED
            if is_first and job.marks_job_cleaned and job.intent.id not in again:
                # What an interrupted attempt removed was not counted: then the size measured earlier is truer
                size = _freed(job, gone) or job.known_size
                cleaned.append((job.job.id, size, _summary(gone, trashed=self._goes_to_trash(job))))
        # Together, since each statement by itself costs more than its rows, and all of it holds the lock.
        tools.catalog.mark_cleaned(connection, cleaned, now)
        log_entries = [self._log_entry(job, gone) for job, gone in done]
        tools.ledger.add_log(connection, tools.run_id, log_entries, now)
        audit_lines = [line for job, gone in done for line in self._audit_lines(job, gone)]
        tools.ledger.add_audit(connection, audit_lines, tools.user, now)
        tools.ledger.close_intents(
            connection, [job.intent.id for job, _ in jobs if not self._goes_to_trash(job)]
        )
        tools.ledger.forget_measured(connection, [job.job.id for job, _ in jobs])
        return again

    def _goes_to_trash(self, job: ClaimedJob) -> bool:
        return job.moves_to_trash(self._tools.grace)

    def _action(self, job: ClaimedJob) -> str:
        if job.intent.kind is IntentKind.ORPHAN:
            return "removed_orphan"
        if self._goes_to_trash(job):
            return "trashed"
        return "purged" if job.intent.state is IntentState.TRASHED else "cleaned"

    def _done(self, job: ClaimedJob, gone: RemovedArtifacts) -> dict[str, object]:
        details = {**audit_details(job), "bytes_freed": _freed(job, gone)}
        return {**details, "early": job.early} if job.early else details

    def _trashed(self, job: ClaimedJob, now: datetime) -> Intent:
        """Return the intent of a job that waits in the trash from now on."""
        kept = {item for _, item in job.items}
        return replace(
            job.intent,
            state=IntentState.TRASHED,
            purge_after=now + self._tools.grace,
            size_bytes=job.known_size,
            items=tuple(pair for pair in job.intent.items if pair[1] in kept),
        )

    def _log_entry(self, job: ClaimedJob, gone: RemovedArtifacts) -> LogEntry:
        message = _summary(gone, trashed=self._goes_to_trash(job))
        if job.early:
            message += f"; {job.early}"
        return LogEntry(job.job.id, job.job.status, self._action(job), _freed(job, gone), message)

    def _audit_lines(self, job: ClaimedJob, gone: RemovedArtifacts) -> Iterable[AuditLine]:
        if not gone:
            yield AuditLine(job.job.id, "marked_cleaned", _freed(job, gone))
        verb = "trashed" if self._goes_to_trash(job) else "deleted"
        by_root: Counter[str] = Counter()
        for found, freed in gone:
            by_root[found.artifact.root] += freed or 0
        for root, freed_there in by_root.items():
            yield AuditLine(job.job.id, f"{verb}_{root}", freed_there)


def _freed(job: ClaimedJob, gone: RemovedArtifacts) -> int:
    """Return the bytes that all attempts at a job have freed."""
    return job.intent.bytes_freed + sum(size or 0 for _, size in gone)


def _summary(gone: RemovedArtifacts, *, trashed: bool) -> str:
    if not gone:
        return "no files were left"
    parts = []
    for found, size in gone:
        label = printable(found.label)
        parts.append(label if size is None else f"{label} ({human_size(size)})")
    return ("in the trash: " if trashed else "deleted ") + ", ".join(parts)
