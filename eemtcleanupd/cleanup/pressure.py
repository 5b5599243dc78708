"""Cleaning under disk pressure: first the trash, then jobs ahead of their retention, no more than needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from eemtcleanupd.cleanup.pipeline import Pipeline
from eemtcleanupd.cleanup.planner import PlannedJob, Planner, Selection
from eemtcleanupd.cleanup.recovery import purge
from eemtcleanupd.cleanup.session import StoreSession, job_table
from eemtcleanupd.deletion.filesystem import disk_usage
from eemtcleanupd.events import Warned
from eemtcleanupd.formatting import human_age
from eemtcleanupd.model import Decision, RootName
from eemtcleanupd.policy.breakers import is_too_many
from eemtcleanupd.policy.pressure import DiskUsage, Pressure, early_policy
from eemtcleanupd.policy.retention import Policy

_PAGE = 100


@dataclass(frozen=True, slots=True)
class PressureTarget:
    """How much space a run must free, measured when it started.

    Both figures end the run's early cleaning, the first one that is reached.  The filesystem's own figure can
    lag behind the deletion (btrfs, XFS), and the run need not make up for what others write meanwhile.
    """

    pressure: Pressure
    before: DiskUsage
    needed_bytes: int

    @classmethod
    def of(cls, pressure: Pressure, session: StoreSession) -> PressureTarget:
        """Measure the filesystem of the results."""
        usage = disk_usage(session.roots[RootName.RESULTS].fd)
        return cls(pressure, usage, usage.bytes_above(pressure.low_watermark_percent))

    def missing_bytes(self, pipeline: Pipeline) -> int:
        """Return how much space must still be freed, 0 when the target is reached."""
        usage = disk_usage(pipeline.session.roots[RootName.RESULTS].fd)
        above = usage.bytes_above(self.pressure.low_watermark_percent)
        return max(0, min(above, self.needed_bytes - pipeline.stats.counts.bytes_freed))

    def summary(self, session: StoreSession) -> str:
        """Return the usage before the run and now, as text."""
        after = disk_usage(session.roots[RootName.RESULTS].fd)
        return (
            f"the results filesystem was {self.before.used_percent:.1f} % full and is now "
            f"{after.used_percent:.1f} % full (low watermark {self.pressure.low_watermark_percent:g} %)"
        )


def empty_trash(pipeline: Pipeline, target: PressureTarget) -> None:
    """Delete trash before its grace is over, oldest first, until the target is reached."""
    run, ledger = pipeline.run, pipeline.session.ledger
    tried: set[str] = set()
    while target.missing_bytes(pipeline) and not run.stop.is_set():
        oldest = ledger.expired(run.clock(), len(tried) + _PAGE, early=True)
        waiting = [intent for intent in oldest if intent.id not in tried]
        if not waiting:
            return
        for intent in waiting:
            if not target.missing_bytes(pipeline) or run.stop.is_set():
                return
            tried.add(intent.id)
            purge(pipeline, [intent])
            pipeline.finish()


def clean_early(
    pipeline: Pipeline,
    selection: Selection,
    target: PressureTarget,
    uncleaned: int,
    in_progress: Collection[str],
) -> None:
    """Clean jobs ahead of their retention until the target is reached: failed ones first, then oldest first.

    Args:
        pipeline: cleans the jobs.
        selection: applies the limits of the run.
        target: says when enough space is free.
        uncleaned: how many terminal jobs were not cleaned when the run started.
        in_progress: ids of jobs that an unfinished intent of an earlier run still has.
    """
    run, session = pipeline.run, pipeline.session
    policy = early_policy(run.policy, target.pressure.minimum_age)
    jobs = job_table(session.database, run.config, policy)
    jobs.gather_candidates(run.started_at, failed_first=True)
    planner = Planner(run, session, policy, jobs)
    full = f"the disk is {target.before.used_percent:.1f} % full"
    for decisions in planner.decisions(2 * run.workers):
        expired = [_as_early(decision, run.policy, full) for decision in decisions if decision.clean]
        plans = [
            plan for plan in planner.plan(expired, pipeline.in_flight()) if plan.job.id not in in_progress
        ]
        with session.database.read() as connection:
            sizes = session.ledger.measured(connection, [plan.job.id for plan in plans])
        while plans:
            missing = target.missing_bytes(pipeline)
            if not missing or run.stop.is_set():
                return
            batch = _enough(plans, sizes, missing)
            plans = plans[len(batch) :]
            if _is_limit_reached(pipeline, selection, uncleaned) or not selection.process(
                pipeline, batch, sizes
            ):
                return
            pipeline.finish()


def _is_limit_reached(pipeline: Pipeline, selection: Selection, uncleaned: int) -> bool:
    """Return whether one more job is too many for the breaker; warn then."""
    safety = pipeline.run.config.safety
    if not is_too_many(selection.claimed + 1, uncleaned, safety.max_fraction, safety.max_fraction_min_jobs):
        return False
    pipeline.run.emit(
        Warned(
            f"The disk is still full. The run has cleaned {selection.claimed} of {uncleaned} ended jobs, and "
            f"safety.max_fraction ({safety.max_fraction:g}) allows no more in one run."
        )
    )
    return True


def _as_early(decision: Decision, policy: Policy, full: str) -> Decision:
    """Mark a job that is cleaned ahead of its retention, with the reason; return an expired one unchanged."""
    age = decision.age
    retention = policy.retention(decision.job_class, decision.job.workflow_type)
    if age is None or age >= retention:
        return decision
    reason = f"ended {human_age(age)} ago, {human_age(retention - age)} ahead of its retention: {full}"
    return replace(decision, reason=reason, ahead_of_retention=True)


def _enough(plans: Sequence[PlannedJob], sizes: Mapping[str, int], missing: int) -> Sequence[PlannedJob]:
    """Return the first plans that together free enough; a job of unknown size is alone."""
    total = 0
    for count, plan in enumerate(plans, start=1):
        total += sizes.get(plan.job.id, missing)
        if total >= missing:
            return plans[:count]
    return plans
