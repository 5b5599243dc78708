"""Turns events into messages for people: the run report here, other events from ``events/``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from eemtcleanupd.events import Event, JobNote, RunFinished, RunReport, Severity, StorageState
from eemtcleanupd.formatting import human_size, local_time, plural, printable, shortened
from eemtcleanupd.hookspecs import Digest
from eemtcleanupd.model import Outcome, Trigger

Facts = list[tuple[str, str]]
Lists = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Message:
    """An event as text: ``facts`` are titles with a value, ``lists`` titles with lines.

    ``headline`` is a complete subject.  No text contains markup, and each is at most one line long.
    """

    headline: str
    severity: Severity
    facts: tuple[tuple[str, str], ...]
    lists: Lists = ()
    storage: StorageState | None = None

    def text(self) -> str:
        """Return facts and lists as plain text."""
        lines = [f"{title}: {value}" for title, value in self.facts]
        for title, entries in self.lists:
            lines += ["", f"{title}:", *(f"  {entry}" for entry in entries)]
        return "\n".join(lines)


def render(event: Event | Digest) -> Message:
    """Return an event as text."""
    if isinstance(event, Digest):
        return _digest_message(event)
    if isinstance(event, RunFinished):
        return _report_message(event)
    facts = tuple((title, _line(value)) for title, value in event.facts())
    return Message(_line(event.headline()), event.severity, facts)


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
        *_trash_facts(report),
        ("Status", _STATUS[report.outcome] + (" (a test)" if report.is_test else "")),
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
        ("Errors", _failures(report)),
        ("Kept by plugins", (f"{_line(note.job_id)}: {_line(note.message)}" for note in report.vetoed)),
        ("Biggest jobs", _sizes(note for note in report.biggest if note.bytes_cleaned)),
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
    headline = "EEMT Daily Cleanup Report"
    storage = reports[-1].storage if reports else None
    facts = [
        ("Jobs Cleaned", str(jobs)),
        ("Space Freed", freed),
        *([("Moved to Trash", _waiting(trashed, purge_after))] if trashed else []),
        ("Status", plural(errors, "error") if errors else "Success"),
        ("Runs", f"{len(reports)} ended, {len(digest.failed)} failed{dry_runs}"),
        *(("Host", host) for host in hosts if host),
        *_storage_facts(storage),
        ("Next cleanup scheduled for", local_time(all_reports[-1].next_run_at if all_reports else None)),
    ]
    failures = [line for report in reports for line in _failures(report)]
    failures += [f"run {event.run_id}: {_line(event.error)}" for event in digest.failed]
    biggest = sorted((n for report in reports for n in report.biggest), key=lambda note: -note.bytes_cleaned)
    lists = _lists(("Errors", failures[:10]), ("Biggest jobs", _sizes(biggest[:10])))
    if errors:
        return Message(f"FAILED: {headline}", Severity.DANGER, tuple(facts), lists, storage)
    return Message(headline, Severity.GOOD, tuple(facts), lists, storage)


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
    if storage.capacity_max_bytes:
        percent = 100 * storage.used_bytes / storage.capacity_max_bytes
        facts.append(("Budget", f"{human_size(storage.capacity_max_bytes)}, {percent:.1f} % used"))
    if storage.total_bytes:
        free = f"{human_size(storage.free_bytes)} of {human_size(storage.total_bytes)}"
        facts.append(("Available Space", free))
    return facts


def _lists(*lists: tuple[str, Iterable[str]]) -> Lists:
    return tuple((title, lines) for title, given in lists if (lines := tuple(given)))


def _failures(report: RunReport) -> list[str]:
    # Ids are in printable form; to escape them twice does no harm.
    return [f"{_line(note.job_id)}: {_line(note.message)}" for note in report.failures]


def _sizes(notes: Iterable[JobNote]) -> list[str]:
    return [f"{_line(note.job_id)}: {human_size(note.bytes_cleaned)}" for note in notes]


def _line(text: str) -> str:
    return shortened(printable(text.replace("\n", " ")), 300)
