"""What a run takes of the jobs that are due, within its limits, and what it leaves and says of the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from eemtcleanupd.cleanup.context import Run
from eemtcleanupd.cleanup.outcomes import NAMED_JOBS_LIMIT
from eemtcleanupd.cleanup.pipeline import Pipeline
from eemtcleanupd.cleanup.planner import PlannedJob, Planner
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.walk import measure
from eemtcleanupd.events import JobNote, JobSkipped
from eemtcleanupd.formatting import human_size, printable
from eemtcleanupd.model import Decision, Found, JobClass, RootName


class Selection:
    """Selects the jobs of one run.

    ``kept`` counts those that stay and are worth telling of, ``vetoed`` names some that a plugin keeps,
    ``taken`` counts those that were claimed, ``remaining`` those that are left to another run.
    """

    def __init__(self, run: Run, roots: Mapping[RootName, Root]) -> None:
        self._run = run
        self._roots = roots
        self.kept_notable = 0
        self.vetoed: list[JobNote] = []
        self.claimed = 0
        self.remaining = 0

    def pages(self, planner: Planner, going: Callable[[], Collection[str]]) -> Iterator[list[PlannedJob]]:
        """Yield the jobs that are due, with their artifacts, a batch at a time; tell what is kept and why.

        ``going`` returns the ids of jobs that earlier batches took and that are not recorded yet.
        """
        run = self._run
        for decisions in planner.decisions(run.config.performance.batch_size):
            if run.stop.is_set():
                return
            due = []
            for decision in decisions:
                if decision.clean:
                    due.append(decision)
                elif decision.job_class is not JobClass.LIVE:
                    self._keep(decision)
            yield planner.plan(due, going())
            run.progress.jobs_done += len(decisions)

    def _keep(self, decision: Decision) -> None:
        self.kept_notable += decision.notable
        if decision.vetoed:
            job_id, status = printable(decision.job.id), printable(decision.job.status)
            if len(self.vetoed) < NAMED_JOBS_LIMIT:
                self.vetoed.append(JobNote(job_id, status, message=decision.reason))
            if not self._run.request.dry_run:
                self._run.audit("vetoed", job_id=job_id, status=status, reason=decision.reason)
        self._run.emit(JobSkipped(decision.job, decision.reason, decision.notable, decision.vetoed))

    def process(self, pipeline: Pipeline, batch: Sequence[PlannedJob], sizes: Mapping[str, int]) -> int:
        """Take of a batch what the run's limits allow; returns how many jobs were claimed."""
        batch = self._without_large(batch, sizes)
        cap = self._run.config.safety.max_jobs_per_run
        if cap and self.claimed + len(batch) > cap:
            self.remaining += len(batch) - (cap - self.claimed)
            batch = batch[: cap - self.claimed]
        claimed = pipeline.process(batch, sizes) if batch and not self._run.stop.is_set() else 0
        self.claimed += claimed
        return claimed

    def _without_large(self, batch: Sequence[PlannedJob], sizes: Mapping[str, int]) -> Sequence[PlannedJob]:
        if self._run.request.skip_larger_than_bytes is None:
            return batch
        small = []
        for plan in batch:
            size = sizes.get(plan.job.id)
            if size is None:
                size = sum(self.measure(found) for found in plan.artifacts)
            if not self.is_too_large(plan, size):
                small.append(plan)
        return small

    def is_too_large(self, plan: PlannedJob, size_bytes: int) -> bool:
        """Leave a job to another run, and tell so, if this one is to skip jobs of its size."""
        limit = self._run.request.skip_larger_than_bytes
        if limit is None or size_bytes <= limit:
            return False
        reason = f"{human_size(size_bytes)} is larger than {human_size(limit)}: left for another run"
        self.remaining += 1
        self._run.emit(JobSkipped(plan.job, reason, notable=True))
        return True

    def measure(self, found: Found) -> int:
        """Return the bytes of an artifact."""
        return measure(self._roots[found.artifact.root], found.artifact.name, self._run.stop).bytes
