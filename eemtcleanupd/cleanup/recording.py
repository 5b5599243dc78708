"""The record of jobs whose data is deleted or in the trash: in their rows, the ledger and the audit log."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection

from eemtcleanupd.batches import batched
from eemtcleanupd.cleanup.context import RunContext
from eemtcleanupd.cleanup.planner import has_files_in_place
from eemtcleanupd.cleanup.report import RunStats
from eemtcleanupd.cleanup.session import StoreSession
from eemtcleanupd.cleanup.staging import JOBS_PER_TRANSACTION, ClaimedJob, Staging
from eemtcleanupd.errors import RowError
from eemtcleanupd.formatting import human_size, printable
from eemtcleanupd.model import Found, Job, JobClass
from eemtcleanupd.store.history import AuditLine, LogEntry
from eemtcleanupd.store.intents import Intent, IntentState
from eemtcleanupd.store.values import IN_TRASH

RemovedArtifacts = Sequence[tuple[Found, int]]
"""The artifacts of a job that were removed, with the bytes that each freed, or that wait in the trash."""


class Recording:
    """Records what a run did with its jobs."""

    def __init__(self, run: RunContext, session: StoreSession, staging: Staging, stats: RunStats) -> None:
        self._run = run
        self._session = session
        self._staging = staging
        self._stats = stats
        self._grace = run.grace

    def record(self, jobs: Sequence[tuple[ClaimedJob, RemovedArtifacts]]) -> None:
        """Record that these jobs are cleaned, or in the trash; a few of them in each transaction."""
        run, session = self._run, self._session
        # Another run might have put back what this run was about to delete.  Then record nothing.
        session.database.verify_lock()
        # The renames and removals must be on the disk before their record is: after a power cut the database
        # must not know more than the folders.
        for root in {found.artifact.root for _, removed in jobs for found, _ in removed}:
            session.trashes[root].sync()
        run.audit_all((self._action(job), self._details(job, removed)) for job, removed in jobs)
        now = run.clock()
        for page in batched(jobs, JOBS_PER_TRANSACTION):
            self._record_batch(page, now)

    def mark_cleaned_again(self, jobs: Sequence[tuple[Job, Intent]]) -> list[Job]:
        """Mark jobs as cleaned again whose rows were reset after their data was moved to the trash.

        An earlier run has counted and logged them, so the rows get back what that run wrote, and no more.

        Returns:
            The jobs that were marked: their rows have not changed otherwise, and can be updated.
        """
        if not jobs:
            return []
        session, ledger = self._session, self._session.ledger
        session.database.verify_lock()
        self._run.audit_all(
            (
                "marked_cleaned",
                ClaimedJob(intent, job, JobClass.UNKNOWN, None, list(intent.items)).audit_details(),
            )
            for job, intent in jobs
        )
        now = self._run.clock()

        def work(connection: Connection) -> list[Job]:
            rows = session.jobs.rows(connection, [job.id for job, _ in jobs], lock=True)
            same = [
                (job, intent)
                for job, intent in jobs
                if (row := rows.get(job.id)) is not None and not row.cleaned and row.job == job
            ]
            by_time: dict[datetime, list[tuple[str, int, str]]] = defaultdict(list)
            for job, intent in same:
                summary = _summary([(found, None) for found, _ in intent.items], trashed=True)
                by_time[intent.created_at or now].append((job.id, intent.size_bytes, summary))
            for trashed_at, rows_of_time in by_time.items():
                session.jobs.mark_cleaned(connection, rows_of_time, trashed_at)
            lines = [AuditLine(job.id, "marked_cleaned", 0) for job, _ in same]
            ledger.add_audit(connection, lines, self._run.request.user, now)
            ledger.forget_measured(connection, [job.id for job, _ in same])
            self._run.hooks.anchor_audit(ledger, connection)
            return [job for job, _ in same]

        try:
            return session.database.write(work)
        except RowError as error:
            if len(jobs) > 1:
                return [job for pair in jobs for job in self.mark_cleaned_again([pair])]
            self._stats.failed(jobs[0][0], f"Its row was reset and cannot be updated. {error}")
            return []

    def _record_batch(self, jobs: Sequence[tuple[ClaimedJob, RemovedArtifacts]], now: datetime) -> None:
        """Record some jobs, report their outcome, and put back what must not stay in the trash."""
        for job, _ in jobs:
            if not job.is_orphan and has_files_in_place(self._session.roots, job.job.id):
                job.marks_job_cleaned = False  # somebody copied it back: the next run plans it again
        try:
            changed = self._session.database.write(
                lambda connection: self.record_in_transaction(connection, jobs, now)
            )
        except RowError as error:
            if len(jobs) > 1:
                for pair in jobs:
                    self._record_batch([pair], now)
            else:
                self._record_failure(*jobs[0], str(error))
            return
        undone = [job for job, _ in jobs if job.intent.id in changed and self._moves_to_trash(job)]
        self._run.audit_all(("put_back", job.audit_details()) for job in undone)
        for job, removed in jobs:
            job.marks_job_cleaned = job.marks_job_cleaned and job.intent.id not in changed
            if job in undone:
                self._staging.put_back(job, job.items)
                self._stats.skipped(job.reported_job, "its row changed while it was staged")
            else:
                self._stats.recorded(job, removed, now)

    def _record_failure(self, job: ClaimedJob, removed: RemovedArtifacts, reason: str) -> None:
        """Report a job whose row the database refuses to update; its intent stays for the next run."""
        freed = self._freed_now(job, removed)
        if not self._moves_to_trash(job):
            self._stats.freed(job, removed)
        self._staging.save_incomplete(job.intent, reason, freed)
        self._stats.failed(job.job, f"Its row cannot be updated. {reason}")

    def record_in_transaction(
        self, connection: Connection, jobs: Sequence[tuple[ClaimedJob, RemovedArtifacts]], now: datetime
    ) -> set[str]:
        """Record some jobs; return the intents of those whose rows changed since the claim.

        The data of these jobs in the trash is not recorded; the caller puts it back.  The transaction can be
        repeated, so this method changes no object.
        """
        ledger = self._session.ledger
        ids = [job.job.id for job, _ in jobs if job.marks_job_cleaned]
        rows = self._session.jobs.rows(connection, ids, lock=True)
        changed = {
            job.intent.id
            for job, _ in jobs
            if job.marks_job_cleaned and (row := rows.get(job.job.id)) is not None and row.job != job.job
        }
        done = [
            (job, removed)
            for job, removed in jobs
            if job.intent.id not in changed or not self._moves_to_trash(job)
        ]
        cleaned = []
        counts: Counter[str] = Counter()
        by_status: Counter[str] = Counter()
        for job, removed in done:
            to_trash = self._moves_to_trash(job)
            if to_trash:
                ledger.save_intent(connection, self._trashed_intent(job, now))
            counts["bytes_trashed" if to_trash else "bytes_freed"] += sum(size for _, size in removed)
            counts["orphans"] += job.is_orphan and job.intent.state is not IntentState.TRASHED
            is_first = not job.is_orphan and job.intent.state is not IntentState.TRASHED
            if is_first and job.marks_job_cleaned and job.intent.id not in changed:
                # An interrupted attempt did not count what it removed: then the earlier size is more correct.
                size = self._freed(job, removed) or job.known_size
                # Omit sizes of data in the trash, so that mark_cleaned_again can write the same summary.
                parts = [(found, None) for found, _ in removed] if to_trash else removed
                cleaned.append((job.job.id, size, _summary(parts, trashed=to_trash)))
                if job.job_class in {JobClass.SUCCESSFUL, JobClass.FAILED}:
                    counts[job.job_class] += 1
                    by_status[printable(job.job.status)] += 1
        # All rows of a table in one statement: a statement costs more than its rows, and holds the lock.
        self._session.jobs.mark_cleaned(connection, cleaned, now)
        ledger.add_log(connection, self._run.id, [self._log_entry(*pair) for pair in done], now)
        ledger.add_to_run(connection, self._run.id, counts, by_status)
        lines = [line for pair in done for line in self._audit_lines(*pair)]
        ledger.add_audit(connection, lines, self._run.request.user, now)
        ledger.close_intents(connection, [job.intent.id for job, _ in jobs if not self._moves_to_trash(job)])
        ledger.forget_measured(connection, [job.job.id for job, _ in jobs])
        self._run.hooks.anchor_audit(ledger, connection)
        return changed

    def _moves_to_trash(self, job: ClaimedJob) -> bool:
        return job.moves_to_trash(self._grace)

    def _action(self, job: ClaimedJob) -> str:
        if job.is_orphan:
            return "removed_orphan"
        if self._moves_to_trash(job):
            return "trashed"
        return "purged" if job.intent.state is IntentState.TRASHED else "cleaned"

    def _details(self, job: ClaimedJob, removed: RemovedArtifacts) -> dict[str, object]:
        details = {**job.audit_details(), "bytes_freed": self._freed(job, removed)}
        if self._moves_to_trash(job):
            details["bytes_trashed"] = job.staged_bytes
        return {**details, "early": job.early} if job.early else details

    def _trashed_intent(self, job: ClaimedJob, now: datetime) -> Intent:
        in_trash = {item for _, item in job.items}
        return replace(
            job.intent,
            state=IntentState.TRASHED,
            purge_after=now + self._grace,
            size_bytes=job.staged_bytes,
            items=tuple(pair for pair in job.intent.items if pair[1] in in_trash),
        )

    def _log_entry(self, job: ClaimedJob, removed: RemovedArtifacts) -> LogEntry:
        message = _summary(removed, trashed=self._moves_to_trash(job))
        if job.early:
            message += f"; {job.early}"
        trashed = job.staged_bytes if self._moves_to_trash(job) else 0
        freed = self._freed(job, removed)
        return LogEntry(job.job.id, job.job.status, self._action(job), freed, message, trashed)

    def _audit_lines(self, job: ClaimedJob, removed: RemovedArtifacts) -> Iterable[AuditLine]:
        if not removed:
            yield AuditLine(job.job.id, "marked_cleaned", self._freed(job, removed))
        in_trash = self._moves_to_trash(job)
        verb = "trashed" if in_trash else "deleted"
        freed_by_root: Counter[str] = Counter()
        for found, size in removed:
            freed_by_root[found.artifact.root] += 0 if in_trash else size
        for root, freed in freed_by_root.items():
            yield AuditLine(job.job.id, f"{verb}_{root}", freed)

    def _freed(self, job: ClaimedJob, removed: RemovedArtifacts) -> int:
        """Return the bytes that all attempts at a job have freed."""
        return job.intent.bytes_freed + self._freed_now(job, removed)

    def _freed_now(self, job: ClaimedJob, removed: RemovedArtifacts) -> int:
        """Return the bytes that this run has freed: none while the job waits in the trash."""
        return 0 if self._moves_to_trash(job) else sum(size for _, size in removed)


def _summary(removed: Sequence[tuple[Found, int | None]], *, trashed: bool) -> str:
    if not removed:
        return "no files were left"
    parts = []
    for found, size in removed:
        label = printable(found.label)
        parts.append(label if size is None else f"{label} ({human_size(size)})")
    return (IN_TRASH if trashed else "deleted ") + ", ".join(parts)
