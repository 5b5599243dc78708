"""Cleaning under disk pressure: first the trash, then jobs ahead of their retention, no more than needed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from eemtcleanupd.cleanup.pipeline import Pipeline
from eemtcleanupd.cleanup.planner import PlannedJob, Planner, Selection
from eemtcleanupd.cleanup.recovery import purge, purgeable, trash_bytes
from eemtcleanupd.cleanup.session import StoreSession, job_table
from eemtcleanupd.deletion.filesystem import disk_usage
from eemtcleanupd.events import Warned
from eemtcleanupd.formatting import human_age, human_size
from eemtcleanupd.model import Decision, RootName
from eemtcleanupd.policy.breakers import is_too_many
from eemtcleanupd.policy.pressure import DiskUsage, Pressure, early_policy
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.intents import Intent

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
        return max(0, min(self.bytes_above(pipeline), self.needed_bytes - self.bytes_freed(pipeline)))

    def bytes_freed(self, pipeline: Pipeline) -> int:
        """Return what the run has freed on the filesystem of the results."""
        freed = pipeline.stats.counts.freed_by_root
        return sum(freed[name] for name in freed if is_on_disk(pipeline.session, name))

    def bytes_above(self, pipeline: Pipeline) -> int:
        """Return how far the filesystem is above the low watermark now."""
        usage = disk_usage(pipeline.session.roots[RootName.RESULTS].fd)
        return usage.bytes_above(self.pressure.low_watermark_percent)

    def summary(self, session: StoreSession) -> str:
        """Return the usage before the run and now, as text."""
        after = disk_usage(session.roots[RootName.RESULTS].fd)
        return (
            f"the results filesystem was {self.before.used_percent:.1f} % full and is now "
            f"{after.used_percent:.1f} % full (low watermark {self.pressure.low_watermark_percent:g} %)"
        )


def is_on_disk(session: StoreSession, root: RootName) -> bool:
    """Return whether a root is on the filesystem of the results, which is the one that is full."""
    roots = session.roots
    return root in roots and roots[root].device == roots[RootName.RESULTS].device


class EarlyCleaning:
    """What a run takes early: first trash before its grace is over, then jobs ahead of their retention.

    It takes nothing when everything that it could take would not bring the disk to the low watermark: then
    other data fills the disk, and the jobs would be lost for nothing.

    Args:
        pipeline: cleans the jobs; it has finished the expired ones.
        selection: applies the limits of the run.
        target: says when enough space is free.
        uncleaned: how many terminal jobs were not cleaned when the run started.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        selection: Selection,
        target: PressureTarget,
        uncleaned: int,
    ) -> None:
        run, session = pipeline.run, pipeline.session
        self._pipeline = pipeline
        self._selection = selection
        self._target = target
        self._uncleaned = uncleaned
        # Also of this run: a file of a job could not be deleted, say.
        self._in_progress = {intent.job_id for intent in session.ledger.open_intents()}
        policy = early_policy(run.policy, target.pressure.minimum_age)
        self._jobs = job_table(session.database, run.config, policy, has_parameters=run.hooks.read_jobs)
        self._planner = Planner(run, session, policy, self._jobs)
        self._planner.decide_again(self._in_progress)
        self._is_one_disk = all(is_on_disk(session, root) for root in session.roots)
        self._available_bytes = 0
        self._lag_bytes = 0
        self._has_taken = False
        self._hopeless: str | None = None

    def run(self) -> None:
        """Take as much as is needed, if that can be enough."""
        run = self._pipeline.run
        missing = self._target.missing_bytes(self._pipeline)
        if not missing or run.stop.is_set():
            return
        self._lag_bytes = self._target.bytes_above(self._pipeline) - missing
        self._jobs.gather_candidates(run.started_at, failed_first=True)
        self._available_bytes = self._trash_bytes() + self._job_bytes()
        if run.stop.is_set():  # the measurement is incomplete
            return
        self._empty_trash()
        self._clean_jobs()

    def summary(self) -> str:
        """Return the usage before the run and now, and why nothing more was taken early, as text."""
        summary = self._target.summary(self._pipeline.session)
        return f"{summary}; {self._hopeless}" if self._hopeless else summary

    # -- whether it can be enough ------------------------------------------------------------------

    def _trash_bytes(self) -> int:
        intents = self._pipeline.session.ledger.expired(self._pipeline.run.clock(), sys.maxsize, early=True)
        return sum(map(self._bytes_in_trash, self._purgeable(intents)))

    def _purgeable(self, intents: Sequence[Intent]) -> list[Intent]:
        return purgeable(self._pipeline.session, self._pipeline.planner, intents)

    def _bytes_in_trash(self, intent: Intent) -> int:
        """Return the bytes of an item of the trash that are on the full disk."""
        session = self._pipeline.session
        items = [pair for pair in intent.items if is_on_disk(session, pair[0].artifact.root)]
        if len(items) == len(intent.items) and intent.size_bytes:
            return intent.size_bytes
        return sum(trash_bytes(session, found, item, self._pipeline.run.stop) for found, item in items)

    def _useful_bytes(self, plan: PlannedJob, sizes: Mapping[str, int]) -> int:
        """Return how much of a job is on the full disk."""
        session = self._pipeline.session
        on_disk = [found for found in plan.artifacts if is_on_disk(session, found.artifact.root)]
        if len(on_disk) == len(plan.artifacts) and plan.job.id in sizes:
            return sizes[plan.job.id]
        return sum(map(self._selection.measure, on_disk))

    def _job_bytes(self) -> int:
        """Return the bytes of the jobs that the run's limits allow to clean early; measure unknown ones."""
        run, session = self._pipeline.run, self._pipeline.session
        allowed = self._jobs_allowed()
        total = 0
        for decisions in self._planner.decisions(_PAGE):
            expired = self._early(decisions)[:allowed]
            allowed -= len(expired)
            with session.database.read() as connection:
                sizes = session.ledger.measured(connection, [decision.job.id for decision in expired])
            if self._is_one_disk:
                total += sum(sizes.values())
                expired = [decision for decision in expired if decision.job.id not in sizes]
            for plan in self._planner.plan(expired, ()) if expired else ():
                if plan.problem is None:
                    total += self._useful_bytes(plan, sizes)
            if not allowed or run.stop.is_set():
                break
        return total

    def _early(self, decisions: Sequence[Decision]) -> list[Decision]:
        """Return the jobs to clean ahead of their retention: the run has tried to clean the expired ones."""
        full = f"the disk is {self._target.before.used_percent:.1f} % full"
        clean = [each for each in decisions if each.clean and each.job.id not in self._in_progress]
        early = [_as_early(each, self._pipeline.run.policy, full) for each in clean]
        return [each for each in early if each.ahead_of_retention]

    def _jobs_allowed(self) -> int:
        """Return how many more jobs the breaker and the cap of the run allow."""
        safety, claimed = self._pipeline.run.config.safety, self._pipeline.taken
        allowed = max(0, self._uncleaned - claimed)
        if is_too_many(claimed + allowed, self._uncleaned, safety.max_fraction, safety.max_fraction_min_jobs):
            allowed = max(0, int(safety.max_fraction * self._uncleaned) - claimed)
        return min(allowed, max(0, safety.max_jobs_per_run - claimed)) if safety.max_jobs_per_run else allowed

    def _can_be_enough(self) -> bool:
        """Return whether what is left can still bring the disk to the low watermark; warn once if not.

        The filesystem's figure can lag behind the last deletion, so that is not held against it.
        """
        if self._hopeless is not None:
            return False
        needed = self._target.bytes_above(self._pipeline) - self._lag_bytes
        if needed <= self._available_bytes:
            return True
        low, left = self._target.pressure.low_watermark_percent, max(0, self._available_bytes)
        taken = "nothing more" if self._has_taken else "nothing"
        self._hopeless = (
            f"{human_size(needed)} must be freed to reach {low:g} %, but the trash and the jobs that this "
            f"run can clean early hold only {human_size(left)}, so {taken} was deleted early"
        )
        message = (
            f"Early cleaning cannot reach the low watermark: {self._hopeless}. "
            "The rest of the disk is data that this run must not delete. Free space elsewhere."
        )
        self._pipeline.run.emit(Warned(message))
        return False

    def _taken(self, bytes_expected: int, freed_before: int) -> None:
        self._has_taken = True
        self._available_bytes -= bytes_expected
        self._lag_bytes = self._target.bytes_freed(self._pipeline) - freed_before

    # -- take --------------------------------------------------------------------------------------

    def _must_go_on(self) -> bool:
        if not self._target.missing_bytes(self._pipeline) or self._pipeline.run.stop.is_set():
            return False
        return self._can_be_enough()

    def _empty_trash(self) -> None:
        """Delete trash before its grace is over, oldest first, until the target is reached."""
        pipeline = self._pipeline
        tried: set[str] = set()
        while self._must_go_on():
            oldest = pipeline.session.ledger.expired(pipeline.run.clock(), len(tried) + _PAGE, early=True)
            waiting = [intent for intent in oldest if intent.id not in tried]
            if not waiting:
                return
            tried |= {intent.id for intent in waiting}
            for intent in self._purgeable(waiting):
                if not self._must_go_on():
                    return
                freed, size_bytes = self._target.bytes_freed(pipeline), self._bytes_in_trash(intent)
                if not size_bytes:  # its grace stays: purging it would help nobody
                    continue
                purge(pipeline, [intent])
                pipeline.finish()
                self._taken(size_bytes, freed)

    def _clean_jobs(self) -> None:
        """Clean jobs ahead of their retention until the target is reached: failed ones first, then oldest."""
        pipeline = self._pipeline
        run, session = pipeline.run, pipeline.session
        for decisions in self._planner.decisions(2 * run.workers):
            plans = [
                plan
                for plan in self._planner.plan(self._early(decisions), pipeline.in_flight())
                if plan.problem is None and plan.trashed is None
            ]
            with session.database.read() as connection:
                sizes = session.ledger.measured(connection, [plan.job.id for plan in plans])
            useful = sizes
            if not self._is_one_disk:
                amounts = {plan.job.id: self._useful_bytes(plan, sizes) for plan in plans}
                plans = [plan for plan in plans if amounts[plan.job.id]]
                # A job whose size no run has recorded is cleaned alone, as where all roots are on one disk.
                useful = {job_id: amounts[job_id] for job_id in amounts.keys() & sizes.keys()}
            while plans:
                if not self._must_go_on():
                    return
                batch = _enough(plans, useful, self._target.missing_bytes(pipeline))
                plans = plans[len(batch) :]
                freed = self._target.bytes_freed(pipeline)
                if self._is_limit_reached():
                    return
                allowed = self._selection.process(pipeline, batch, sizes)
                pipeline.finish()
                if not allowed:
                    return
                done = self._target.bytes_freed(pipeline) - freed
                self._taken(max(done, sum(useful.get(plan.job.id, 0) for plan in batch)), freed)

    def _is_limit_reached(self) -> bool:
        """Return whether one more job is too many for the breaker; warn then."""
        run, claimed, uncleaned = self._pipeline.run, self._pipeline.taken, self._uncleaned
        safety = run.config.safety
        if not is_too_many(claimed + 1, uncleaned, safety.max_fraction, safety.max_fraction_min_jobs):
            return False
        run.emit(
            Warned(
                f"The disk is still full. The run has cleaned {claimed} of {uncleaned} ended jobs, and "
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
