"""Staging: claim jobs in the ledger, move their artifacts into the trash, confirm, or put them back."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from eemtcleanupd.cancellation import stoppable_by
from eemtcleanupd.cleanup.context import RunContext
from eemtcleanupd.cleanup.planner import PlannedJob, Planner
from eemtcleanupd.cleanup.report import RunStats
from eemtcleanupd.cleanup.session import StoreSession
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.deletion.blockers import Blockers, LockList, keep_marker_reason
from eemtcleanupd.deletion.job_logs import keep_logs
from eemtcleanupd.deletion.pool import RemovalResult
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.trash import artifact_path, group_name
from eemtcleanupd.deletion.walk import Folder, measure, walk
from eemtcleanupd.errors import LockHeldError, RowError, StoreError
from eemtcleanupd.events import ORPHAN, Warned
from eemtcleanupd.formatting import printable, suggested
from eemtcleanupd.model import ArtifactPath, Found, Job, JobClass, RootName
from eemtcleanupd.policy.ownership import ARCHIVE_SUFFIX, blocking_claimant, newest_owner
from eemtcleanupd.privileges import exceeds_user, with_file_access
from eemtcleanupd.store.intents import Intent, IntentKind, IntentState, with_error

log = logging.getLogger(__name__)

JOBS_PER_TRANSACTION = 100
"""How many jobs one transaction records.  Meanwhile the web application cannot write."""

# How long what blocks entries is not read again.
_FRESH_SECONDS = 0.1

Item = tuple[Found, str]
"""An artifact, and the name of its item in the trash of its root."""


@dataclass(slots=True)
class ClaimedJob:
    """A claimed job (or orphan); ``items`` are its artifacts, after staging only those in the trash.

    ``removals`` has each artifact with the folder in the trash that it is deleted from, ``unfinished`` counts
    those that have not ended.
    ``known_size`` is the size in bytes that was measured earlier, and ``sizes`` those of the artifacts that
    move to the trash for a grace period.  ``marks_job_cleaned`` is False if the job was held, run again or
    copied back since the claim, or its row was removed.  The run then deletes only the leftovers.  ``early``
    is the reason for cleaning a job before its retention ends.  ``owner`` is the job that a leftover was of,
    and ``measured_at`` a time before the inventory looked at it.
    """

    intent: Intent
    job: Job
    job_class: JobClass
    age: timedelta | None
    items: list[Item] = field(default_factory=list)
    removals: list[tuple[Found, str, Future[RemovalResult]]] = field(default_factory=list)
    unfinished: int = 0
    known_size: int = 0
    sizes: dict[Found, int] = field(default_factory=dict)
    marks_job_cleaned: bool = True
    early: str | None = None
    owner: Job | None = None
    measured_at: datetime | None = None

    @property
    def is_orphan(self) -> bool:
        """Whether this is an entry that no job owns."""
        return self.intent.kind is IntentKind.ORPHAN

    @property
    def is_row_reset(self) -> bool:
        """Whether its row counts as not cleaned again, although all that a run took is in the trash."""
        return self.intent.state is IntentState.TRASHED and not self.is_orphan and self.marks_job_cleaned

    @property
    def reported_job(self) -> Job:
        """The job as messages name it: an orphan by its path."""
        return replace(self.job, id=self.intent.name) if self.is_orphan else self.job

    @property
    def staged_bytes(self) -> int:
        """The bytes of its artifacts that are in the trash for a grace period."""
        return sum(self.sizes.get(found, 0) for found, _ in self.items)

    def moves_to_trash(self, grace: timedelta) -> bool:
        """Return whether the job's artifacts stay in the trash for a grace period."""
        return bool(grace) and not self.removals and bool(self.items)

    def audit_details(self) -> dict[str, object]:
        """Return the job's details for the audit log."""
        labels = [printable(found.label) for found, _ in self.items]
        return {"job_id": printable(self.job.id), "status": printable(self.job.status), "artifacts": labels}


class Staging:
    """Claims jobs (and orphans) of one run and moves their artifacts into the trash, or back."""

    def __init__(self, run: RunContext, session: StoreSession, planner: Planner, stats: RunStats) -> None:
        self._run = run
        self._session = session
        self._planner = planner
        self._stats = stats
        self._groups = itertools.count(1)
        self._withdrawn: list[str] = []
        self._seen_blockers: tuple[float, Blockers] | None = None
        self._locks: tuple[float, LockList] | None = None
        self._list_locks()

    # -- claim -------------------------------------------------------------------------------------

    def claim(self, planned: Sequence[PlannedJob], sizes: Mapping[str, int]) -> list[ClaimedJob]:
        """Write the intents of all jobs whose rows have not changed since the plan.

        Args:
            planned: the jobs and their artifacts.
            sizes: sizes in bytes measured earlier, by job id.
        """
        group, numbers = self._next_group(), itertools.count(1)
        claimed: list[ClaimedJob] = []
        for start in range(0, len(planned), JOBS_PER_TRANSACTION):
            batch = planned[start : start + JOBS_PER_TRANSACTION]
            if start + len(batch) == len(planned):
                self._list_locks()
            claimed += self._claim_batch(self._recordable(batch, sizes), sizes, group, numbers)
        return claimed

    def _claim_batch(
        self, planned: Sequence[PlannedJob], sizes: Mapping[str, int], group: str, numbers: Iterator[int]
    ) -> list[ClaimedJob]:
        intents = {
            plan.job.id: self._intent(
                f"{group}.{next(numbers)}",
                group,
                IntentKind.JOB,
                plan.artifacts,
                plan.job.id,
                plan.job.status,
            )
            for plan in planned
        }

        def work(connection: Connection) -> dict[str, str]:
            refused = self._refused(connection, [plan.job for plan in planned])
            self._session.ledger.add_intents(
                connection,
                [intent for job, intent in intents.items() if job not in refused],
                self._run.clock(),
            )
            return refused

        refused = self._session.database.write(work)
        claimed = []
        for plan in planned:
            job, decision = plan.job, plan.decision
            if job.id in refused:
                self._stats.skipped(job, refused[job.id])
                continue
            intent = intents[job.id]
            claimed.append(
                ClaimedJob(
                    intent,
                    job,
                    decision.job_class,
                    decision.age,
                    list(intent.items),
                    known_size=sizes.get(job.id, 0),
                    early=decision.reason if decision.ahead_of_retention else None,
                )
            )
        return claimed

    def _recordable(self, planned: Sequence[PlannedJob], sizes: Mapping[str, int]) -> list[PlannedJob]:
        """Return the jobs whose rows can be updated; the others fail here, before anything of them moves."""
        refused = self._refused_rows(planned, sizes)
        for plan in planned:
            if plan.job.id in refused:
                self._stats.failed(plan.job, refused[plan.job.id])
        return [plan for plan in planned if plan.job.id not in refused]

    def _refused_rows(self, batch: Sequence[PlannedJob], sizes: Mapping[str, int]) -> dict[str, str]:
        """Rehearse the record of jobs; return why the database refuses some of them, by id."""
        session, now = self._session, self._run.clock()
        rows = [(plan.job.id, sizes.get(plan.job.id, 0), "rehearsal") for plan in batch]
        try:
            session.database.rehearse(lambda connection: session.jobs.mark_cleaned(connection, rows, now))
        except RowError as error:
            if len(batch) == 1:
                return {batch[0].job.id: f"Its row cannot be updated, so nothing was deleted. {error}"}
            return {
                job_id: reason
                for plan in batch
                for job_id, reason in self._refused_rows([plan], sizes).items()
            }
        return {}

    def claim_orphans(self, entries: Sequence[Found], measured_at: datetime | None) -> list[ClaimedJob]:
        """Write the intents of those entries that are still orphans, or leftovers.

        ``measured_at`` is a time before the inventory looked at leftovers, None for orphans.
        """
        group = self._next_group()
        intents = [
            self._intent(f"{group}.{number}", group, IntentKind.ORPHAN, [found])
            for number, found in enumerate(entries, start=1)
        ]

        def work(connection: Connection) -> list[tuple[Intent, Job | None]]:
            claimants = self._planner.claimants(connection, [found.artifact for found in entries])
            claimable = []
            for found, intent in zip(entries, intents, strict=True):
                owners = claimants.get(found.artifact, [])
                if blocking_claimant(owners, set()) is None and (measured_at is not None or not owners):
                    claimable.append((intent, newest_owner(owners)))
            added = [intent for intent, _ in claimable]
            self._session.ledger.add_intents(connection, added, self._run.clock())
            return claimable

        return [
            ClaimedJob(
                intent,
                Job(id=intent.items[0][0].artifact.name, status=ORPHAN),
                JobClass.UNKNOWN,
                None,
                list(intent.items),
                owner=owner,
                measured_at=measured_at,
            )
            for intent, owner in self._session.database.write(work)
        ]

    def _refused(self, connection: Connection, jobs: Sequence[Job]) -> dict[str, str]:
        """Return, by job id, why a job must stay: its row changed, or it has a new hold."""
        ids = [job.id for job in jobs]
        rows = self._session.jobs.rows(connection, ids)
        holds = self._planner.holds(connection, ids)
        now = self._run.clock()
        reasons = {}
        for job in jobs:
            row, hold = rows.get(job.id), holds.get(job.id)
            if row is None:
                reasons[job.id] = "its row was removed"
            elif row.cleaned or row.job != job:
                reasons[job.id] = "its row changed after the plan was made"
            elif hold is not None and hold.is_active(now):
                reasons[job.id] = f"held by {printable(hold.owner)}: {printable(hold.reason)}"
        return reasons

    def _next_group(self) -> str:
        return group_name(self._run.id, next(self._groups))

    def _intent(  # noqa: PLR0917
        self,
        intent_id: str,
        group: str,
        kind: IntentKind,
        artifacts: Iterable[Found],
        job_id: str = "",
        status: str = "",
    ) -> Intent:
        """Return an intent; small artifacts share a folder, unless they are to wait in the trash."""
        grace = self._run.grace
        is_grouped = not grace
        items = tuple(
            (found, f"{group}/{found.artifact.name}" if is_grouped and found.is_small else f"{intent_id}.{n}")
            for n, found in enumerate(artifacts, start=1)
        )
        purge_after = self._run.clock() + grace if grace else None
        return Intent(intent_id, self._run.id, kind, job_id, status, items, purge_after=purge_after)

    # -- stage -------------------------------------------------------------------------------------

    def stage_and_confirm(self, group: Sequence[ClaimedJob], in_flight: Collection[Job]) -> list[ClaimedJob]:
        """Move the artifacts of claimed jobs into the trash, and check again whether the jobs can be cleaned.

        Args:
            group: jobs whose intents are written; those that must stay are put back, counted and reported.
            in_flight: earlier jobs of this run that are not recorded yet, as they were claimed.

        Returns:
            The jobs that are in the trash, each with the items that are there.
        """
        try:
            return self.confirm(self.stage(group), in_flight)
        except (LockHeldError, StoreError):
            self._undo(group)
            raise

    def stage(self, group: Sequence[ClaimedJob]) -> list[ClaimedJob]:
        """Keep the logs that are to be kept, then move every artifact of each job into the trash."""
        blockers = self._blockers()
        ready = [job for job in self._unused(group, blockers) if self._is_prepared(job)]
        if self._run.hooks.read_jobs:  # a copy can take hours, and what changed since is not in it
            self._seen_blockers = None
            ready = self._unused(ready, replace(self._blockers(), quiet_since=blockers.quiet_since))
        # Before the first file moves: a full disk must not cause deletions without a line in the audit log.
        self._run.audit_all(("cleaning", job.audit_details()) for job in ready if job.items)
        return [job for job in ready if self._stage_job(job, blockers)]

    def _list_locks(self) -> None:
        """Begin to read the list of locks for the staging that follows soon."""
        now = monotonic_seconds()
        if self._locks is None or now - self._locks[0] > _FRESH_SECONDS / 2:
            self._locks = now, LockList()

    def _blockers(self) -> Blockers:
        """Return what blocks entries now; a moment later the answer is the same."""
        now = monotonic_seconds()
        listed: tuple[float, LockList | None] | None = self._locks
        self._locks = None
        if self._seen_blockers is None or now - self._seen_blockers[0] > _FRESH_SECONDS:
            if listed is None or now - listed[0] > _FRESH_SECONDS:  # the claim waited for the database, say
                listed = (now, None)
            self._seen_blockers = (listed[0], self._run.blockers(self._session.roots.values(), listed[1]))
        return self._seen_blockers[1]

    def _unused(self, jobs: Iterable[ClaimedJob], blockers: Blockers) -> list[ClaimedJob]:
        """Return the jobs whose artifacts nothing blocks; put back the others."""
        unused = []
        for job in jobs:
            found = [found for found, _ in job.items]
            try:
                job_id = None if job.is_orphan else job.job.id
                reason = _stay_reason(self._session, blockers, job_id, found, job.measured_at)
            except OSError as error:
                self.put_back(job, [])
                self._stats.failed(job.job, describe_oserror(error))
                continue
            if reason is None:
                unused.append(job)
            else:
                self.put_back(job, [])
                self._stats.skipped(job.reported_job, reason)
        return unused

    def _is_prepared(self, job: ClaimedJob) -> bool:
        """Let the hooks prepare the removal of a job; put it back if they fail."""
        owner = job.owner if job.is_orphan else job.job
        if owner is None or not job.items:
            return True
        try:
            for found, _ in job.items:
                self._require_movable(found)
        except OSError as error:
            self.put_back(job, [])
            self._stats.failed(job.job, describe_oserror(error))
            return False
        # Where its logs cannot be kept, each run would otherwise make another backup.
        if self._run.hooks.read_jobs and not self._keep_logs(job):
            return False
        with stoppable_by(self._run.stop):
            reason = self._run.hooks.before_stage(owner, [self._path(found) for found, _ in job.items])
        if reason is None:
            return True
        self.put_back(job, [])
        if self._run.stop.is_set():
            log.info("Job %s stays, because the run was stopped: %s", printable(job.job.id), reason)
        else:
            self._stats.failed(job.job, reason)
        return False

    def _require_movable(self, found: Found) -> None:
        """Refuse what cannot move, of whose job each run would otherwise make another backup.

        The entry ``..`` of a folder changes, so it must be writable (rename(2)).  In a sticky root, an entry
        must be ours.  In a process with capabilities everything counts as such: older kernels and container
        runtimes cannot answer for these (faccessat2(2)).

        Raises:
            OSError: it is not writable, or not ours.
        """
        root, name = self._session.roots[found.artifact.root], found.artifact.name
        if exceeds_user():
            return
        try:
            entry = os.stat(name, dir_fd=root.fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        folder = os.fstat(root.fd)
        is_ours = not folder.st_mode & stat.S_ISVTX or os.geteuid() in {0, folder.st_uid, entry.st_uid}
        if not is_ours or (found.is_folder and not os.access(name, os.W_OK, dir_fd=root.fd)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), found.label)

    def _path(self, found: Found) -> ArtifactPath:
        root = self._session.roots[found.artifact.root]
        return ArtifactPath(found, root.path / found.artifact.name, (root.device, root.inode))

    def _stage_job(self, job: ClaimedJob, blockers: Blockers) -> bool:
        try:
            if not self._keep_logs(job):
                return False
            if self._run.grace:
                job.sizes = {found: self._measure(found) for found, _ in job.items}
                job.known_size = job.staged_bytes
                if self._run.stop.is_set():  # the measurement is incomplete
                    self.put_back(job, [])
                    return False
            # Move nothing if the lock was lost, for example during a backup that takes hours.
            self._session.database.verify_lock()
            # A download can have started since the group was checked.
            if self._is_downloaded(job, blockers, []):
                return False
            staged: list[Item] = []
            for found, item in job.items:
                log.debug("renameat %s -> trash %s", printable(found.label), printable(item))
                try:
                    if self._session.trashes[found.artifact.root].stage(item, [found.artifact.name]):
                        staged.append((found, item))
                except OSError as error:
                    self.put_back(job, staged)
                    error.filename = found.label
                    raise
            job.items = staged
            return not self._is_downloaded(job, blockers, staged)
        except OSError as error:
            self._stats.failed(job.job, describe_oserror(error))
            return False

    def _is_downloaded(self, job: ClaimedJob, blockers: Blockers, staged: Sequence[Item]) -> bool:
        """Return whether a zip of the job's results is under construction; then put back what is staged."""
        reason = _download_reason(self._session, blockers, None if job.is_orphan else job.job.id)
        if reason is None:
            return False
        self.put_back(job, staged)
        self._stats.skipped(job.reported_job, reason)
        return True

    def _measure(self, found: Found) -> int:
        root = self._session.roots[found.artifact.root]
        return measure(root, found.artifact.name, self._run.stop).bytes

    def _keep_logs(self, job: ClaimedJob) -> bool:
        """Keep a job's logs; return False if that failed or the run was stopped, so that the job stays."""
        if job.job_class not in self._run.policy.keep_logs:
            return True
        try:
            for found, _ in job.items:
                if found.is_folder:
                    keep_logs(
                        self._session.roots[found.artifact.root],
                        found.artifact.name,
                        self._run.policy.log_patterns,
                        self._run.config.paths.logs / "jobs" / job.job.id,
                        stop=self._run.stop,
                    )
        except OSError as error:
            self.put_back(job, [])
            if not isinstance(error, InterruptedError):
                self._stats.failed(job.job, describe_oserror(error))
            return False
        return True

    def confirm(self, group: list[ClaimedJob], in_flight: Collection[Job]) -> list[ClaimedJob]:
        """Check again after the move, and put back artifacts that another job now needs.

        This check sees a job that was submitted before its upload moved.  A job submitted later finds no
        upload.
        """
        if not group:
            return group
        reasons = {job.intent.id: self._marker_reason(job) for job in group}
        jobs = [job for job in group if not job.is_orphan]
        artifacts = [found.artifact for job in group for found, _ in job.items]
        with self._session.database.read() as connection:
            refused = self._refused(connection, [job.job for job in jobs])
            for job in jobs:
                reasons[job.intent.id] = refused.get(job.job.id, reasons[job.intent.id])
            being_cleaned = {job.job.id for job in jobs if reasons[job.intent.id] is None}
            # The rows of all other jobs count as they are now: one that is being deleted can have run again.
            claimants = self._planner.claimants(connection, artifacts, besides=being_cleaned)
        unchanged = {job.id: job for job in in_flight}
        being_cleaned |= {
            claimant.job.id
            for owners in claimants.values()
            for claimant in owners
            if not claimant.held and unchanged.get(claimant.job.id) == claimant.job
        }
        confirmed = []
        for job in group:
            reason = reasons[job.intent.id]
            if reason is not None:
                self.put_back(job, job.items)
                self._stats.skipped(job.reported_job, reason)
                continue
            needed = [
                item
                for item in job.items
                if blocking_claimant(claimants.get(item[0].artifact, ()), being_cleaned) is not None
            ]
            if not self.put_back_needed(job, needed):
                continue
            job.items = [item for item in job.items if item not in needed]
            if job.is_orphan and not job.items:  # it is none any more, or is gone: nothing is left to record
                self.put_back(job, [])
                continue
            confirmed.append(job)
        return confirmed

    def _marker_reason(self, job: ClaimedJob) -> str | None:
        """Return why a staged job must stay: a keep marker can appear during a backup."""
        for found, item in job.items:
            if found.artifact.root is RootName.RESULTS:
                path = artifact_path(item, found.artifact.name)
                reason = keep_marker_reason(self._session.trashes[RootName.RESULTS].fd, path)
                if reason is not None:
                    return reason
        return None

    # -- put back ----------------------------------------------------------------------------------

    def put_back(self, job: ClaimedJob, staged: Sequence[Item]) -> None:
        """Undo a job's staging and close its intent, unless an artifact cannot be moved back."""
        try:
            is_complete = self.restore(staged)
        except OSError as error:
            self._fail_open(job, error)
            return
        if is_complete:
            self._withdrawn.append(job.intent.id)
        else:
            self._keep_open(job)

    def put_back_needed(self, job: ClaimedJob, needed: Sequence[Item]) -> bool:
        """Put back what others need of a job; return False if a place is taken.

        Then all of the job waits for a person: the record of the rest would close the intent, and nothing
        would know what stays in the trash.
        """
        try:
            if self.restore(needed):
                if needed and not job.is_orphan:
                    # Its place says nothing any more about whether the rest of the job was deleted.
                    left = tuple(pair for pair in job.intent.items if pair not in needed)
                    job.intent = replace(job.intent, items=left)
                    self.save_incomplete(job.intent, job.intent.error)
                return True
            self.restore([item for item in job.items if item not in needed])
        except OSError as error:
            self._fail_open(job, error)
            return False
        self._keep_open(job)
        self._stats.skipped(job.reported_job, "another entry is in the place of what another job needs")
        return False

    def _keep_open(self, job: ClaimedJob) -> None:
        """Keep the intent of a job with an item that cannot go back, and say what to do."""
        command = suggested("trash restore", job.intent.name)
        reason = f"Another entry is in an artifact's place. Move it away, then run {command}."
        self.save_incomplete(job.intent, reason)

    def _fail_open(self, job: ClaimedJob, error: OSError) -> None:
        """Keep the intent of a job with an item that the filesystem does not move back, for the next run."""
        reason = f"It cannot be moved back from the trash: {describe_oserror(error)}"
        self.save_incomplete(job.intent, reason)
        self._stats.failed(job.reported_job, reason)

    def save_incomplete(self, intent: Intent, error: str | None, freed_bytes: int = 0) -> None:
        """Record an incomplete attempt in an open intent, and the bytes that it freed, in a transaction."""
        ledger, incomplete = self._session.ledger, with_error(intent, error, freed_bytes)

        def work(connection: Connection) -> None:
            ledger.save_intent(connection, incomplete)
            ledger.add_to_run(connection, self._run.id, {"bytes_freed": freed_bytes})

        self._session.database.write(work)

    def _undo(self, group: Sequence[ClaimedJob]) -> None:
        """Put back staged artifacts after the database was lost: another run might own the intents."""
        for job in group:
            try:
                self.restore(job.items)
            except OSError as error:  # the other run puts it back too
                log.debug("%s was not put back: %s", job.intent.id, error)

    def restore(self, staged: Sequence[Item]) -> bool:
        """Move artifacts back; return False if a place is taken and its artifact stays in the trash.

        Raises:
            OSError: an artifact could not be moved; all others were tried.
        """
        is_complete, errors = True, []
        for found, item in staged:
            try:
                is_taken = bool(self._session.trashes[found.artifact.root].restore(item))
            except OSError as error:
                error.filename = found.label
                errors.append(error)
                continue
            if is_taken:
                is_complete = False
                message = (
                    f"{printable(found.label)} exists again. The earlier one stays in the trash as {item}."
                )
                self._run.emit(Warned(message))
        if errors:
            raise errors[0]
        return is_complete

    def delete_withdrawn(self) -> None:
        """Delete the intents of jobs that were put back."""
        if self._withdrawn:
            withdrawn, self._withdrawn = self._withdrawn, []
            self._session.database.write(
                lambda connection: self._session.ledger.delete_intents(connection, withdrawn)
            )


def stay_reason(
    session: StoreSession,
    blockers: Blockers,
    job_id: str | None,
    artifacts: Iterable[Found],
    measured_at: datetime | None = None,
) -> str | None:
    """Return why the artifacts of a job must stay where they are for now; None when they can go.

    Args:
        session: the job store.
        blockers: what blocks entries at present.
        job_id: the job, or None for an orphan.
        artifacts: what would go.
        measured_at: a time before the inventory looked at them, if they outlasted cleaned jobs.  Then a run
            can have moved them before, which renews their ctime.
    """
    try:
        return _stay_reason(session, blockers, job_id, artifacts, measured_at)
    except OSError as error:
        return describe_oserror(error)


def _stay_reason(
    session: StoreSession,
    blockers: Blockers,
    job_id: str | None,
    artifacts: Iterable[Found],
    measured_at: datetime | None,
) -> str | None:
    """Return what :func:`stay_reason` does; raise OSError if an artifact cannot be checked."""
    for found in artifacts:
        root, name = session.roots[found.artifact.root], found.artifact.name
        try:
            status = os.stat(name, dir_fd=root.fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            error.filename = found.label
            raise
        if (status.st_dev, status.st_ino) in session.protected_inodes:
            return f"{printable(found.label)} is a folder of eemtcleanupd's configuration"
        is_folder = stat.S_ISDIR(status.st_mode)
        reason = blockers.reason(root, name, is_folder=is_folder)
        if reason is None and found.artifact.root is RootName.RESULTS:
            reason = keep_marker_reason(root.fd, name)
        if reason is None and job_id is not None and is_folder != found.is_folder:
            # Its logs would not be kept.  The plan could not check it, or it was replaced.
            reason = f"{printable(found.label)} changed during the run"
        if reason is None and job_id is None:
            # It can have been replaced since it was measured, by the upload of a job without a row.
            changed_at = _changed_at(root, name, status)
            if measured_at is None:
                reason = blockers.change_reason(found.label, changed_at)
            elif changed_at > measured_at.timestamp():
                reason = f"{printable(found.label)} was replaced during the run"
        if reason is not None:
            return reason
    return _download_reason(session, blockers, job_id)


def _download_reason(session: StoreSession, blockers: Blockers, job_id: str | None) -> str | None:
    """Return why the zip of a job keeps it, also a new one, which might be under construction."""
    if job_id is None:
        return None
    return blockers.download_reason(session.roots[RootName.RESULTS], job_id + ARCHIVE_SUFFIX)


@with_file_access
def _changed_at(root: Root, name: str, status: os.stat_result) -> float:
    """Return when an entry, or a folder in it, changed last, also by a copy that keeps old times.

    The files in it do not count: the removal of another link of a file renews its ctime.
    """
    changed_at = max(status.st_mtime, status.st_ctime)

    def enter(folder: Folder) -> None:
        nonlocal changed_at
        changed_at = max(changed_at, folder.status.st_mtime, folder.status.st_ctime)

    walk(root, name, None, enter=enter)
    return changed_at


def describe_oserror(error: OSError) -> str:
    """Return the error and its file name, as a job's record shows them."""
    name = f" {printable(str(error.filename))}" if error.filename else ""
    return f"{error.strerror or error}{name}"
