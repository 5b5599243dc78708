"""From a planned job to a recorded one: claim, stage, confirm, delete, record.

The order makes every moment safe to be killed in: the intent is in the ledger before the first file moves;
an artifact vanishes for readers by one rename; only after the whole job has been staged and its row has
been read once more is the deletion of an item begun (and the item renamed, so that the file system itself
says so); and the row says "cleaned" only when the bytes are gone, or in the trash for its grace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from eemtcleanupd.cleanup.claims import ClaimedJob, RemovedArtifacts, Tools, describe_oserror
from eemtcleanupd.cleanup.outcomes import RunStats
from eemtcleanupd.cleanup.planner import PlannedJob
from eemtcleanupd.cleanup.recording import Recording
from eemtcleanupd.cleanup.staging import Staging
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.deletion.pool import RemovalResult
from eemtcleanupd.model import Found
from eemtcleanupd.store.intents import IntentKind, with_error

# A group that is staged in less time than this was quick: the next may be twice as large.
_QUICK_GROUP_SECONDS = 0.25
# How long jobs that are gone wait to be recorded together, and how many at most.
_RECORD_SECONDS = 0.25
_RECORD_JOBS = 100


class Pipeline:
    """Takes planned jobs (and orphans) through all stages, a few at a time, and records what was done."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self.stats = RunStats(tools)
        self.staging = Staging(tools, self.stats)
        self._recording = Recording(tools, self.staging, self.stats)
        self._in_flight: list[ClaimedJob] = []
        self._group_size = 2 * tools.workers
        self._recorded_at = monotonic_seconds()

    # -- take --------------------------------------------------------------------------------------

    def process(self, planned: Sequence[PlannedJob], sizes: Mapping[str, int]) -> int:
        """Clean a batch of jobs; returns how many were claimed.

        Args:
            planned: the jobs and their artifacts.
            sizes: bytes measured earlier, by job id, for the record of one whose files an interrupted
                attempt had already removed.
        """
        tools = self._tools
        claimed = self.staging.claim(planned, sizes)
        start = 0
        while start < len(claimed):
            group = claimed[start : start + self._group_size]
            start += len(group)
            if tools.stop.is_set():
                for job in group:
                    self.staging.put_back(job, [])
                continue
            began = monotonic_seconds()
            confirmed = self.staging.stage_and_confirm(group, self.in_flight())
            self._resize_group(monotonic_seconds() - began)
            self._delete(confirmed)
        return len(claimed)

    def _resize_group(self, seconds: float) -> None:
        """Make the next group larger when this one was staged quickly, small again when it was not.

        Each group waits for the disk (the audit log is flushed before its files move), so a few large ones
        are quicker than many small ones.  But what a group looked at before staging (locks, markers) must
        not be old by then, and where each job is copied first, its space must come free soon after.
        """
        smallest = 2 * self._tools.workers
        self._group_size = 2 * self._group_size if seconds < _QUICK_GROUP_SECONDS else smallest

    def process_orphan(self, found: Found) -> bool:
        """Remove an entry that no row names, the same safe way; False when a row names it now."""
        orphan = self.staging.claim_orphan(found)
        if orphan is None:
            return False
        self._delete(self.staging.stage_and_confirm([orphan], self.in_flight()))
        return True

    # -- delete ------------------------------------------------------------------------------------

    def _delete(self, group: Sequence[ClaimedJob]) -> None:
        """Begin the deletion of confirmed jobs, or leave them in the trash for their grace."""
        if self._tools.grace:
            self._recording.record([(job, [(found, None) for found, _ in job.items]) for job in group])
            return
        for job in group:
            self.submit(job)
        self._record_finished(limit=4 * self._tools.workers)

    def in_flight(self) -> frozenset[str]:
        """Return the ids of the jobs that are being deleted and not recorded yet."""
        return frozenset(job.job.id for job in self._in_flight if job.intent.kind is IntentKind.JOB)

    def submit(self, job: ClaimedJob) -> None:
        """Hand a job's items to the pool; from here on it can only be finished, not undone."""
        for found, item in job.items:
            trash = self._tools.trashes[found.artifact.root]
            try:
                removal = self._tools.pool.remove(trash, trash.mark_deleting(item))
            except OSError as error:
                removal = Future()
                removal.set_result(RemovalResult(0, 0, 0, (describe_oserror(error),), 1, complete=False))
            job.removals.append((found, removal))
        self._in_flight.append(job)

    # -- settle ------------------------------------------------------------------------------------

    def _record_finished(self, limit: int) -> None:
        """Record jobs whose bytes are gone; wait while more than ``limit`` are still being deleted.

        A record waits for the disk several times, as long for one job as for many: so those that are done
        wait for each other a moment.
        """
        while True:
            done: list[ClaimedJob] = []
            deleting: list[ClaimedJob] = []
            for job in self._in_flight:
                (done if all(future.done() for _, future in job.removals) else deleting).append(job)
            due_in = self._recorded_at + _RECORD_SECONDS - monotonic_seconds()
            if done and (due_in <= 0 or len(done) >= _RECORD_JOBS or not (deleting or limit)):
                self._in_flight = deleting
                self._finish_jobs(done)
                self._recorded_at = monotonic_seconds()
                continue
            if len(deleting) <= limit:
                return
            pending = [f for job in deleting for _, f in job.removals if not f.done()]
            wait(pending, timeout=due_in if done else None, return_when=FIRST_COMPLETED)

    def finish(self) -> None:
        """Wait for all that is being deleted, record it, and close the intents that came to nothing."""
        self._record_finished(limit=0)
        self.staging.drop_withdrawn()

    def _finish_jobs(self, ready: Sequence[ClaimedJob]) -> None:
        """Record jobs whose deletion has ended, and of those that are not gone whole how far they came."""
        whole: list[tuple[ClaimedJob, RemovedArtifacts]] = []
        for job in ready:
            results = [(found, future.result()) for found, future in job.removals]
            if all(removed.complete for _, removed in results):
                whole.append((job, [(found, removed.bytes_freed) for found, removed in results]))
            else:
                self._record_incomplete(job, [removed for _, removed in results])
        if whole:
            self._recording.record(whole)

    def _record_incomplete(self, job: ClaimedJob, results: Sequence[RemovalResult]) -> None:
        """Write into a job's intent, which the next run finishes, what was freed and what was in the way."""
        freed = sum(removed.bytes_freed for removed in results)
        errors = [error for removed in results for error in removed.errors]
        intent = with_error(job.intent, str(errors[0]) if errors else "interrupted", freed)
        self.stats.freed(job, freed)
        self._tools.database.write(lambda c: self._tools.ledger.save_intent(c, intent))
        if errors:
            total = sum(removed.error_count for removed in results)
            self.stats.failed(job, f"{errors[0]}" + (f" (and {total - 1} more)" if total > 1 else ""))
