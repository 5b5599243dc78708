"""The forms of a report: a JSON document, lines of text, and a table for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from eemtcleanupd.daemon.status import time_with_distance
from eemtcleanupd.daemon.status_document import iso, run_document
from eemtcleanupd.formatting import human_size, printable, shortened
from eemtcleanupd.policy.forecast import CONFIDENCE_PERCENT, Forecast
from eemtcleanupd.report.collect import LedgerSummary, Report
from eemtcleanupd.store.report_queries import RunTotals, Usage, UsageGroup

# What a spreadsheet takes for a formula (OWASP, CSV Injection); control characters are escaped anyway.
_FORMULA = ("=", "+", "-", "@")
_MOST_LINES = 20


def by_size(groups: Mapping[str, UsageGroup]) -> list[tuple[str, UsageGroup]]:
    """Return groups, those that hold most first."""
    return sorted(groups.items(), key=lambda each: (-each[1].held.size_bytes, -each[1].held.jobs, each[0]))


def holding(groups: Mapping[str, UsageGroup]) -> list[tuple[str, UsageGroup]]:
    """Return the groups that hold something, those that hold most first."""
    return [(name, group) for name, group in by_size(groups) if group.held.jobs]


# -- JSON ------------------------------------------------------------------------------------------


def as_document(report: Report) -> dict[str, Any]:
    """Return the report for JSON: times in ISO 8601 (UTC), sizes in bytes, null for what is not known."""
    total, history, disk, budget = report.jobs.total, report.history, report.disk, report.budget
    return {
        "made_at": iso(report.made_at),
        "database": str(report.database),
        "cleaned": {"last_24h": _amount(total.cleaned_24h), "last_30d": _amount(total.cleaned_30d)},
        "runs": None
        if history is None
        else {"last_24h": _work(history.work_24h), "last_30d": _work(history.work_30d)},
        "usage": {
            **_group(total),
            "by_status": [{"status": name, **_group(each)} for name, each in holding(report.jobs.by_status)],
            "by_workflow_type": [
                {
                    "workflow_type": name,
                    **_group(each),
                    "cleaned": {
                        "last_24h": _amount(each.cleaned_24h),
                        "last_30d": _amount(each.cleaned_30d),
                    },
                }
                for name, each in by_size(report.jobs.by_workflow_type)
            ],
        },
        "biggest_jobs": None if history is None else _biggest(history),
        "disk": None
        if disk is None
        else {
            "total_bytes": disk.total_bytes,
            "used_bytes": disk.used_bytes,
            "free_bytes": disk.free_bytes,
            "used_percent": round(disk.used_percent, 1),
        },
        "growth": None
        if history is None or history.growth is None
        else {
            "bytes_per_day": round(history.growth.bytes_per_day),
            "since": iso(history.trend[0].at),
            "points": len(history.trend),
        },
        "forecast": None if history is None else _forecast(history.full),
        "capacity": None
        if budget is None
        else {
            "max_bytes": budget.max_bytes,
            "warn_percent": budget.warn_percent,
            "held_bytes": None if history is None else history.held_bytes,
            "used_percent": None if history is None else round(budget.used_percent(history.held_bytes), 1),
            "forecast": None if history is None else _forecast(history.over),
        },
        "trend": []
        if history is None
        else [
            {"at": iso(point.at), "held_bytes": point.used_bytes, "free_bytes": point.free_bytes}
            for point in history.trend
        ],
        "trash": None
        if history is None
        else {
            "jobs": history.trash[0],
            "bytes": history.trash[1],
            "next_purge": iso(history.trash[2]),
        },
        "last_run": None if history is None or history.last_run is None else run_document(history.last_run),
        "next_run": iso(report.next_run_at),
        "running": report.has_daemon,
        "unknown": list(report.unknown),
    }


def _amount(amount: Usage) -> dict[str, int]:
    return {"jobs": amount.jobs, "bytes": amount.size_bytes}


def _group(group: UsageGroup) -> dict[str, int]:
    return {**_amount(group.held), "measured_jobs": group.measured}


def _work(work: RunTotals) -> dict[str, int]:
    return {"runs": work.runs, "errors": work.errors, "bytes_freed": work.bytes_freed}


def _biggest(history: LedgerSummary) -> list[dict[str, Any]]:
    return [
        {
            "job_id": each.job.id,
            "status": each.job.status,
            "workflow_type": each.job.workflow_type,
            "completed_at": iso(each.job.completed_at),
            "bytes": each.size_bytes,
        }
        for each in history.biggest
    ]


def _forecast(found: Forecast | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "at": iso(found.at),
        "earliest": iso(found.earliest),
        "latest": iso(found.latest),
        "confidence_percent": CONFIDENCE_PERCENT,
        "bytes_per_day": round(found.line.bytes_per_day),
    }


# -- text ------------------------------------------------------------------------------------------


def as_text(report: Report) -> str:
    """Return the report as lines for a terminal or a mail."""
    lines, last = [], ""
    for title, words in _rows(report):
        lines.append(f"{'' if title == last else title:<10} {words}".rstrip())
        last = title
    return "\n".join(lines) + "\n"


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    total, history, disk = report.jobs.total, report.history, report.disk
    yield "Report", f"{report.made_at.astimezone():%a %Y-%m-%d %H:%M}, {printable(str(report.database))}"
    yield "Cleaned", f"{amount_words(total.cleaned_24h)} in 24 hours"
    yield "Cleaned", f"{amount_words(total.cleaned_30d)} in 30 days"
    if history is not None:
        yield "Freed", f"{work_words(history.work_24h)} in 24 hours"
        yield "Freed", f"{work_words(history.work_30d)} in 30 days"
    yield from _group_rows("Held", report.jobs.by_status)
    yield "Held", f"all: {held_words(total)}"
    yield from _group_rows("Workflows", report.jobs.by_workflow_type)
    if history is not None:
        for each in history.biggest:
            job = each.job
            ended = "" if job.completed_at is None else f", ended {job.completed_at.astimezone():%Y-%m-%d}"
            what = f"{name_words(job.status)}, {name_words(job.workflow_type)}{ended}"
            yield "Biggest", f"{human_size(each.size_bytes):>9}  {name_words(job.id)} ({what})"
    if disk is not None:
        free = f"{human_size(disk.free_bytes)} of {human_size(disk.total_bytes)} free"
        yield "Disk", f"{disk.used_percent:.1f} % used, {free}"
    for title, words in outlook(report):
        yield title, words
    if history is not None:
        yield "Trash", trash_words(history)
        yield "Last run", run_words(history)
    yield "Next run", next_words(report)
    for words in report.unknown:
        yield "Not known", words


def _group_rows(title: str, groups: Mapping[str, UsageGroup]) -> Iterator[tuple[str, str]]:
    ordered = holding(groups)
    for name, group in ordered[:_MOST_LINES]:
        yield title, f"{name_words(name)}: {held_words(group)}"
    if len(ordered) > _MOST_LINES:
        rest = sum((group for _, group in ordered[_MOST_LINES:]), UsageGroup())
        yield title, f"{len(ordered) - _MOST_LINES} more: {held_words(rest)}"


def outlook(report: Report) -> list[tuple[str, str]]:
    """Return what lies ahead, as titles and words: growth, the day the disk is full, the budget."""
    history, budget, found = report.history, report.budget, []
    if history is not None and history.growth is not None:
        growth = history.growth.bytes_per_day
        more = "more" if growth >= 0 else "less"
        span = (history.trend[-1].at - history.trend[0].at).days
        found.append(
            ("Growth", f"jobs hold {human_size(abs(growth))} {more} each day (the last {span} days)")
        )
        full = "not in sight: free space does not shrink, or lasts for ten years"
        if history.full is not None:
            full = forecast_words(history.full)
        found.append(("Disk full", full))
    if budget is not None:
        if history is None:
            found.append(("Budget", f"{human_size(budget.max_bytes)}, nothing is measured yet"))
        else:
            used = f"{human_size(history.held_bytes)} of {human_size(budget.max_bytes)}"
            found.append(("Budget", f"{used} ({budget.used_percent(history.held_bytes):.1f} %)"))
            if history.over is not None and history.held_bytes < budget.max_bytes:
                found.append(("Budget", f"used up {forecast_words(history.over)}"))
    return found


def forecast_words(found: Forecast) -> str:
    """Return a forecast with its interval in words."""
    at, earliest = _date(found.at), _date(found.earliest)
    if found.latest is None:
        return f"about {at} (not before {earliest}, perhaps never; {CONFIDENCE_PERCENT} %)"
    return f"about {at} (between {earliest} and {_date(found.latest)}, {CONFIDENCE_PERCENT} %)"


def amount_words(amount: Usage) -> str:
    """Return jobs and bytes in words."""
    return f"{_jobs(amount.jobs)}, {human_size(amount.size_bytes)}"


def held_words(group: UsageGroup) -> str:
    """Return what a group holds in words, with how many of its jobs were never measured."""
    if group.measured == 0:
        return f"{_jobs(group.held.jobs)}{', not measured' if group.held.jobs else ''}"
    missing = group.held.jobs - group.measured
    return amount_words(group.held) + (f" ({missing} not measured)" if missing else "")


def work_words(work: RunTotals) -> str:
    """Return what runs freed in words."""
    runs = f"{work.runs} run{'' if work.runs == 1 else 's'}"
    return f"{human_size(work.bytes_freed)} by {runs} with {work.errors} errors"


def trash_words(history: LedgerSummary) -> str:
    """Return what waits in the trash in words."""
    jobs, size, _ = history.trash
    return f"{_jobs(jobs)} ({human_size(size)}) wait for their grace" if jobs else "empty"


def run_words(history: LedgerSummary) -> str:
    """Return the last run in words."""
    run = history.last_run
    if run is None:
        return "none yet"
    freed = f"{run.successful + run.failed} jobs cleaned, {human_size(run.bytes_freed)} freed"
    began = f"{run.started_at.astimezone():%a %Y-%m-%d %H:%M}"
    return f"{began} ({name_words(run.trigger)}): {run.outcome or 'going on'}, {freed}, {run.errors} errors"


def next_words(report: Report) -> str:
    """Return the next run in words."""
    if not report.has_daemon:
        return "not known: no daemon runs"
    if report.next_run_at is None:
        return "none: the daemon's schedule is off (schedule.enabled)"
    return time_with_distance(report.next_run_at, report.made_at)


def name_words(name: str | None) -> str:
    """Return a foreign name fit for a line, ``(none)`` where there is none."""
    return shortened(printable(name), 80) if name else "(none)"


def _jobs(count: int) -> str:
    return f"{count} job" if count == 1 else f"{count} jobs"


def _date(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d}"


# -- CSV -------------------------------------------------------------------------------------------


def as_csv(report: Report) -> str:
    """Return the report as one long table: section, name, value, unit."""
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(("section", "name", "value", "unit"))
    for section, name, value, unit in _cells(report):
        table.writerow((section, _cell(name), "" if value is None else value, unit))
    return out.getvalue()


def _cell(name: str) -> str:
    """Return a foreign name that no spreadsheet takes for a formula (an apostrophe goes before it)."""
    text = printable(name)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _cells(report: Report) -> Iterator[tuple[str, str, object, str]]:
    total, history, disk, budget = report.jobs.total, report.history, report.disk, report.budget
    yield "report", "made_at", iso(report.made_at), "time"
    for span, amount in (("last_24h", total.cleaned_24h), ("last_30d", total.cleaned_30d)):
        yield "cleaned", span, amount.jobs, "jobs"
        yield "cleaned", span, amount.size_bytes, "bytes"
    for section, groups in (
        ("usage_by_status", report.jobs.by_status),
        ("usage_by_workflow_type", report.jobs.by_workflow_type),
    ):
        for name, group in holding(groups):
            yield section, name, group.held.jobs, "jobs"
            yield section, name, group.measured, "measured jobs"
            yield section, name, group.held.size_bytes, "bytes"
    if disk is not None:
        yield "disk", "total", disk.total_bytes, "bytes"
        yield "disk", "used", disk.used_bytes, "bytes"
        yield "disk", "free", disk.free_bytes, "bytes"
    if budget is not None:
        yield "capacity", "max", budget.max_bytes, "bytes"
    yield "runs", "next", iso(report.next_run_at), "time"
    if history is None:
        return
    for span, work in (("last_24h", history.work_24h), ("last_30d", history.work_30d)):
        yield "runs", span, work.runs, "runs"
        yield "runs", span, work.errors, "errors"
        yield "runs", span, work.bytes_freed, "bytes"
    for each in history.biggest:
        yield "biggest_jobs", each.job.id, each.size_bytes, "bytes"
    yield "capacity", "held", history.held_bytes, "bytes"
    yield "trash", "waiting", history.trash[0], "jobs"
    yield "trash", "waiting", history.trash[1], "bytes"
    if history.growth is not None:
        yield "growth", "each_day", round(history.growth.bytes_per_day), "bytes"
    for name, found in (("disk_full", history.full), ("budget_used_up", history.over)):
        if found is not None:
            yield "forecast", name, iso(found.at), "time"
            yield "forecast", f"{name}_earliest", iso(found.earliest), "time"
            yield "forecast", f"{name}_latest", iso(found.latest), "time"
    for point in history.trend:
        yield "trend_held", str(iso(point.at)), point.used_bytes, "bytes"
        yield "trend_free", str(iso(point.at)), point.free_bytes, "bytes"
