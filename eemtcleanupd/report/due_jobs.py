"""The jobs that the next run cleans, and those that it keeps for a rule, decided as in a dry run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from eemtcleanupd.cleanup.context import RunContext
from eemtcleanupd.cleanup.planner import PlannedJob, Planner
from eemtcleanupd.cleanup.recovery import stay_in_trash
from eemtcleanupd.cleanup.session import open_session
from eemtcleanupd.cleanup.staging import stay_reason
from eemtcleanupd.deletion.walk import measure
from eemtcleanupd.model import Decision, JobClass, RootName
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.jobs import JobTable

_MOST_MEASURED = 100


@dataclass(slots=True)
class DueJobs:
    """The jobs that need a decision now.

    Attributes:
        cleaned: ids of jobs that the next run cleans, and whose size is the recorded one.
        measured: how many more it cleans that were measured: their recorded size can contain a shared upload
            that stays, or lack one that is deleted.
        measured_bytes: their bytes, by class.
        unmeasured: how many of ``cleaned`` share an upload, but were too many to measure.
        kept: ids of jobs whose retention has ended, or has no valid start, and that the next run keeps.
        without_data: ids of jobs whose retention has ended and that have nothing in place.
    """

    cleaned: list[str] = field(default_factory=list)
    measured: int = 0
    measured_bytes: Counter[JobClass] = field(default_factory=Counter)
    unmeasured: int = 0
    kept: list[str] = field(default_factory=list)
    without_data: list[str] = field(default_factory=list)


def due_jobs(run: RunContext, database: Database, jobs: JobTable) -> DueJobs:
    """Decide on all candidates.  This reads the folders of jobs that are due, and measures few of them.

    Raises:
        StoreError: the database cannot be used.
        RootError: the folders that could keep a job cannot be used.
        OSError: a folder cannot be read.
    """
    config, policy = run.config, run.policy
    due = DueJobs()
    with ExitStack() as stack:
        session = open_session(config, database, jobs, policy, stack)
        jobs.gather_candidates(run.started_at)
        open_intents = session.ledger.open_intents() if session.has_ledger else []
        unfinished = {intent.job_id for intent in open_intents}
        planner = Planner(run, session)
        if staying := stay_in_trash(session):
            planner.decide_again(staying)
        blockers = run.blockers(session.roots.values())
        sharing: set[str] = set()
        plans: list[PlannedJob] = []
        for decisions in planner.decisions(config.performance.batch_size):
            due.kept += [each.job.id for each in decisions if not each.clean and _is_over(each, policy)]
            for plan in planner.plan([each for each in decisions if each.clean], sharing):
                job_id = plan.job.id
                if job_id in unfinished or plan.trashed is not None or not (plan.artifacts or plan.shared):
                    due.without_data.append(job_id)
                elif plan.problem or stay_reason(session, blockers, job_id, plan.artifacts):
                    due.kept.append(job_id)
                else:
                    plans.append(plan)
                    if plan.shared:  # a later job that shares the upload can delete it
                        sharing.add(job_id)
        for plan, is_shared in zip(plans, _share_uploads(database, jobs, plans), strict=True):
            if is_shared and due.measured < _MOST_MEASURED:
                due.measured += 1
                due.measured_bytes[plan.decision.job_class] += sum(
                    measure(session.roots[found.artifact.root], found.artifact.name, run.stop).bytes
                    for found in plan.artifacts
                )
            else:
                due.cleaned.append(plan.job.id)
                due.unmeasured += is_shared
    return due


def _share_uploads(database: Database, jobs: JobTable, plans: Sequence[PlannedJob]) -> Iterator[bool]:
    """Yield for each job whether it shares an upload, or did so with a job that was cleaned since."""
    shared = {label for plan in plans for label in plan.shared}
    uploads = [
        {found.artifact.name for found in plan.artifacts if found.artifact.root is RootName.UPLOADS}
        for plan in plans
    ]
    with database.read() as connection:
        rows = jobs.naming(connection, sorted(set().union(*uploads)))
    named = Counter(row.job.dem_filename for row in rows)
    for plan, names in zip(plans, uploads, strict=True):
        yield (
            bool(plan.shared)
            or any(found.label in shared for found in plan.artifacts)
            or any(named[name] > 1 for name in names)
        )


def _is_over(decision: Decision, policy: Policy) -> bool:
    """Return whether the retention of a job has ended: candidates include some whose retention has not."""
    job_class, workflow = decision.job_class, decision.job.workflow_type
    return decision.age is None or decision.age >= policy.retention(job_class, workflow)
