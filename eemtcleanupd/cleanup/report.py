"""What a run says of itself: that it began, its report, and what of it the ledger and the audit log keep."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace

from eemtcleanupd.cleanup.context import Run
from eemtcleanupd.cleanup.inventory import InventoryResult
from eemtcleanupd.cleanup.outcomes import RunCounts, largest
from eemtcleanupd.cleanup.selection import Selection
from eemtcleanupd.events import DURATION_BUCKETS, JobTally, RunReport, RunStarted
from eemtcleanupd.model import JobClass, Outcome
from eemtcleanupd.store.jobs import Backlog
from eemtcleanupd.store.runs import RunRecord


def run_started_event(run: Run, backlog: Backlog) -> RunStarted:
    """Return what is told when a run begins."""
    return RunStarted(
        run.id,
        run.request.dry_run,
        run.request.trigger,
        str(run.policy),
        backlog.uncleaned,
        backlog.candidates,
    )


def build_report(
    run: Run,
    backlog: Backlog,
    counts: RunCounts,
    selection: Selection,
    census: InventoryResult,
    *,
    relieved: str | None = None,
) -> RunReport:
    """Return the report of a run that ends now.

    Args:
        run: the run.
        backlog: what it found.
        counts: what it did.
        selection: what it left.
        census: what it saw.
        relieved: how full the disk was and is, in words, where that was what it began for.
    """
    cleaned = sum(counts.cleaned.values())
    interrupted = run.stop.is_set()
    # A dry run has cleaned nothing, so all that were uncleaned still are.
    uncleaned = backlog.uncleaned - (0 if run.request.dry_run else cleaned)
    missing = max(0, uncleaned - census.jobs_with_files)
    if interrupted or run.request.only_trash:  # then nobody has looked
        missing = 0
    return RunReport(
        run_id=run.id,
        dry_run=run.request.dry_run,
        trigger=run.request.trigger,
        user=run.request.user,
        started_at=run.started_at,
        finished_at=run.clock(),
        outcome=Outcome.INTERRUPTED if interrupted else Outcome.ERRORS if counts.errors else Outcome.SUCCESS,
        successful=JobTally(counts.cleaned[JobClass.SUCCESSFUL], counts.freed[JobClass.SUCCESSFUL]),
        failed=JobTally(counts.cleaned[JobClass.FAILED], counts.freed[JobClass.FAILED]),
        orphans=JobTally(counts.orphans, counts.orphan_bytes),
        trash_purged=JobTally(counts.purged, counts.purged_bytes),
        orphans_found=census.orphans,
        missing=missing,
        skipped=counts.skipped + selection.kept_notable,
        errors=counts.errors,
        remaining=selection.remaining,
        early=JobTally(counts.early, counts.early_bytes),
        pressure=relieved,
        host=socket.gethostname(),
        biggest=tuple(largest(counts.biggest)),
        failures=tuple(counts.failures),
        vetoed=tuple(selection.vetoed),
    )


def run_totals(report: RunReport, by_status: Mapping[str, int]) -> dict[tuple[str, str], float]:
    """Return what a run adds to the totals that the ledger keeps, by name and label."""
    seconds = (report.finished_at - report.started_at).total_seconds()
    return {
        ("runs", report.outcome): 1,
        ("run_seconds", ""): max(0.0, seconds),
        **{("run_seconds_bucket", f"{bound:g}"): 1 for bound in DURATION_BUCKETS if seconds <= bound},
        **{("jobs_cleaned", status): count for status, count in by_status.items()},
        ("bytes_freed", ""): report.bytes_freed,
        ("errors", ""): report.errors,
        ("skipped", ""): report.skipped,
    }


def audit_summary(report: RunReport) -> dict[str, object]:
    """Return what the audit log says of a report."""
    return {
        "outcome": report.outcome,
        "successful": report.successful.jobs,
        "failed": report.failed.jobs,
        "errors": report.errors,
        "bytes_freed": report.bytes_freed,
    }


def finished_record(record: RunRecord, report: RunReport) -> RunRecord:
    """Return the row of a run that came to its end."""
    return replace(
        record,
        finished_at=report.finished_at,
        outcome=report.outcome,
        successful=report.successful.jobs,
        failed=report.failed.jobs,
        orphans=report.orphans.jobs,
        skipped=report.skipped,
        errors=report.errors,
        bytes_freed=report.bytes_freed,
    )
