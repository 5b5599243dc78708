"""From a planned job to a recorded one: claim, stage, confirm, delete, record.

The order makes a kill safe at every moment.  The intent is in the ledger before the first file moves.  One
rename hides an artifact from readers.  The deletion of an item starts only after the whole job is staged and
its row was read again; the item is renamed first, so that the file system itself shows it.  The row says
"cleaned" only when the bytes are gone, or in the trash for their grace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from eemtcleanupd.cleanup.context import RunContext
from eemtcleanupd.cleanup.planner import PlannedJob, Planner
from eemtcleanupd.cleanup.recording import Recording, RemovedArtifacts
from eemtcleanupd.cleanup.report import RunStats
from eemtcleanupd.cleanup.session import StoreSession
from eemtcleanupd.cleanup.staging import ClaimedJob, Staging, describe_oserror
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.deletion.pool import DeletionPool, RemovalResult
from eemtcleanupd.model import Found, Job
from eemtcleanupd.store.intents import Intent, with_error

# A group that is staged in less time than this was quick: the next can be twice as large.
_QUICK_GROUP_SECONDS = 0.25
# How long deleted jobs wait to be recorded together, and how many at most.
RECORD_SECONDS = 0.25
_RECORD_JOBS = 100


class Pipeline:
    """Passes planned jobs (and orphans) through all stages, a few at a time, and records what was done."""

    def __init__(self, run: RunContext, session: StoreSession, planner: Planner, pool: DeletionPool) -> None:
        self.run = run
        self.session = session
        self.planner = planner
        self.stats = RunStats(run, session)
        self.staging = Staging(run, session, planner, self.stats)
        self._pool = pool
        self._recording = Recording(run, session, self.staging, self.stats)
        self._in_flight: list[ClaimedJob] = []
        self._group_size = 2 * run.workers
        self._recorded_at = monotonic_seconds()

    # -- claim and stage ---------------------------------------------------------------------------

    def process(self, planned: Sequence[PlannedJob], sizes: Mapping[str, int]) -> int:
        """Clean a batch of jobs; return how many were claimed.

        Args:
            planned: the jobs and their artifacts.
            sizes: sizes in bytes measured earlier, by job id, to record for a job whose files an interrupted
                attempt had already removed.
        """
        claimed = self.staging.claim(planned, sizes)
        start = 0
        while start < len(claimed):
            group = claimed[start : start + self._group_size]
            start += len(group)
            if self.run.stop.is_set():
                for job in group:
                    self.staging.put_back(job, [])
                continue
            started = monotonic_seconds()
            confirmed = self.staging.stage_and_confirm(group, self.in_flight())
            self._resize_group(monotonic_seconds() - started)
            self._delete(confirmed)
        return len(claimed)

    def _resize_group(self, seconds: float) -> None:
        """Double the group size when staging was quick, reset it when it was not.

        Each group waits for the disk (the audit log is flushed before its files move), so a few large groups
        are quicker than many small ones.  But the locks and markers that a group has read before staging must
        not be out of date by then, and where each job is copied first, its space must be freed soon after.
        """
        smallest = 2 * self.run.workers
        self._group_size = 2 * self._group_size if seconds < _QUICK_GROUP_SECONDS else smallest

    def mark_trashed(self, jobs: Sequence[tuple[Job, Intent]]) -> None:
        """Mark jobs as cleaned again whose rows were reset while their data is in the trash."""
        self._recording.mark_trashed(jobs)

    def process_orphan(self, found: Found, *, is_leftover: bool) -> bool:
        """Remove an entry that no row names, or whose jobs are all cleaned, through the same stages.

        Returns:
            False if it must stay: a row names it now, say.
        """
        orphan = self.staging.claim_orphan(found, is_leftover=is_leftover)
        if orphan is None:
            return False
        confirmed = self.staging.stage_and_confirm([orphan], self.in_flight())
        self._delete(confirmed)
        return bool(confirmed)

    # -- delete ------------------------------------------------------------------------------------

    def _delete(self, group: Sequence[ClaimedJob]) -> None:
        """Start the deletion of confirmed jobs, or leave them in the trash for their grace."""
        if self.run.grace:
            self._recording.record([(job, [(found, None) for found, _ in job.items]) for job in group])
            return
        for job in group:
            self.submit(job)
        self._record_finished(limit=4 * self.run.workers)

    def in_flight(self) -> frozenset[str]:
        """Return the ids of the jobs that are being deleted and not recorded yet."""
        return frozenset(job.job.id for job in self._in_flight if not job.is_orphan)

    def submit(self, job: ClaimedJob) -> None:
        """Submit a job's items to the pool; from here on the job can only be finished, not undone."""
        for found, item in job.items:
            trash = self.session.trashes[found.artifact.root]
            try:
                removal = self._pool.remove(trash, trash.mark_deleting(item))
            except OSError as error:
                removal = Future()
                removal.set_result(RemovalResult(0, 0, 0, (describe_oserror(error),), 1, complete=False))
            job.removals.append((found, removal))
        self._in_flight.append(job)

    # -- record ------------------------------------------------------------------------------------

    def _record_finished(self, limit: int) -> None:
        """Record deleted jobs; wait while more than ``limit`` are still being deleted.

        A record waits for the disk several times, as long for one job as for many.  So deleted jobs wait a
        moment for each other.
        """
        while True:
            done: list[ClaimedJob] = []
            deleting: list[ClaimedJob] = []
            for job in self._in_flight:
                (done if all(future.done() for _, future in job.removals) else deleting).append(job)
            due_in = self._recorded_at + RECORD_SECONDS - monotonic_seconds()
            if done and (due_in <= 0 or len(done) >= _RECORD_JOBS or not (deleting or limit)):
                self._in_flight = deleting
                self._finish_jobs(done)
                self._recorded_at = monotonic_seconds()
                continue
            if len(deleting) <= limit:
                return
            pending = [future for job in deleting for _, future in job.removals if not future.done()]
            wait(pending, timeout=due_in if done else None, return_when=FIRST_COMPLETED)

    def finish(self) -> None:
        """Wait for all deletions, record them, and delete the intents of jobs that were put back."""
        self._record_finished(limit=0)
        self.staging.delete_withdrawn()

    def _finish_jobs(self, jobs: Sequence[ClaimedJob]) -> None:
        """Record jobs whose deletion has ended, and how far it came for those that are not fully deleted."""
        deleted: list[tuple[ClaimedJob, RemovedArtifacts]] = []
        for job in jobs:
            results = [(found, future.result()) for found, future in job.removals]
            if all(result.complete for _, result in results):
                deleted.append((job, [(found, result.bytes_freed) for found, result in results]))
            else:
                self._record_incomplete(job, [result for _, result in results])
        if deleted:
            self._recording.record(deleted)

    def _record_incomplete(self, job: ClaimedJob, results: Sequence[RemovalResult]) -> None:
        """Record in a job's intent, which the next run finishes, the freed bytes and the first error."""
        freed = sum(result.bytes_freed for result in results)
        errors = [error for result in results for error in result.errors]
        self.stats.freed(job, freed)
        self.staging.save_intent(with_error(job.intent, errors[0] if errors else "interrupted", freed))
        if errors:
            more = sum(result.error_count for result in results) - 1
            self.stats.failed(job.job, errors[0] + (f" (and {more} more)" if more else ""))
