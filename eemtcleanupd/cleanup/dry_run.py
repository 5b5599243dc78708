"""A run that only tells what a real one would do now; it never writes."""

from __future__ import annotations

from datetime import timedelta

from eemtcleanupd.cleanup.context import Run
from eemtcleanupd.cleanup.inventory import Inventory
from eemtcleanupd.cleanup.outcomes import RunCounts
from eemtcleanupd.cleanup.report import build_report, run_started_event
from eemtcleanupd.cleanup.selection import Selection
from eemtcleanupd.cleanup.session import Opened
from eemtcleanupd.events import ArtifactSize, JobPlanned, RunFinished, RunReport
from eemtcleanupd.model import JobClass


def dry_run(run: Run, opened: Opened) -> RunReport:
    """Tell of each job that is due, measured, and return the report, which was told as well."""
    run.emit(run_started_event(run, opened.backlog))
    selection = Selection(run, opened.roots)
    counts = RunCounts()
    planned_before: set[str] = set()
    with_size = {JobClass.SUCCESSFUL: 0, JobClass.FAILED: 0}
    for plans in selection.pages(opened.planner, lambda: planned_before):
        for plan in plans:
            if run.stop.is_set():
                break
            sized = tuple(ArtifactSize(found, selection.measure(found)) for found in plan.artifacts)
            size = sum(artifact.size_bytes for artifact in sized)
            if selection.is_too_large(plan, size):
                continue
            if plan.shared:  # a later job that shares the upload may take it: remember this one
                planned_before.add(plan.job.id)
            counts.cleaned[plan.decision.job_class] += 1
            with_size[plan.decision.job_class] += size
            run.emit(
                JobPlanned(
                    plan.job,
                    plan.decision.job_class,
                    plan.decision.age or timedelta(),
                    plan.decision.reason,
                    sized,
                    plan.shared,
                )
            )
    counts.freed.update(with_size)
    census = Inventory.of(run, opened).scan()
    report = build_report(run, opened.backlog, counts, selection, census)
    run.emit(RunFinished(report))
    return report
