"""The jobs that the next run cleans, and those that it keeps for a rule, decided as in a dry run."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field

from eemtcleanupd.cleanup.context import RunContext
from eemtcleanupd.cleanup.planner import Planner
from eemtcleanupd.cleanup.session import open_session
from eemtcleanupd.cleanup.staging import stay_reason
from eemtcleanupd.deletion.walk import measure
from eemtcleanupd.model import Decision, JobClass
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.jobs import JobTable


@dataclass(slots=True)
class DueJobs:
    """Ids of the jobs that need a decision now.

    Attributes:
        cleaned: jobs that the next run cleans.
        kept: jobs whose retention has ended, or has no valid start, and that the next run keeps.
        without_data: jobs whose retention has ended and that have nothing in place.
        shared_bytes: what several of these jobs share, by the class of the job that it goes with.  It is part
            of no job's recorded size.
    """

    cleaned: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    without_data: list[str] = field(default_factory=list)
    shared_bytes: Counter[JobClass] = field(default_factory=Counter)


def due_jobs(run: RunContext, database: Database, jobs: JobTable) -> DueJobs:
    """Decide on all candidates; read no file, and only the folders of jobs that are due.

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
        blockers = run.blockers(session.roots.values())
        sharing: set[str] = set()
        shared: set[str] = set()
        for decisions in planner.decisions(config.performance.batch_size):
            due.kept += [each.job.id for each in decisions if not each.clean and _is_over(each, policy)]
            for plan in planner.plan([each for each in decisions if each.clean], sharing):
                job_id = plan.job.id
                if job_id in unfinished or plan.trashed is not None or not (plan.artifacts or plan.shared):
                    due.without_data.append(job_id)
                    continue
                if plan.problem or stay_reason(session, blockers, job_id, plan.artifacts):
                    due.kept.append(job_id)
                    continue
                due.cleaned.append(job_id)
                if plan.shared:  # a later job that shares the upload can delete it
                    sharing.add(job_id)
                    shared.update(plan.shared)
                for found in plan.artifacts:
                    if found.label in shared:
                        root = session.roots[found.artifact.root]
                        due.shared_bytes[plan.decision.job_class] += measure(
                            root, found.artifact.name, run.stop
                        ).bytes
    return due


def _is_over(decision: Decision, policy: Policy) -> bool:
    """Return whether the retention of a job does not keep it: the candidates are a few jobs more."""
    job_class, workflow = decision.job_class, decision.job.workflow_type
    return decision.age is None or decision.age >= policy.retention(job_class, workflow)
