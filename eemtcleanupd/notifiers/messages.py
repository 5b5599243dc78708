"""Turns events into messages for people: the run report here, other events from ``events/``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from heapq import nlargest
from itertools import accumulate
from typing import NamedTuple

from eemtcleanupd.events import Event, JobNote, RunFinished, RunReport, Severity, StorageState
from eemtcleanupd.formatting import human_size, local_time, plural, printable, shortened
from eemtcleanupd.hookspecs import Digest, NotifierSettings
from eemtcleanupd.model import Outcome, Trigger

LINK_TITLE = "On the dashboard"
_NAMED_JOBS = 3
# An error names one or two paths, and a path without its middle cannot be found.
_ERROR_LIMIT = 1000
Facts = list[tuple[str, str]]


class Listing(NamedTuple):
    """A title with lines, and how many ``more`` there are."""

    title: str
    lines: tuple[str, ...]
    more: int = 0

    def cut(self, limit: int) -> Listing:
        """Return the list with the lines that fit into ``limit`` bytes, and with the others counted."""
        lines = tuple(first_lines(self.lines, limit))
        return Listing(self.title, lines, self.more + len(self.lines) - len(lines))


def first_lines(lines: Sequence[str], limit: int) -> Sequence[str]:
    """Return the first lines that fit into ``limit`` bytes of UTF-8 together, and always the first."""
    ends = accumulate(len(line.encode("utf-8", "replace")) + 1 for line in lines)
    return lines[: max(1, sum(end <= limit for end in ends))]


@dataclass(frozen=True, slots=True)
class Message:
    """An event as text: ``facts`` are titles with a value, ``lists`` titles with lines.

    ``link`` is the URL of a page of the dashboard, from the configuration.

    ``headline`` is a complete subject.  No text contains markup, and each is at most one line long.
    """

    headline: str
    severity: Severity
    facts: tuple[tuple[str, str], ...]
    lists: tuple[Listing, ...] = ()
    storage: StorageState | None = None
    link: str | None = None

    def text(self) -> str:
        """Return facts and lists as plain text."""
        lines = [f"{title}: {value}" for title, value in self.facts]
        if self.link is not None:
            lines.append(f"{LINK_TITLE}: {self.link}")
        for title, entries, more in self.lists:
            lines += ["", f"{title}:", *(f"  {entry}" for entry in entries)]
            if more:
                lines.append(f"  {more_text(more)}" + ("" if self.link is None else f": {self.link}"))
        return "\n".join(lines)


def more_text(more: int) -> str:
    """Return what follows a list that is not complete."""
    return f"and {more:,} more"


def render(event: Event | Digest, settings: NotifierSettings | None = None) -> Message:
    """Return an event as text, with a link to the dashboard if the settings of the notifier know its URL."""
    link = None if settings is None else settings.page_url(event.page)
    if isinstance(event, Digest):
        return replace(_digest_message(event), link=link)
    if isinstance(event, RunFinished):
        return replace(_report_message(event), link=link)
    facts = tuple((title, _line(value)) for title, value in event.facts())
    return Message(_line(event.headline()), event.severity, facts, link=link)


def _report_message(event: RunFinished) -> Message:
    report = event.report
    jobs = report.successful.jobs + report.failed.jobs
    freed, purged = human_size(report.bytes_freed), report.trash_purged
    cleaned = f"{plural(jobs, 'job')} cleaned, {report.amounts}"
    if report.trigger is Trigger.TRASH:
        cleaned = f"{plural(purged.jobs, 'item')} deleted from the trash, {report.amounts}"
    host = f" on {_line(report.host)}" if report.host else ""
    test = "[TEST] " if report.is_test else ""
    what = "EEMT recovery of an interrupted run" if report.trigger is Trigger.RECOVERY else "EEMT cleanup"
    if report.outcome is Outcome.ERRORS:
        headline = f"{test}FAILED for {plural(report.errors, 'job')}: {what}{host}, {cleaned}"
    elif report.outcome is Outcome.INTERRUPTED:
        headline = f"{test}Interrupted: {what}{host}, {cleaned}"
    elif report.dry_run:
        size = human_size(report.bytes_freed + report.bytes_trashed)
        headline = f"{test}{what}{host}: {plural(jobs, 'job')} would be cleaned, about {size}"
    else:
        headline = f"{test}{what}{host}: {cleaned}"
    facts = [
        ("Jobs to Clean" if report.dry_run else "Jobs Cleaned", str(jobs)),
        ("Space to Free" if report.dry_run else "Space Freed", freed),
        ("Status", _STATUS[report.outcome] + (" (a test)" if report.is_test else "")),
        *_trash_facts(report),
        ("Successful Jobs", str(report.successful.jobs)),
        ("Failed Jobs", str(report.failed.jobs)),
        *_storage_facts(report.storage),
        ("Next cleanup scheduled for", local_time(report.next_run_at)),
        ("Run", f"{report.run_id} ({_line(report.trigger)}, {_line(report.user)})"),
    ]
    if report.errors:
        facts.append(("Errors", str(report.errors)))
    if report.acknowledged:
        facts.append(("Acknowledged", plural(report.acknowledged, "kept job")))
    if report.remaining:
        facts.append(("Left for another run", plural(report.remaining, "job")))
    if report.pressure:
        facts.append(("Disk pressure", _line(report.pressure)))
    lists = _lists(
        ("Errors", _failures(report), report.errors),
        (
            "Kept by plugins",
            (f"{_line(note.job_id)}: {_line(note.message)}" for note in report.vetoed),
            report.vetoed_jobs,
        ),
        ("Biggest jobs", _sizes(report.biggest)),
    )
    return Message(headline, event.severity, tuple(facts), lists, report.storage)


_STATUS = {
    Outcome.SUCCESS: "Success",
    Outcome.ERRORS: "Failed for some jobs",
    Outcome.INTERRUPTED: "Interrupted",
}


def _digest_message(digest: Digest) -> Message:
    all_reports = [event.report for event in digest.finished]
    reports = [report for report in all_reports if not report.dry_run]
    jobs = sum(report.successful.jobs + report.failed.jobs for report in reports)
    freed = human_size(sum(report.bytes_freed for report in reports))
    trashed = sum(report.bytes_trashed for report in reports)
    purge_after = max((report.purge_after for report in reports if report.purge_after), default=None)
    errors = sum(report.errors for report in reports) + len(digest.failed)
    hosts = dict.fromkeys(
        _line(host)
        for host in (*(report.host for report in all_reports), *(event.host for event in digest.failed))
    )
    dry_count = len(all_reports) - len(reports)
    dry_runs = f", {plural(dry_count, 'dry run')}" if dry_count else ""
    interrupted = sum(report.outcome is Outcome.INTERRUPTED for report in reports)
    problems = [plural(errors, "error")] if errors else []
    problems += [f"{plural(interrupted, 'run')} interrupted"] if interrupted else []
    next_runs = [report.next_run_at for report in all_reports] + [run.next_run_at for run in digest.failed]
    storage = reports[-1].storage if reports else None
    facts = [
        ("Jobs Cleaned", str(jobs)),
        ("Space Freed", freed),
        ("Status", ", ".join(problems) or "Success"),
        *([("Moved to Trash", _waiting(trashed, purge_after))] if trashed else []),
        ("Runs", f"{len(reports)} ended, {len(digest.failed)} failed{dry_runs}"),
        *(("Host", host) for host in hosts if host),
        *_storage_facts(storage),
        ("Next cleanup scheduled for", local_time(max(filter(None, next_runs), default=None))),
    ]
    failures = [line for report in reports for line in _failures(report)]
    failures += [f"run {event.run_id}: {_line(event.error)}" for event in digest.failed]
    biggest = [note for report in reports for note in report.biggest]
    lists = _lists(("Errors", failures[:10], errors), ("Biggest jobs", _sizes(biggest)))
    headline, severity = "EEMT Daily Cleanup Report", Severity.GOOD
    if errors:
        headline, severity = f"FAILED: {headline}", Severity.DANGER
    elif interrupted:
        headline, severity = f"Interrupted: {headline}", Severity.WARNING
    return Message(headline, severity, tuple(facts), lists, storage)


def _trash_facts(report: RunReport) -> Facts:
    facts, purged = [], report.trash_purged
    if report.bytes_trashed:
        facts.append(("Moved to Trash", _waiting(report.bytes_trashed, report.purge_after)))
    if purged.jobs:
        size = human_size(purged.bytes_freed)
        facts.append(("Deleted from Trash", f"{plural(purged.jobs, 'item')}, {size} freed"))
    return facts


def _waiting(size_bytes: int, purge_after: datetime | None) -> str:
    deletion = "" if purge_after is None else f", deleted on {local_time(purge_after)}"
    return f"{human_size(size_bytes)}{deletion}"


def _storage_facts(storage: StorageState | None) -> Facts:
    if storage is None:
        return []
    facts = [("Current Storage Usage", human_size(storage.used_bytes))]
    if storage.trash_jobs:
        first = (
            "" if storage.trash_purge_at is None else f", deleted from {local_time(storage.trash_purge_at)}"
        )
        size = human_size(storage.trash_bytes)
        facts.append(("Waiting in Trash", f"{plural(storage.trash_jobs, 'item')}, {size}{first}"))
    if storage.capacity_max_bytes:
        percent = 100 * storage.used_bytes / storage.capacity_max_bytes
        facts.append(("Budget", f"{human_size(storage.capacity_max_bytes)}, {percent:.1f} % used"))
    if storage.total_bytes:
        free = f"{human_size(storage.free_bytes)} of {human_size(storage.total_bytes)}"
        facts.append(("Available Space", free))
    return facts


def _lists(*lists: tuple[str, Iterable[str]] | tuple[str, Iterable[str], int]) -> tuple[Listing, ...]:
    """Return the lists that have a line; each can be given with the number of all lines."""
    listings = []
    for title, given, *total in lists:
        if lines := tuple(given):
            listings.append(Listing(title, lines, max(0, sum(total) - len(lines))))
    return tuple(listings)


def _failures(report: RunReport) -> list[str]:
    # Ids are in printable form; to escape them twice does no harm.
    return [f"{_line(note.job_id)}: {_line(note.message, _ERROR_LIMIT)}" for note in report.failures]


def _sizes(notes: Iterable[JobNote]) -> list[str]:
    """Return the largest of these jobs with their sizes."""
    cleaned = [note for note in notes if note.bytes_cleaned]
    largest = nlargest(_NAMED_JOBS, cleaned, key=lambda note: note.bytes_cleaned)
    return [f"{_line(note.job_id)}: {human_size(note.bytes_cleaned)}" for note in largest]


def _line(text: str, limit: int = 300) -> str:
    return shortened(printable(text.replace("\n", " ")), limit)
