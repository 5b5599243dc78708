"""Render a report as a JSON document, as text for a terminal, or as a CSV table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from eemtcleanupd.daemon.status import time_with_distance
from eemtcleanupd.daemon.status_document import iso, run_document
from eemtcleanupd.formatting import human_size, human_trashed, local_time, plural, printable, shortened
from eemtcleanupd.policy.forecast import CONFIDENCE_PERCENT, Forecast
from eemtcleanupd.report.collect import LedgerSummary, Report
from eemtcleanupd.store.report_queries import RunTotals, Usage, UsageGroup

# Characters that make a spreadsheet read a cell as a formula (OWASP, CSV Injection).
_FORMULA = ("=", "+", "-", "@")
_MAX_GROUPS = 20


def by_size(groups: Mapping[str, UsageGroup]) -> list[tuple[str, UsageGroup]]:
    """Return groups sorted by the size of their data, largest first."""
    return sorted(groups.items(), key=lambda item: (-item[1].held.size_bytes, -item[1].held.jobs, item[0]))


def with_data(groups: Mapping[str, UsageGroup]) -> list[tuple[str, UsageGroup]]:
    """Return the groups that have jobs with data, largest first."""
    return [(name, group) for name, group in by_size(groups) if group.held.jobs]


# -- JSON ------------------------------------------------------------------------------------------


def as_document(report: Report) -> dict[str, Any]:
    """Return the report for JSON: times in ISO 8601 (UTC), sizes in bytes, null for unknown values."""
    total, disk, budget, history = report.jobs.total, report.disk, report.budget, report.history
    document: dict[str, Any] = {
        "made_at": iso(report.made_at),
        "database": str(report.database),
        "cleaned": _cleaned(total),
        "runs": None,
        "usage": {
            **_group(total),
            "by_status": [
                {"status": name, **_group(group)} for name, group in with_data(report.jobs.by_status)
            ],
            "by_workflow_type": [
                {"workflow_type": name, **_group(group), "cleaned": _cleaned(group)}
                for name, group in by_size(report.jobs.by_workflow_type)
            ],
        },
        "biggest_jobs": None,
        "disk": None if disk is None else {**asdict(disk), "used_percent": round(disk.used_percent, 1)},
        "growth": None,
        "forecast": None,
        "capacity": None
        if budget is None
        else {**asdict(budget), "held_bytes": None, "used_percent": None, "forecast": None},
        "trend": [],
        "trash": None,
        "last_run": None,
        "next_run": iso(report.next_run_at),
        "running": report.has_daemon,
        "unknown": list(report.unknown),
    }
    if history is not None:
        document |= _history(history)
        if budget is not None:
            document["capacity"] |= {
                "held_bytes": history.held_bytes,
                "used_percent": round(budget.used_percent(history.held_bytes), 1),
                "forecast": _forecast(history.budget_exceeded),
            }
    return document


def _history(history: LedgerSummary) -> dict[str, Any]:
    jobs, size_bytes, next_purge = history.trash
    return {
        "runs": {"last_24h": asdict(history.runs_24h), "last_30d": asdict(history.runs_30d)},
        "biggest_jobs": [
            {
                "job_id": large.job.id,
                "status": large.job.status,
                "workflow_type": large.job.workflow_type,
                "completed_at": iso(large.job.completed_at),
                "bytes": large.size_bytes,
            }
            for large in history.biggest
        ],
        "growth": None
        if history.growth is None
        else {
            "bytes_per_day": round(history.growth.bytes_per_day),
            "since": iso(history.trend[0].at),
            "points": len(history.trend),
        },
        "forecast": _forecast(history.disk_full),
        "trend": [
            {"at": iso(point.at), "held_bytes": point.used_bytes, "free_bytes": point.free_bytes}
            for point in history.trend
        ],
        "trash": {"jobs": jobs, "bytes": size_bytes, "next_purge": iso(next_purge)},
        "last_run": None if history.last_run is None else run_document(history.last_run),
    }


def _usage(usage: Usage) -> dict[str, int]:
    return {"jobs": usage.jobs, "bytes": usage.size_bytes}


def _group(group: UsageGroup) -> dict[str, int]:
    return {**_usage(group.held), "measured_jobs": group.measured}


def _cleaned(group: UsageGroup) -> dict[str, dict[str, int]]:
    return {"last_24h": _usage(group.cleaned_24h), "last_30d": _usage(group.cleaned_30d)}


def _forecast(forecast: Forecast | None) -> dict[str, Any] | None:
    if forecast is None:
        return None
    return {
        "at": iso(forecast.at),
        "earliest": iso(forecast.earliest),
        "latest": iso(forecast.latest),
        "confidence_percent": CONFIDENCE_PERCENT,
        "bytes_per_day": round(forecast.line.bytes_per_day),
    }


# -- text ------------------------------------------------------------------------------------------


def as_text(report: Report) -> str:
    """Return the report as lines for a terminal or a mail."""
    lines, previous = [], ""
    for title, text in _rows(report):
        lines.append(f"{'' if title == previous else title:<10} {text}".rstrip())
        previous = title
    return "\n".join(lines) + "\n"


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    total, history, disk = report.jobs.total, report.history, report.disk
    yield "Report", f"{local_time(report.made_at)}, {printable(str(report.database))}"
    yield "Cleaned", f"{describe_usage(total.cleaned_24h)} in 24 hours"
    yield "Cleaned", f"{describe_usage(total.cleaned_30d)} in 30 days"
    if history is not None:
        yield "Freed", f"{describe_runs(history.runs_24h)} in 24 hours"
        yield "Freed", f"{describe_runs(history.runs_30d)} in 30 days"
    yield from _group_rows("Usage", report.jobs.by_status)
    yield "Usage", f"all: {describe_group(total)}"
    yield from _group_rows("Workflows", report.jobs.by_workflow_type)
    if history is not None:
        for large in history.biggest:
            job = large.job
            ended = "" if job.completed_at is None else f", ended {_date(job.completed_at)}"
            details = f"{display_name(job.status)}, {display_name(job.workflow_type)}{ended}"
            yield "Biggest", f"{human_size(large.size_bytes):>9}  {display_name(job.id)} ({details})"
    if disk is not None:
        free = f"{human_size(disk.free_bytes)} of {human_size(disk.total_bytes)} free"
        yield "Disk", f"{disk.used_percent:.1f} % used, {free}"
    yield from outlook(report)
    if history is not None:
        yield "Trash", describe_trash(history)
        yield "Last run", describe_last_run(history)
    yield "Next run", describe_next_run(report)
    for text in report.unknown:
        yield "Unknown", text


def _group_rows(title: str, groups: Mapping[str, UsageGroup]) -> Iterator[tuple[str, str]]:
    largest = with_data(groups)
    for name, group in largest[:_MAX_GROUPS]:
        yield title, f"{display_name(name)}: {describe_group(group)}"
    if len(largest) > _MAX_GROUPS:
        rest = sum((group for _, group in largest[_MAX_GROUPS:]), UsageGroup())
        yield title, f"{len(largest) - _MAX_GROUPS} more: {describe_group(rest)}"


def outlook(report: Report) -> list[tuple[str, str]]:
    """Return growth, disk-full forecast and budget as pairs of a title and a text."""
    history, budget, rows = report.history, report.budget, []
    if history is not None and history.growth is not None:
        growth = history.growth.bytes_per_day
        days = plural((history.trend[-1].at - history.trend[0].at).days, "day")
        more = "more" if growth >= 0 else "less"
        rows.append(("Growth", f"{human_size(abs(growth))} {more} per day (over the last {days})"))
        full = "not expected: free space is not shrinking, or lasts for ten years"
        if history.disk_full is not None:
            full = describe_forecast(history.disk_full)
        rows.append(("Disk full", full))
    if budget is not None:
        if history is None:
            rows.append(("Budget", f"{human_size(budget.max_bytes)}, not measured yet"))
        else:
            used = f"{human_size(history.held_bytes)} of {human_size(budget.max_bytes)}"
            rows.append(("Budget", f"{used} ({budget.used_percent(history.held_bytes):.1f} %)"))
            if history.budget_exceeded is not None and history.held_bytes < budget.max_bytes:
                rows.append(("Budget", f"used up {describe_forecast(history.budget_exceeded)}"))
    return rows


def describe_forecast(forecast: Forecast) -> str:
    """Return a forecast and its interval as text."""
    at, earliest = _date(forecast.at), _date(forecast.earliest)
    if forecast.latest is None:
        return f"about {at} (not before {earliest}, perhaps never; {CONFIDENCE_PERCENT} %)"
    return f"about {at} (between {earliest} and {_date(forecast.latest)}, {CONFIDENCE_PERCENT} %)"


def describe_usage(usage: Usage) -> str:
    """Return a number of jobs and their size as text."""
    return f"{plural(usage.jobs, 'job')}, {human_size(usage.size_bytes)}"


def describe_group(group: UsageGroup) -> str:
    """Return the jobs with data in a group, their size, and how many are not measured, as text."""
    if group.measured == 0:
        return f"{plural(group.held.jobs, 'job')}{', not measured' if group.held.jobs else ''}"
    unmeasured = group.held.jobs - group.measured
    return describe_usage(group.held) + (f" ({unmeasured:,} not measured)" if unmeasured else "")


def describe_runs(totals: RunTotals) -> str:
    """Return the space freed by runs as text."""
    runs, errors = plural(totals.runs, "run"), plural(totals.errors, "error")
    freed = f"{human_size(totals.bytes_freed)} by {runs} with {errors}"
    return f"{freed}, {human_trashed(totals.bytes_trashed, None)}" if totals.bytes_trashed else freed


def describe_trash(history: LedgerSummary) -> str:
    """Return the contents of the trash as text."""
    jobs, size_bytes, _ = history.trash
    return (
        f"{plural(jobs, 'job')} ({human_size(size_bytes)}) until their grace period ends" if jobs else "empty"
    )


def describe_last_run(history: LedgerSummary) -> str:
    """Return the last run as text."""
    run = history.last_run
    if run is None:
        return "none yet"
    started = f"{local_time(run.started_at)} ({display_name(run.trigger)})"
    freed = f"{plural(run.successful + run.failed, 'job')} cleaned, {run.amounts}"
    return f"{started}: {run.outcome or 'in progress'}, {freed}, {plural(run.errors, 'error')}"


def describe_next_run(report: Report) -> str:
    """Return the next run as text."""
    if not report.has_daemon:
        return "unknown: no daemon is running"
    if report.next_run_at is None:
        return "none: the daemon's schedule is off (schedule.enabled)"
    return time_with_distance(report.next_run_at, report.made_at)


def display_name(name: str | None) -> str:
    """Return an untrusted name, made printable and short; ``(none)`` if it is empty."""
    return shortened(printable(name), 80) if name else "(none)"


def _date(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d}"


# -- CSV -------------------------------------------------------------------------------------------


def as_csv(report: Report) -> str:
    """Return the report as one table with the columns section, name, value and unit."""
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(("section", "name", "value", "unit"))
    for section, name, value, unit in _cells(report):
        table.writerow((section, _safe_cell(name), "" if value is None else value, unit))
    return out.getvalue()


def _safe_cell(name: str) -> str:
    """Return an untrusted name, with an apostrophe before it if a spreadsheet would read a formula."""
    text = printable(name)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _cells(report: Report) -> Iterator[tuple[str, str, object, str]]:
    total, history, disk, budget = report.jobs.total, report.history, report.disk, report.budget
    yield "report", "made_at", iso(report.made_at), "time"
    for span, usage in (("last_24h", total.cleaned_24h), ("last_30d", total.cleaned_30d)):
        yield "cleaned", span, usage.jobs, "jobs"
        yield "cleaned", span, usage.size_bytes, "bytes"
    for section, groups in (
        ("usage_by_status", report.jobs.by_status),
        ("usage_by_workflow_type", report.jobs.by_workflow_type),
    ):
        for name, group in with_data(groups):
            yield section, name, group.held.jobs, "jobs"
            yield section, name, group.measured, "measured jobs"
            yield section, name, group.held.size_bytes, "bytes"
    if disk is not None:
        for name, size_bytes in asdict(disk).items():
            yield "disk", name.removesuffix("_bytes"), size_bytes, "bytes"
    if budget is not None:
        yield "capacity", "max", budget.max_bytes, "bytes"
    yield "runs", "next", iso(report.next_run_at), "time"
    if history is None:
        return
    for span, totals in (("last_24h", history.runs_24h), ("last_30d", history.runs_30d)):
        yield "runs", span, totals.runs, "runs"
        yield "runs", span, totals.errors, "errors"
        yield "runs", span, totals.bytes_freed, "bytes"
        yield "trashed", span, totals.bytes_trashed, "bytes"
    for large in history.biggest:
        yield "biggest_jobs", large.job.id, large.size_bytes, "bytes"
    yield "capacity", "held", history.held_bytes, "bytes"
    yield "trash", "waiting", history.trash[0], "jobs"
    yield "trash", "waiting", history.trash[1], "bytes"
    if history.growth is not None:
        yield "growth", "each_day", round(history.growth.bytes_per_day), "bytes"
    for name, forecast in (("disk_full", history.disk_full), ("budget_used_up", history.budget_exceeded)):
        if forecast is not None:
            yield "forecast", name, iso(forecast.at), "time"
            yield "forecast", f"{name}_earliest", iso(forecast.earliest), "time"
            yield "forecast", f"{name}_latest", iso(forecast.latest), "time"
    for point in history.trend:
        yield "trend_held", str(iso(point.at)), point.used_bytes, "bytes"
        yield "trend_free", str(iso(point.at)), point.free_bytes, "bytes"
