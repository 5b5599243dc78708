"""From a planned job to a recorded one: claim, stage, confirm, delete, record.

The order makes a kill safe at every moment.  The intent is in the ledger before the first file moves.  One
rename hides an artifact from readers.  The deletion of an item starts only after the whole job is staged and
its row was read again; the item is renamed first, so that the file system itself shows it.  The row says
"cleaned" only when the bytes are gone, or in the trash for their grace.
"""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from functools import partial

from eemtcleanupd.batches import batched
from eemtcleanupd.cleanup.context import RunContext
from eemtcleanupd.cleanup.planner import PlannedJob, Planner
from eemtcleanupd.cleanup.recording import Recording, RemovedArtifacts
from eemtcleanupd.cleanup.report import RunStats
from eemtcleanupd.cleanup.session import StoreSession
from eemtcleanupd.cleanup.staging import ClaimedJob, Staging
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.deletion.pool import DeletionPool, RemovalResult
from eemtcleanupd.deletion.trash import Trash, deleting_name, is_grouped
from eemtcleanupd.deletion.tree import Failure
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import TRASH_NAME, Artifact, Found, Job, RootName
from eemtcleanupd.store.intents import Intent

# A group that is staged in less time than this was quick: the next can be twice as large.
_QUICK_GROUP_SECONDS = 0.25
# How long deleted jobs wait to be recorded together, and how many at most.
RECORD_SECONDS = 0.25
_RECORD_JOBS = 500
_LARGEST_GROUP = 1000


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
        self._in_flight: dict[int, ClaimedJob] = {}
        self._finished: queue.SimpleQueue[ClaimedJob] = queue.SimpleQueue()
        self._counting = threading.Lock()
        self._groups: set[tuple[RootName, str]] = set()
        self._waiting: list[PlannedJob] = []
        self._sizes: dict[str, int] = {}
        self._group_size = 2 * run.workers
        self._taken = 0
        self._recorded_at = monotonic_seconds()

    # -- claim and stage ---------------------------------------------------------------------------

    @property
    def taken(self) -> int:
        """The number of jobs whose data was taken, and of those that wait for their group."""
        return self._taken + len(self._waiting)

    def process(self, planned: Sequence[PlannedJob], sizes: Mapping[str, int]) -> None:
        """Clean jobs, as soon as there are enough for a group; see :meth:`flush`.

        Args:
            planned: the jobs and their artifacts.
            sizes: sizes in bytes measured earlier, by job id, to record for a job whose files an interrupted
                attempt had already removed.
        """
        self._waiting += planned
        self._sizes |= sizes
        while len(self._waiting) >= self._group_size and not self.run.stop.is_set():
            self._process_group()

    def flush(self) -> None:
        """Clean the jobs that still wait for others of their group."""
        while self._waiting and not self.run.stop.is_set():
            self._process_group()

    def _process_group(self) -> None:
        group, self._waiting = self._waiting[: self._group_size], self._waiting[self._group_size :]
        started = monotonic_seconds()
        claimed = self.staging.claim(group, self._sizes)
        for plan in group:
            self._sizes.pop(plan.job.id, None)
        confirmed = self.staging.stage_and_confirm(claimed, self._jobs_in_flight())
        self._taken += len(confirmed)
        self._resize_group(monotonic_seconds() - started)
        self.run.progress.done({plan.job.id for plan in group}.difference(job.job.id for job in confirmed))
        self._delete(confirmed)

    def _resize_group(self, seconds: float) -> None:
        """Double the group size when staging was quick, reset it when it was not.

        Each group waits for the disk (the audit log is flushed before its files move), so a few large groups
        are quicker than many small ones.  But the locks and markers that a group has read before staging must
        not be out of date by then, and where each job is copied first, its space must be freed soon after.
        """
        is_copied = self.run.hooks.read_jobs or self.run.grace
        if seconds < _QUICK_GROUP_SECONDS:
            self._group_size = min(
                2 * self._group_size, _LARGEST_GROUP // 10 if is_copied else _LARGEST_GROUP
            )
        else:
            self._group_size = max(self._group_size // 2, 2 * self.run.workers)

    def mark_trashed(self, jobs: Sequence[tuple[Job, Intent]]) -> None:
        """Mark jobs as cleaned again whose rows were reset while their data is in the trash."""
        session, in_trash = self.session, []
        for job, intent in jobs:
            if intent.is_purging or all(
                session.in_trash(found.artifact.root, item) for found, item in intent.items
            ):
                in_trash.append((job, intent))
            else:
                self.stats.skipped(job, "its row was reset, and its item is missing from the trash")
        for job in self._recording.mark_cleaned_again(in_trash):
            self.stats.already_trashed(job)

    def mark_before_purge(self, jobs: Sequence[tuple[Job, Intent]]) -> None:
        """Mark jobs as cleaned again whose rows were reset, before the trash forgets what they had."""
        self.stats.counts.already_trashed += len(self._recording.mark_cleaned_again(jobs))

    def process_orphans(self, entries: Sequence[Found], measured_at: datetime | None) -> frozenset[Artifact]:
        """Remove entries that no row names, or whose jobs are all cleaned, through the same stages.

        Args:
            entries: the entries.
            measured_at: a time before the inventory looked at leftovers, None for entries without a row.

        Returns:
            Those that must stay: a row names them now, say.
        """
        # With a grace each entry is measured before it moves, and leftovers can be copied: see _resize_group.
        is_copied = self.run.grace or (measured_at is not None and self.run.hooks.read_jobs)
        size = self._group_size if is_copied else _LARGEST_GROUP
        taken: set[Artifact] = set()
        for group in batched(entries, size):
            claimed = self.staging.claim_orphans(group, measured_at)
            confirmed = self.staging.stage_and_confirm(claimed, self._jobs_in_flight())
            taken.update(found.artifact for orphan in confirmed for found, _ in orphan.intent.items)
            self._delete(confirmed)
        return frozenset(found.artifact for found in entries) - taken

    # -- delete ------------------------------------------------------------------------------------

    def _delete(self, group: Sequence[ClaimedJob]) -> None:
        """Start the deletion of confirmed jobs, or leave them in the trash for their grace."""
        if self.run.grace:
            self._recording.record(
                [(job, [(found, job.sizes.get(found, 0)) for found, _ in job.items]) for job in group]
            )
            self.run.progress.done(job.job.id for job in group)
            return
        self.submit(group)
        self._record_finished(limit=max(4 * self.run.workers, len(group)))

    def in_flight(self) -> frozenset[str]:
        """Return the ids of the jobs that are being deleted and not recorded yet."""
        return frozenset(job.id for job in self._jobs_in_flight())

    def _jobs_in_flight(self) -> list[Job]:
        return [job.job for job in self._in_flight.values() if not job.is_orphan]

    def taken_ids(self) -> frozenset[str]:
        """Return the ids of the jobs that wait for their group, or are being deleted."""
        return self.in_flight() | {plan.job.id for plan in self._waiting}

    def remove_strays(self, trash: Trash, folder: str) -> None:
        """Remove the folder of a group whose jobs are all recorded, with what a killed run left in it."""
        self._pool.remove(trash, folder).result()

    def submit(self, jobs: Sequence[ClaimedJob]) -> None:
        """Submit the items of jobs to the pool; from here on the jobs can only be finished, not undone.

        The folder of a group stays as it is while it holds an item of another job: that must go back.
        """
        grouped: dict[tuple[RootName, str], list[tuple[ClaimedJob, Found, str]]] = defaultdict(list)
        for job in jobs:
            job.unfinished = len(job.items)
            self._in_flight[id(job)] = job
            for found, item in job.items:
                if is_grouped(item):
                    folder, _, name = item.partition("/")
                    grouped[found.artifact.root, folder].append((job, found, name))
                else:
                    self._remove(job, found, item)
            if not job.items:
                self._has_ended(job)
        for (root, folder), members in grouped.items():
            names = [name for _, _, name in members]
            trash, deleting = self.session.trashes[root], deleting_name(folder)
            try:
                if trash.exists(deleting) or not trash.holds_only(folder, names):
                    for name in names:
                        trash.isolate(f"{folder}/{name}")
                else:
                    trash.mark_deleting(folder)
                removals = self._pool.remove_small(trash, deleting, names)
                self._groups.add((root, deleting))
            except OSError as error:
                removals = [_failed(error) for _ in names]
            for (job, found, _), removal in zip(members, removals, strict=True):
                self._follow(job, found, deleting, removal)

    def _remove(self, job: ClaimedJob, found: Found, item: str) -> None:
        trash = self.session.trashes[found.artifact.root]
        try:
            removal = self._pool.remove(trash, trash.mark_deleting(item))
        except OSError as error:
            removal = _failed(error)
        self._follow(job, found, deleting_name(item), removal)

    def _follow(self, job: ClaimedJob, found: Found, folder: str, removal: Future[RemovalResult]) -> None:
        job.removals.append((found, folder, removal))
        removal.add_done_callback(partial(self._count, job))

    def _count(self, job: ClaimedJob, _removal: Future[RemovalResult]) -> None:
        """Note the end of one removal, in any thread."""
        with self._counting:
            job.unfinished -= 1
            is_finished = job.unfinished == 0
        if is_finished:
            self._has_ended(job)

    def _has_ended(self, job: ClaimedJob) -> None:
        """Queue a job for its record."""
        self.run.progress.done([job.job.id])
        self._finished.put(job)

    # -- record ------------------------------------------------------------------------------------

    def _record_finished(self, limit: int) -> None:
        """Record deleted jobs; wait while more than ``limit`` are not recorded.

        A record waits for the disk several times, as long for one job as for many.  So deleted jobs wait a
        moment for each other.
        """
        done: list[ClaimedJob] = []
        while True:
            with suppress(queue.Empty):
                while True:
                    done.append(self._finished.get_nowait())
            deleting = len(self._in_flight) - len(done)
            due_in = self._recorded_at + RECORD_SECONDS - monotonic_seconds()
            if done and (due_in <= 0 or len(done) >= _RECORD_JOBS or not (deleting or limit)):
                self._finish_jobs(done)
                for job in done:
                    del self._in_flight[id(job)]
                done = []
                self._recorded_at = monotonic_seconds()
                continue
            if deleting <= limit:
                for job in done:
                    self._finished.put(job)
                return
            with suppress(queue.Empty):
                done.append(self._finished.get(timeout=max(due_in, 0.0) if done else None))

    def finish(self) -> None:
        """Take the jobs that wait, record all, and delete the intents of jobs that were put back."""
        self.flush()
        self._record_finished(limit=0)
        self.staging.delete_withdrawn()
        for root, folder in self._groups:
            self.session.trashes[root].remove_group(folder)
        self._groups.clear()

    def _finish_jobs(self, jobs: Sequence[ClaimedJob]) -> None:
        """Record jobs whose deletion has ended, and how far it came for those that are not fully deleted."""
        deleted: list[tuple[ClaimedJob, RemovedArtifacts]] = []
        for job in jobs:
            results = [future.result() for _, _, future in job.removals]
            removed = [
                (found, result.bytes_freed)
                for (found, _, _), result in zip(job.removals, results, strict=True)
            ]
            if all(result.complete for result in results):
                deleted.append((job, removed))
            else:
                self.stats.freed(job, removed)
                self._record_incomplete(job, results)
        if deleted:
            self._recording.record(deleted)

    def _record_incomplete(self, job: ClaimedJob, results: Sequence[RemovalResult]) -> None:
        """Record in a job's intent, which the next run finishes, the freed bytes and the first error."""
        freed = sum(result.bytes_freed for result in results)
        errors = [
            self._describe(found, folder, failure)
            for (found, folder, _), result in zip(job.removals, results, strict=True)
            for failure in result.errors
        ]
        self.staging.save_incomplete(job.intent, errors[0] if errors else "interrupted", freed)
        if errors:
            more = sum(result.error_count for result in results) - 1
            self.stats.failed(job.job, errors[0] + (f" (and {more} more)" if more else ""))

    def _describe(self, found: Found, folder: str, failure: Failure) -> str:
        """Return a failure with the path as an operator knows it, and where that entry is now."""
        label, place, reason = failure
        name, path = printable(found.artifact.name), found.label
        if label == name or label.startswith(f"{name}/"):
            path = f"{found.artifact.root}/{label}"
        elif label:  # a subfolder that was moved up: only its last part is known after an interruption
            path = f"{found.label}…/{label.partition('/')[2] or label}"
        trash = self.session.roots[found.artifact.root].path / TRASH_NAME / folder
        return f"{path}: {reason} (now in {printable(str(trash))}/{place})"


def _failed(error: OSError) -> Future[RemovalResult]:
    removal: Future[RemovalResult] = Future()
    removal.set_result(RemovalResult(0, 0, 0, (("", "", error.strerror or str(error)),), 1, complete=False))
    return removal
