"""From a planned job to a recorded one: claim, stage, confirm, delete, record.

The order makes every moment safe to be killed in: the intent is in the ledger before the first file moves;
an artifact vanishes for readers by one rename; only after the whole job has been staged and its row has
been read once more is the deletion of an item begun (and the item renamed, so that the file system itself
says so); and the row says "cleaned" only when the bytes are gone, or in the trash for its grace.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection

from eemtcleanupd.cleanup.guards import Guards
from eemtcleanupd.cleanup.planning import PlannedJob, Planner, is_in_place
from eemtcleanupd.clock import Clock, monotonic_seconds
from eemtcleanupd.deletion.inspection import Obstacles, kept_by_marker
from eemtcleanupd.deletion.logs import keep_logs
from eemtcleanupd.deletion.pool import DeletionPool, Removed
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.deletion.walk import measure
from eemtcleanupd.errors import LockHeldError, StoreError
from eemtcleanupd.events import (
    ArtifactSize,
    AuditEntry,
    Emit,
    JobCleaned,
    JobFailed,
    JobNote,
    JobSkipped,
    OrphanFound,
    Warned,
)
from eemtcleanupd.model import Found, Job, JobClass, RootName
from eemtcleanupd.policy.ownership import protector
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.stop import StopFlag
from eemtcleanupd.store.catalog import Catalog
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.ledger import (
    AuditLine,
    Intent,
    IntentKind,
    IntentState,
    Ledger,
    LogEntry,
    with_error,
)
from eemtcleanupd.units import human_size, printable

log = logging.getLogger(__name__)

# A group that is staged in less time than this was quick: the next may be twice as large.
_QUICK_GROUP_SECONDS = 0.25
# How long jobs that are gone wait to be recorded together, and how many at most.
_RECORD_SECONDS = 0.25
_RECORD_JOBS = 100
_JOBS_AT_ONCE = 25  # in one transaction, which then lasts some 7 ms
NOTED = 10
"""How many jobs a report names of a kind."""


@dataclass(slots=True)
class Claimed:
    """A job on its way; ``entries`` are its artifacts with their items, once staged those in the trash.

    ``known_size`` is what was measured earlier; ``marks_row`` is False where the job was held, run again or
    copied back since it was claimed (or its row is gone), so that only the leftovers go.  ``early`` says why
    a job goes ahead of its retention.
    """

    intent: Intent
    job: Job
    job_class: JobClass
    age: timedelta | None
    entries: list[tuple[Found, str]] = field(default_factory=list)
    removals: list[tuple[Found, Future[Removed]]] = field(default_factory=list)
    known_size: int = 0
    marks_row: bool = True
    early: str | None = None


@dataclass(slots=True)
class Counts:
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
        if len(self.biggest) > 10 * NOTED:
            self.biggest = largest(self.biggest)

    def note_failed(self, note: JobNote) -> None:
        """Remember a job that could not be cleaned, if there are not many yet."""
        if len(self.failures) < NOTED:
            self.failures.append(note)


def largest(notes: Iterable[JobNote]) -> list[JobNote]:
    """Return the few that freed most, the biggest first."""
    return heapq.nlargest(NOTED, notes, key=lambda note: note.bytes_freed)


@dataclass(frozen=True, slots=True)
class Tools:
    """What one real run works with."""

    database: Database
    catalog: Catalog
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
    guards: Guards

    def audit(self, done: Iterable[tuple[str, Mapping[str, object]]]) -> None:
        """Write down what is done, or about to be done: actions with their details."""
        now = self.clock()
        entries = [
            AuditEntry(now, self.user, action, {"run_id": self.run_id, **details}) for action, details in done
        ]
        if entries:
            self.guards.audit(entries)


class Pipeline:
    """Takes planned jobs (and orphans) through all stages, a few at a time, and records what was done."""

    def __init__(self, tools: Tools, counts: Counts) -> None:
        self._tools = tools
        self.counts = counts
        self._numbers = itertools.count(1)
        self._in_flight: list[Claimed] = []
        self._withdrawn: list[str] = []
        self._group_size = 2 * tools.workers
        self._recorded_at = monotonic_seconds()

    # -- claim -------------------------------------------------------------------------------------

    def take(self, planned: Sequence[PlannedJob], sizes: Mapping[str, int]) -> int:
        """Clean a batch of jobs; returns how many were claimed.

        Args:
            planned: the jobs and their artifacts.
            sizes: bytes measured earlier, by job id, for the record of one whose files an interrupted
                attempt had already removed.
        """
        tools = self._tools
        claimed = self._claim(planned, sizes)
        start = 0
        while start < len(claimed):
            group = claimed[start : start + self._group_size]
            start += len(group)
            if tools.stop.is_set():
                for job in group:
                    self.put_back(job, [])
                continue
            began = monotonic_seconds()
            confirmed = self._stage_and_confirm(group)
            self._suit_group(monotonic_seconds() - began)
            self._delete(confirmed)
        return len(claimed)

    def _suit_group(self, seconds: float) -> None:
        """Make the next group larger when this one was staged quickly, small again when it was not.

        Each group waits for the disk (the audit log is flushed before its files move), so a few large ones
        are quicker than many small ones.  But what a group looked at before staging (locks, markers) must
        not be old by then, and where each job is copied first, its space must come free soon after.
        """
        smallest = 2 * self._tools.workers
        self._group_size = 2 * self._group_size if seconds < _QUICK_GROUP_SECONDS else smallest

    def take_orphan(self, found: Found) -> bool:
        """Remove an entry that no row names, the same safe way; False when a row names it now."""
        artifact = found.artifact
        intent = self._intent(IntentKind.ORPHAN, "", "", [found])

        def work(connection: Connection) -> bool:
            if self._tools.planner.claimants(connection, [artifact]).get(artifact):
                return False
            self._tools.ledger.add_intents(connection, [intent], self._tools.clock())
            return True

        if not self._tools.database.write(work):
            return False
        orphan = Claimed(
            intent, Job(id=artifact.name, status="orphan"), JobClass.UNKNOWN, None, list(intent.items)
        )
        self._delete(self._stage_and_confirm([orphan]))
        return True

    def _claim(self, planned: Sequence[PlannedJob], sizes: Mapping[str, int]) -> list[Claimed]:
        """Write the intents of all jobs whose rows still are as planned, in one short transaction."""
        tools = self._tools
        intents = {
            plan.job.id: self._intent(IntentKind.JOB, plan.job.id, plan.job.status, plan.artifacts)
            for plan in planned
        }

        def work(connection: Connection) -> dict[str, str]:
            refused = self._changed(connection, [plan.job for plan in planned])
            tools.ledger.add_intents(
                connection, [intent for job, intent in intents.items() if job not in refused], tools.clock()
            )
            return refused

        refused = tools.database.write(work)
        claimed = []
        for plan in planned:
            if plan.job.id in refused:
                self.skip(plan.job, refused[plan.job.id])
                continue
            intent = intents[plan.job.id]
            claimed.append(
                Claimed(
                    intent,
                    plan.job,
                    plan.decision.job_class,
                    plan.decision.age,
                    list(intent.items),
                    known_size=sizes.get(plan.job.id, 0),
                    early=plan.decision.reason if plan.decision.early else None,
                )
            )
        return claimed

    def _changed(self, connection: Connection, jobs: Sequence[Job]) -> dict[str, str]:
        """Return why jobs may not be cleaned after all, by id: their rows changed, or a hold came up."""
        ids = [job.id for job in jobs]
        rows = self._tools.catalog.rows(connection, ids)
        holds = self._tools.planner.holds(connection, ids)
        now = self._tools.clock()
        reasons = {}
        for job in jobs:
            row, hold = rows.get(job.id), holds.get(job.id)
            if row is None:
                reasons[job.id] = "its row is gone"
            elif row.cleaned or row.job != job:
                reasons[job.id] = "its row changed since the plan was made"
            elif hold is not None and hold.is_active(now):
                reasons[job.id] = f"held by {printable(hold.owner)}: {printable(hold.reason)}"
        return reasons

    def _intent(self, kind: IntentKind, job_id: str, status: str, artifacts: Iterable[Found]) -> Intent:
        intent_id = f"{self._tools.run_id}.{next(self._numbers)}"
        items = tuple((found, f"{intent_id}.{at}") for at, found in enumerate(artifacts, start=1))
        return Intent(intent_id, self._tools.run_id, kind, job_id, status, items)

    # -- stage -------------------------------------------------------------------------------------

    def _stage_and_confirm(self, group: Sequence[Claimed]) -> list[Claimed]:
        try:
            return self._confirm(self._stage(group))
        except (LockHeldError, StoreError):
            self._undo(group)
            raise

    def _stage(self, group: Sequence[Claimed]) -> list[Claimed]:
        """Keep the logs that are to be kept, then move every artifact of each job into the trash."""
        obstacles = Obstacles.snapshot(self._tools.roots.values())
        ready = [job for job in group if self._may_go(job, obstacles)]
        # Before the first file moves: a full disk must not leave deletions that the audit log knows not of.
        self._tools.audit(("cleaning", facts(job)) for job in ready if job.entries)
        return [job for job in ready if self._stage_job(job)]

    def _may_go(self, job: Claimed, obstacles: Obstacles) -> bool:
        tools = self._tools
        try:
            for found, _ in job.entries:
                root = tools.roots[found.artifact.root]
                reason = obstacles.reason(root, found.artifact.name)
                if reason is None and found.artifact.root is RootName.RESULTS:
                    reason = kept_by_marker(root.fd, found.artifact.name)
                if reason is not None:
                    self.put_back(job, [])
                    self.skip(job.job, reason)
                    return False
        except OSError as error:
            self._fail(job, _words(error))
            return False
        if job.intent.kind is IntentKind.JOB and job.entries:
            reason = tools.guards.before_stage(job.job, [found for found, _ in job.entries])
            if reason is not None:
                self.put_back(job, [])
                self._fail(job, reason)
                return False
        return True

    def _stage_job(self, job: Claimed) -> bool:
        tools = self._tools
        try:
            if job.job_class in tools.policy.keep_logs:
                self._keep_logs(job)
            if tools.grace:
                job.known_size = sum(
                    measure(tools.roots[found.artifact.root], found.artifact.name, tools.stop).bytes
                    for found, _ in job.entries
                )
                if tools.stop.is_set():  # then that is not all of it
                    self.put_back(job, [])
                    return False
            # Nothing moves for a run that is not ours any more: what came before (a backup) may take hours.
            tools.database.insist_on_lock()
            staged: list[tuple[Found, str]] = []
            try:
                for found, item in job.entries:
                    log.debug("renameat %s/%s -> trash %s", found.artifact.root, found.artifact.name, item)
                    if tools.trashes[found.artifact.root].stage(item, [found.artifact.name]):
                        staged.append((found, item))
            except OSError:
                self.put_back(job, staged)
                raise
            job.entries = staged
        except OSError as error:
            self._fail(job, _words(error))
            return False
        return True

    def _keep_logs(self, job: Claimed) -> None:
        for found, _ in job.entries:
            if found.is_folder:
                keep_logs(
                    self._tools.roots[found.artifact.root],
                    found.artifact.name,
                    self._tools.policy.log_patterns,
                    self._tools.logs_folder / "jobs" / job.job.id,
                )

    def _confirm(self, group: list[Claimed]) -> list[Claimed]:
        """Look once more, now that nobody can see the files: put back what somebody came to need.

        A job that was submitted before its upload vanished is seen here; one that is submitted later finds
        no upload.
        """
        tools = self._tools
        if not group:
            return group
        jobs = [job.job for job in group if job.intent.kind is IntentKind.JOB]
        artifacts = [found.artifact for job in group for found, _ in job.entries]
        with tools.database.read() as connection:
            changed = self._changed(connection, jobs)
            claimants = tools.planner.claimants(connection, artifacts)
        reasons = {job.intent.id: self._marked(job) for job in group}
        for job in group:
            if job.intent.kind is IntentKind.JOB and job.job.id in changed:
                reasons[job.intent.id] = changed[job.job.id]
        staying = {job.job.id for job in group if reasons[job.intent.id] is not None}
        going = {job.id for job in jobs if job.id not in staying} | self.in_flight()
        confirmed = []
        for job in group:
            reason = reasons[job.intent.id]
            if reason is not None:
                self.put_back(job, job.entries)
                self.skip(job.job, reason)
                continue
            needed = [
                e for e in job.entries if protector(claimants.get(e[0].artifact, ()), going) is not None
            ]
            self.restore(needed)
            job.entries = [entry for entry in job.entries if entry not in needed]
            confirmed.append(job)
        return confirmed

    def _marked(self, job: Claimed) -> str | None:
        """Return why a staged job must stay: its marker may have come up while a backup was made."""
        for found, item in job.entries:
            if found.artifact.root is RootName.RESULTS:
                place = f"{item}/{found.artifact.name}"
                reason = kept_by_marker(self._tools.trashes[RootName.RESULTS].fd, place)
                if reason is not None:
                    return reason
        return None

    def put_back(self, job: Claimed, staged: Sequence[tuple[Found, str]]) -> None:
        """Undo a job's staging and close its intent, unless something could not go back."""
        if self.restore(staged):
            self._withdrawn.append(job.intent.id)
            return
        words = "there is something in its place again; move it away, then `trash restore` puts the rest back"
        intent = with_error(job.intent, words, 0)
        self._tools.database.write(lambda c: self._tools.ledger.save_intent(c, intent))

    def _undo(self, group: Sequence[Claimed]) -> None:
        """Put back what was staged when the database was lost: the intents may be another run's by now."""
        for job in group:
            try:
                self.restore(job.entries)
            except OSError as error:  # the other one does the same
                log.debug("%s was not put back: %s", job.intent.id, error)

    def restore(self, staged: Sequence[tuple[Found, str]]) -> bool:
        """Move artifacts back; False when the place of one is taken, so that it stays in the trash."""
        whole = True
        for found, item in staged:
            if self._tools.trashes[found.artifact.root].restore(item):
                whole = False
                self._tools.emit(
                    Warned(
                        f"{printable(found.label)} exists again, so what was taken from there stays in the "
                        f"trash as {item}"
                    )
                )
        return whole

    # -- delete ------------------------------------------------------------------------------------

    def _delete(self, group: Sequence[Claimed]) -> None:
        """Begin the deletion of confirmed jobs, or leave them in the trash for their grace."""
        if self._tools.grace:
            self._record([(job, [(found, None) for found, _ in job.entries]) for job in group])
            return
        for job in group:
            self.submit(job)
        self._settle(limit=4 * self._tools.workers)

    def in_flight(self) -> frozenset[str]:
        """Return the ids of the jobs that are being deleted and not recorded yet."""
        return frozenset(job.job.id for job in self._in_flight if job.intent.kind is IntentKind.JOB)

    def submit(self, job: Claimed) -> None:
        """Hand a job's items to the pool; from here on it can only be finished, not undone."""
        for found, item in job.entries:
            trash = self._tools.trashes[found.artifact.root]
            try:
                removal = self._tools.pool.remove(trash, trash.doom(item))
            except OSError as error:
                removal = Future()
                removal.set_result(Removed(0, 0, 0, (_words(error),), 1, complete=False))
            job.removals.append((found, removal))
        self._in_flight.append(job)

    def _settle(self, limit: int) -> None:
        """Record jobs whose bytes are gone; wait while more than ``limit`` are still being deleted.

        A record waits for the disk several times, as long for one job as for many: so those that are done
        wait for each other a moment.
        """
        while True:
            done: list[Claimed] = []
            deleting: list[Claimed] = []
            for job in self._in_flight:
                (done if all(future.done() for _, future in job.removals) else deleting).append(job)
            due_in = self._recorded_at + _RECORD_SECONDS - monotonic_seconds()
            if done and (due_in <= 0 or len(done) >= _RECORD_JOBS or not (deleting or limit)):
                self._in_flight = deleting
                self._conclude(done)
                self._recorded_at = monotonic_seconds()
                continue
            if len(deleting) <= limit:
                return
            pending = [f for job in deleting for _, f in job.removals if not f.done()]
            wait(pending, timeout=due_in if done else None, return_when=FIRST_COMPLETED)

    def finish(self) -> None:
        """Wait for all that is being deleted, record it, and close the intents that came to nothing."""
        self._settle(limit=0)
        if self._withdrawn:
            withdrawn, self._withdrawn = self._withdrawn, []
            self._tools.database.write(lambda c: self._tools.ledger.drop_intents(c, withdrawn))

    def _conclude(self, ready: Sequence[Claimed]) -> None:
        whole: list[tuple[Claimed, list[tuple[Found, int | None]]]] = []
        for job in ready:
            results = [(found, future.result()) for found, future in job.removals]
            freed = sum(removed.bytes_freed for _, removed in results)
            if all(removed.complete for _, removed in results):
                whole.append((job, [(found, removed.bytes_freed) for found, removed in results]))
                continue
            errors = [error for _, removed in results for error in removed.errors]
            intent = with_error(job.intent, str(errors[0]) if errors else "interrupted", freed)
            self._count_freed(job, freed)
            self._tools.database.write(lambda c, i=intent: self._tools.ledger.save_intent(c, i))  # type: ignore[misc]
            if errors:
                total = sum(removed.error_count for _, removed in results)
                self._fail(job, f"{errors[0]}" + (f" (and {total - 1} more)" if total > 1 else ""))
        if whole:
            self._record(whole)

    # -- record ------------------------------------------------------------------------------------

    def _record(self, jobs: Sequence[tuple[Claimed, list[tuple[Found, int | None]]]]) -> None:
        """Write that these jobs are cleaned (sizes None: they wait in the trash), each in one transaction."""
        tools = self._tools
        # Another run may have put back what this one was about to delete: then nothing may be said of it.
        tools.database.insist_on_lock()
        # The renames and removals must be on the disk before the record of them is: on a power cut the
        # database must not know more than the folders.
        for root in {found.artifact.root for _, entries in jobs for found, _ in entries}:
            tools.trashes[root].sync()
        tools.audit((self._action(job), self._done(job, entries)) for job, entries in jobs)
        now = tools.clock()

        # Few at a time: while one of these transactions lasts, the web interface cannot write.
        for start in range(0, len(jobs), _JOBS_AT_ONCE):
            some = jobs[start : start + _JOBS_AT_ONCE]
            for job, _ in some:
                if job.intent.kind is IntentKind.JOB and is_in_place(tools.roots, job.job):
                    job.marks_row = False  # somebody copied it back, say: the next run looks at it anew
            again = tools.database.write(lambda c, some=some: self._record_jobs(c, some, now))  # type: ignore[misc]
            undone = [job for job, _ in some if job.intent.id in again and self._goes_to_trash(job)]
            tools.audit(("put_back", facts(job)) for job in undone)
            for job, entries in some:
                job.marks_row = job.marks_row and job.intent.id not in again
                if job in undone:
                    self.put_back(job, job.entries)
                    self.skip(job.job, "its row changed while it was staged")
                else:
                    self._tell_cleaned(job, entries)

    def _record_jobs(
        self,
        connection: Connection,
        jobs: Sequence[tuple[Claimed, list[tuple[Found, int | None]]]],
        now: datetime,
    ) -> set[str]:
        """Record some jobs; returns the intents of those that were run again in this moment.

        What of them is in the trash is not recorded: it must go back.  A transaction may be tried again, so
        nothing is remembered here.
        """
        tools = self._tools
        rows = tools.catalog.rows(connection, [job.job.id for job, _ in jobs if job.marks_row], lock=True)
        again = {
            job.intent.id
            for job, _ in jobs
            if job.marks_row and (row := rows.get(job.job.id)) is not None and row.job != job.job
        }
        done = [(j, entries) for j, entries in jobs if j.intent.id not in again or not self._goes_to_trash(j)]
        cleaned = []
        for job, entries in done:
            if self._goes_to_trash(job):
                tools.ledger.save_intent(connection, self._trashed(job, now))
            is_first = job.intent.kind is IntentKind.JOB and job.intent.state is not IntentState.TRASHED
            if is_first and job.marks_row and job.intent.id not in again:
                # What an interrupted attempt removed was not counted: then the size measured earlier is truer
                size = _freed(job, entries) or job.known_size
                cleaned.append((job.job.id, size, _summary(entries, trashed=self._goes_to_trash(job))))
        # Together, since each statement by itself costs more than its rows, and all of it holds the lock.
        tools.catalog.mark_cleaned(connection, cleaned, now)
        log_entries = [self._log_entry(job, entries) for job, entries in done]
        tools.ledger.add_log(connection, tools.run_id, log_entries, now)
        audit_lines = [line for job, entries in done for line in self._audit_lines(job, entries)]
        tools.ledger.add_audit(connection, audit_lines, tools.user, now)
        tools.ledger.close_intents(
            connection, [job.intent.id for job, _ in jobs if not self._goes_to_trash(job)]
        )
        tools.ledger.forget_measured(connection, [job.job.id for job, _ in jobs])
        return again

    def _goes_to_trash(self, job: Claimed) -> bool:
        return bool(self._tools.grace) and not job.removals and bool(job.entries)

    def _action(self, job: Claimed) -> str:
        if job.intent.kind is IntentKind.ORPHAN:
            return "removed_orphan"
        if self._goes_to_trash(job):
            return "trashed"
        return "purged" if job.intent.state is IntentState.TRASHED else "cleaned"

    def _done(self, job: Claimed, entries: Sequence[tuple[Found, int | None]]) -> dict[str, object]:
        details = {**facts(job), "bytes_freed": _freed(job, entries)}
        return {**details, "early": job.early} if job.early else details

    def _trashed(self, job: Claimed, now: datetime) -> Intent:
        """Return the intent of a job that waits in the trash from now on."""
        kept = {item for _, item in job.entries}
        return replace(
            job.intent,
            state=IntentState.TRASHED,
            purge_after=now + self._tools.grace,
            size_bytes=job.known_size,
            items=tuple(pair for pair in job.intent.items if pair[1] in kept),
        )

    def _log_entry(self, job: Claimed, entries: Sequence[tuple[Found, int | None]]) -> LogEntry:
        message = _summary(entries, trashed=self._goes_to_trash(job))
        if job.early:
            message += f"; {job.early}"
        return LogEntry(job.job.id, job.job.status, self._action(job), _freed(job, entries), message)

    def _audit_lines(self, job: Claimed, entries: Sequence[tuple[Found, int | None]]) -> Iterable[AuditLine]:
        if not entries:
            yield AuditLine(job.job.id, "marked_cleaned", _freed(job, entries))
        verb = "trashed" if self._goes_to_trash(job) else "deleted"
        by_root: Counter[str] = Counter()
        for found, freed in entries:
            by_root[found.artifact.root] += freed or 0
        for root, freed_there in by_root.items():
            yield AuditLine(job.job.id, f"{verb}_{root}", freed_there)

    def _tell_cleaned(self, job: Claimed, entries: list[tuple[Found, int | None]]) -> None:
        freed = sum(size or 0 for _, size in entries)
        self._count_freed(job, freed)
        if job.intent.state is IntentState.TRASHED:
            self.counts.purged += 1
        elif job.intent.kind is IntentKind.ORPHAN:
            self.counts.orphans += 1
            for found, size in entries:
                self._tools.emit(OrphanFound(found, size or 0, removed=True))
            return
        elif not job.marks_row:
            self.skip(job.job, "it was run again, or is in its place again, so it does not count as cleaned")
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
                tuple(ArtifactSize(found, size or 0) for found, size in entries),
                job.intent.bytes_freed + freed,
                in_trash=self._goes_to_trash(job),
                early=job.early,
            )
        )

    def _count_freed(self, job: Claimed, freed: int) -> None:
        if job.intent.state is IntentState.TRASHED:
            self.counts.purged_bytes += freed
        elif job.intent.kind is IntentKind.ORPHAN:
            self.counts.orphan_bytes += freed
        else:
            self.counts.freed[job.job_class] += freed

    # -- what comes to nothing ---------------------------------------------------------------------

    def skip(self, job: Job, reason: str) -> None:
        """Tell that a job stays as it is, and why."""
        self.counts.skipped += 1
        self._tools.emit(JobSkipped(job, reason, notable=True))

    def _fail(self, job: Claimed, error: str) -> None:
        self.counts.errors += 1
        now = self._tools.clock()
        job_id, status = printable(job.job.id), printable(job.job.status)
        self.counts.note_failed(JobNote(job_id, status, words=printable(error)))
        self._tools.audit([("failed", {"job_id": job_id, "status": status, "error": printable(error)})])
        entry = LogEntry(job.job.id, job.job.status, "failed", 0, error)
        self._tools.database.write(lambda c: self._tools.ledger.add_log(c, self._tools.run_id, [entry], now))
        self._tools.emit(JobFailed(self._tools.run_id, job.job.id, job.job.status, error))


def facts(job: Claimed) -> dict[str, object]:
    """Return what the audit log says of a job whose files are about to go."""
    labels = [printable(found.label) for found, _ in job.entries]
    return {"job_id": printable(job.job.id), "status": printable(job.job.status), "artifacts": labels}


def _freed(job: Claimed, entries: Sequence[tuple[Found, int | None]]) -> int:
    """Return the bytes that all attempts at a job have freed."""
    return job.intent.bytes_freed + sum(size or 0 for _, size in entries)


def _summary(entries: Sequence[tuple[Found, int | None]], *, trashed: bool) -> str:
    if not entries:
        return "no files were left"
    parts = []
    for found, size in entries:
        label = printable(found.label)
        parts.append(label if size is None else f"{label} ({human_size(size)})")
    return ("in the trash: " if trashed else "deleted ") + ", ".join(parts)


def _words(error: OSError) -> str:
    name = f" {printable(str(error.filename))}" if error.filename else ""
    return f"{error.strerror or error}{name}"
