"""Relief of a full disk: first the trash, then jobs ahead of their retention, no more than needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from eemtcleanupd.cleanup.claims import Tools
from eemtcleanupd.cleanup.pipeline import Pipeline
from eemtcleanupd.cleanup.planner import PlannedJob, Planner
from eemtcleanupd.cleanup.recovery import purge
from eemtcleanupd.deletion.blockers import disk_usage
from eemtcleanupd.formatting import human_age
from eemtcleanupd.model import Decision, RootName
from eemtcleanupd.policy.pressure import DiskUsage, Pressure
from eemtcleanupd.policy.retention import Policy

_PAGE = 100

ProcessBatch = Callable[[Sequence[PlannedJob], Mapping[str, int]], int]


@dataclass(frozen=True, slots=True)
class PressureTarget:
    """How much must go, measured when the run began.

    Both figures end the relief, whichever comes first: the filesystem's own may lag behind what was deleted
    (btrfs, XFS), and what others write meanwhile is not this run's to make up for.
    """

    pressure: Pressure
    before: DiskUsage
    needed_bytes: int

    @classmethod
    def of(cls, pressure: Pressure, tools: Tools) -> PressureTarget:
        """Measure the results filesystem."""
        usage = disk_usage(tools.roots[RootName.RESULTS].fd)
        return cls(pressure, usage, usage.bytes_above(pressure.low_watermark_percent))

    def missing_bytes(self, tools: Tools, pipeline: Pipeline) -> int:
        """Return how much has yet to go, 0 when it is enough."""
        usage = disk_usage(tools.roots[RootName.RESULTS].fd)
        above = usage.bytes_above(self.pressure.low_watermark_percent)
        return max(0, min(above, self.needed_bytes - pipeline.stats.counts.bytes_freed))

    def words(self, after: DiskUsage) -> str:
        """Return what was found and reached, in words."""
        return (
            f"the results filesystem was {self.before.used_percent:.1f} % full and is now "
            f"{after.used_percent:.1f} % full (low watermark {self.pressure.low_watermark_percent:g} %)"
        )


def empty_trash(tools: Tools, pipeline: Pipeline, target: PressureTarget) -> None:
    """Delete what waits in the trash before its grace is over, oldest first, until it is enough."""
    tried: set[str] = set()
    while target.missing_bytes(tools, pipeline) and not tools.stop.is_set():
        oldest = tools.ledger.expired(tools.clock(), len(tried) + _PAGE, early=True)
        waiting = [intent for intent in oldest if intent.id not in tried]
        if not waiting:
            return
        for intent in waiting:
            if not target.missing_bytes(tools, pipeline) or tools.stop.is_set():
                return
            tried.add(intent.id)
            purge(tools, pipeline, [intent])
            pipeline.finish()


def clean_early(
    tools: Tools,
    pipeline: Pipeline,
    target: PressureTarget,
    *,
    planner: Planner,
    policy: Policy,
    in_hand: Collection[str],
    take: ProcessBatch,
) -> None:
    """Clean jobs ahead of their retention until it is enough: failed ones first, then oldest first.

    Args:
        tools: what the run works with.
        pipeline: does it.
        target: says when it is enough.
        planner: decides by the policy under pressure; its candidates are gathered.
        policy: the retention that would count otherwise, for the words.
        in_hand: jobs that an unfinished intent of an earlier run still has.
        take: takes a batch with its measured sizes, and returns how many jobs went (0: the run's limit).
    """
    full = f"the disk is {target.before.used_percent:.1f} % full"
    for decisions in planner.decisions(2 * tools.workers):
        due = [_early(each, policy, full) for each in decisions if each.clean]
        plans = [plan for plan in planner.plan(due, pipeline.in_flight()) if plan.job.id not in in_hand]
        with tools.database.read() as connection:
            sizes = tools.ledger.measured(connection, [plan.job.id for plan in plans])
        while plans:
            missing = target.missing_bytes(tools, pipeline)
            if not missing or tools.stop.is_set():
                return
            part = _enough(plans, sizes, missing)
            plans = plans[len(part) :]
            if not take(part, sizes):
                return
            pipeline.finish()


def _early(decision: Decision, policy: Policy, full: str) -> Decision:
    """Say of a job that goes ahead of its retention that it does; one that is due anyway is not early."""
    age = decision.age
    retention = policy.retention(decision.job_class, decision.job.workflow_type)
    if age is None or age >= retention:
        return decision
    reason = f"ended {human_age(age)} ago, {human_age(retention - age)} ahead of its retention: {full}"
    return replace(decision, reason=reason, ahead_of_retention=True)


def _enough(plans: Sequence[PlannedJob], sizes: Mapping[str, int], missing: int) -> Sequence[PlannedJob]:
    """Return as many of the first plans as should do; one whose size is not known goes alone."""
    total = 0
    for count, plan in enumerate(plans, start=1):
        total += sizes.get(plan.job.id, missing)
        if total >= missing:
            return plans[:count]
    return plans
