"""From the ledger into the trash: jobs are claimed, staged and looked at once more, or put back."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

from sqlalchemy import Connection

from eemtcleanupd.cleanup.claims import ClaimedJob, Tools, audit_details, describe_oserror
from eemtcleanupd.cleanup.outcomes import RunStats
from eemtcleanupd.cleanup.planner import PlannedJob
from eemtcleanupd.deletion.blockers import Blockers, keep_marker_reason
from eemtcleanupd.deletion.job_logs import keep_logs
from eemtcleanupd.deletion.walk import measure
from eemtcleanupd.errors import LockHeldError, StoreError
from eemtcleanupd.events import Warned
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Found, Job, JobClass, RootName
from eemtcleanupd.policy.ownership import blocking_claimant
from eemtcleanupd.store.intents import Intent, IntentKind, with_error

log = logging.getLogger(__name__)


class Staging:
    """Claims jobs (and orphans) of one run and moves their artifacts into the trash, or back."""

    def __init__(self, tools: Tools, outcomes: RunStats) -> None:
        self._tools = tools
        self._outcomes = outcomes
        self._numbers = itertools.count(1)
        self._withdrawn: list[str] = []

    # -- claim -------------------------------------------------------------------------------------

    def claim(self, planned: Sequence[PlannedJob], sizes: Mapping[str, int]) -> list[ClaimedJob]:
        """Write the intents of all jobs whose rows still are as planned, in one short transaction.

        Args:
            planned: the jobs and their artifacts.
            sizes: bytes measured earlier, by job id.
        """
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
                self._outcomes.skipped(plan.job, refused[plan.job.id])
                continue
            intent = intents[plan.job.id]
            claimed.append(
                ClaimedJob(
                    intent,
                    plan.job,
                    plan.decision.job_class,
                    plan.decision.age,
                    list(intent.items),
                    known_size=sizes.get(plan.job.id, 0),
                    early=plan.decision.reason if plan.decision.ahead_of_retention else None,
                )
            )
        return claimed

    def claim_orphan(self, found: Found) -> ClaimedJob | None:
        """Write the intent of an entry that no row names; None when a row names it now."""
        artifact = found.artifact
        intent = self._intent(IntentKind.ORPHAN, "", "", [found])

        def work(connection: Connection) -> bool:
            if self._tools.planner.claimants(connection, [artifact]).get(artifact):
                return False
            self._tools.ledger.add_intents(connection, [intent], self._tools.clock())
            return True

        if not self._tools.database.write(work):
            return None
        job = Job(id=artifact.name, status="orphan")
        return ClaimedJob(intent, job, JobClass.UNKNOWN, None, list(intent.items))

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

    def stage_and_confirm(self, group: Sequence[ClaimedJob], in_flight: Collection[str]) -> list[ClaimedJob]:
        """Move the artifacts of claimed jobs into the trash, and look once more whether they may go.

        Args:
            group: jobs whose intents are written; those that stay are put back, counted and told.
            in_flight: ids of jobs that went before and are not recorded yet.

        Returns:
            The jobs that are in the trash, each with what is there of it.
        """
        try:
            return self._confirm(self._stage(group), in_flight)
        except (LockHeldError, StoreError):
            self._undo(group)
            raise

    def _stage(self, group: Sequence[ClaimedJob]) -> list[ClaimedJob]:
        """Keep the logs that are to be kept, then move every artifact of each job into the trash."""
        obstacles = Blockers.snapshot(self._tools.roots.values())
        ready = [job for job in group if self._may_go(job, obstacles)]
        # Before the first file moves: a full disk must not leave deletions that the audit log knows not of.
        self._tools.audit(("cleaning", audit_details(job)) for job in ready if job.items)
        return [job for job in ready if self._stage_job(job)]

    def _may_go(self, job: ClaimedJob, obstacles: Blockers) -> bool:
        tools = self._tools
        try:
            for found, _ in job.items:
                root = tools.roots[found.artifact.root]
                reason = obstacles.reason(root, found.artifact.name)
                if reason is None and found.artifact.root is RootName.RESULTS:
                    reason = keep_marker_reason(root.fd, found.artifact.name)
                if reason is not None:
                    self.put_back(job, [])
                    self._outcomes.skipped(job.job, reason)
                    return False
        except OSError as error:
            self._outcomes.failed(job, describe_oserror(error))
            return False
        if job.intent.kind is IntentKind.JOB and job.items:
            reason = tools.guards.before_stage(job.job, [found for found, _ in job.items])
            if reason is not None:
                self.put_back(job, [])
                self._outcomes.failed(job, reason)
                return False
        return True

    def _stage_job(self, job: ClaimedJob) -> bool:
        tools = self._tools
        try:
            if job.job_class in tools.policy.keep_logs:
                self._keep_logs(job)
            if tools.grace:
                job.known_size = sum(
                    measure(tools.roots[found.artifact.root], found.artifact.name, tools.stop).bytes
                    for found, _ in job.items
                )
                if tools.stop.is_set():  # then that is not all of it
                    self.put_back(job, [])
                    return False
            # Nothing moves for a run that is not ours any more: what came before (a backup) may take hours.
            tools.database.verify_lock()
            staged: list[tuple[Found, str]] = []
            try:
                for found, item in job.items:
                    log.debug("renameat %s/%s -> trash %s", found.artifact.root, found.artifact.name, item)
                    if tools.trashes[found.artifact.root].stage(item, [found.artifact.name]):
                        staged.append((found, item))
            except OSError:
                self.put_back(job, staged)
                raise
            job.items = staged
        except OSError as error:
            self._outcomes.failed(job, describe_oserror(error))
            return False
        return True

    def _keep_logs(self, job: ClaimedJob) -> None:
        for found, _ in job.items:
            if found.is_folder:
                keep_logs(
                    self._tools.roots[found.artifact.root],
                    found.artifact.name,
                    self._tools.policy.log_patterns,
                    self._tools.logs_folder / "jobs" / job.job.id,
                )

    def _confirm(self, group: list[ClaimedJob], in_flight: Collection[str]) -> list[ClaimedJob]:
        """Look once more, now that nobody can see the files: put back what somebody came to need.

        A job that was submitted before its upload vanished is seen here; one that is submitted later finds
        no upload.
        """
        tools = self._tools
        if not group:
            return group
        jobs = [job.job for job in group if job.intent.kind is IntentKind.JOB]
        artifacts = [found.artifact for job in group for found, _ in job.items]
        with tools.database.read() as connection:
            changed = self._changed(connection, jobs)
            claimants = tools.planner.claimants(connection, artifacts)
        reasons = {job.intent.id: self._marked(job) for job in group}
        for job in group:
            if job.intent.kind is IntentKind.JOB and job.job.id in changed:
                reasons[job.intent.id] = changed[job.job.id]
        staying = {job.job.id for job in group if reasons[job.intent.id] is not None}
        going = {job.id for job in jobs if job.id not in staying} | set(in_flight)
        confirmed = []
        for job in group:
            reason = reasons[job.intent.id]
            if reason is not None:
                self.put_back(job, job.items)
                self._outcomes.skipped(job.job, reason)
                continue
            needed = [
                e for e in job.items if blocking_claimant(claimants.get(e[0].artifact, ()), going) is not None
            ]
            self.restore(needed)
            job.items = [entry for entry in job.items if entry not in needed]
            confirmed.append(job)
        return confirmed

    def _marked(self, job: ClaimedJob) -> str | None:
        """Return why a staged job must stay: its marker may have come up while a backup was made."""
        for found, item in job.items:
            if found.artifact.root is RootName.RESULTS:
                place = f"{item}/{found.artifact.name}"
                reason = keep_marker_reason(self._tools.trashes[RootName.RESULTS].fd, place)
                if reason is not None:
                    return reason
        return None

    # -- put back ----------------------------------------------------------------------------------

    def put_back(self, job: ClaimedJob, staged: Sequence[tuple[Found, str]]) -> None:
        """Undo a job's staging and close its intent, unless something could not go back."""
        if self.restore(staged):
            self._withdrawn.append(job.intent.id)
            return
        words = "there is something in its place again; move it away, then `trash restore` puts the rest back"
        intent = with_error(job.intent, words, 0)
        self._tools.database.write(lambda c: self._tools.ledger.save_intent(c, intent))

    def _undo(self, group: Sequence[ClaimedJob]) -> None:
        """Put back what was staged when the database was lost: the intents may be another run's by now."""
        for job in group:
            try:
                self.restore(job.items)
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

    def drop_withdrawn(self) -> None:
        """Close the intents that came to nothing."""
        if self._withdrawn:
            withdrawn, self._withdrawn = self._withdrawn, []
            self._tools.database.write(lambda c: self._tools.ledger.delete_intents(c, withdrawn))
