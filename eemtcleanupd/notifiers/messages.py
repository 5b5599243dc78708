"""Events in words, once for all channels; each channel only gives them its form."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from eemtcleanupd.events import (
    CapacityWarning,
    ConfigRejected,
    ConfigReloaded,
    DaemonStarted,
    DaemonStopping,
    DiskPressure,
    JobNote,
    RunFailed,
    RunFinished,
    RunReport,
    StorageState,
)
from eemtcleanupd.formatting import human_size, printable, shortened
from eemtcleanupd.hookspecs import Digest
from eemtcleanupd.model import Outcome

Severity = Literal["good", "warning", "danger"]


@dataclass(frozen=True, slots=True)
class Message:
    """An event in words: ``facts`` are pairs of a title and a value, ``lists`` a title with its lines.

    ``headline`` stands alone as a subject; nothing in here is markup, and nothing is longer than a line.
    """

    headline: str
    mood: Severity
    facts: tuple[tuple[str, str], ...]
    lists: tuple[tuple[str, tuple[str, ...]], ...] = ()
    storage: StorageState | None = None

    def text(self) -> str:
        """Return everything as plain text."""
        lines = [f"{title}: {value}" for title, value in self.facts]
        for title, entries in self.lists:
            lines += ["", f"{title}:", *(f"  {entry}" for entry in entries)]
        return "\n".join(lines)


def render(event: object) -> Message:
    """Return an event in words."""
    match event:
        case RunFinished(report):
            return _run(report)
        case RunFailed():
            return _failed(event)
        case Digest():
            return _digest(event)
        case DiskPressure():
            return Message(
                f"EEMT disk is {event.used_percent:.1f} % full",
                "warning",
                (
                    ("Used", f"{event.used_percent:.1f} %"),
                    ("Available Space", human_size(event.free_bytes)),
                    ("Cleaning until", f"{event.low_watermark_percent:g} %"),
                ),
            )
        case CapacityWarning():
            budget = human_size(event.max_bytes)
            what = "all" if event.is_over else f"{event.used_percent:.1f} %"
            return Message(
                f"EEMT jobs use {what} of their budget of {budget}",
                "danger" if event.is_over else "warning",
                (
                    ("Current Storage Usage", human_size(event.used_bytes)),
                    ("Budget", f"{budget}, {event.used_percent:.1f} % used"),
                    ("Warning from", f"{event.warn_percent:g} %"),
                ),
            )
        case ConfigRejected():
            return Message(
                "EEMT cleanup refused a configuration",
                "danger",
                (("File", _line(event.file)), ("Reason", _line(event.reason)), ("Error", _line(event.error))),
            )
        case ConfigReloaded():
            return Message(
                "EEMT cleanup has a new configuration",
                "good",
                (("File", _line(event.file)), ("Reason", _line(event.reason))),
            )
        case DaemonStarted():
            return Message(
                f"EEMT cleanup started on {_line(event.host)}",
                "good",
                (("Next cleanup scheduled for", _moment(event.next_run_at)),),
            )
        case DaemonStopping():
            return Message("EEMT cleanup is stopping", "warning", (("Reason", _line(event.reason)),))
        case _:
            return Message(f"EEMT cleanup: {type(event).__name__}", "good", ())


def _run(report: RunReport) -> Message:
    jobs = report.successful.jobs + report.failed.jobs
    freed = human_size(report.bytes_freed)
    host = f" on {_line(report.host)}" if report.host else ""
    test = "[TEST] " if report.is_test else ""
    if report.outcome is Outcome.ERRORS:
        head = f"{test}FAILED for {_jobs(report.errors)}: EEMT cleanup{host}, "
        head += f"{_jobs(jobs)} cleaned, {freed} freed"
    elif report.outcome is Outcome.INTERRUPTED:
        head = f"{test}Interrupted: EEMT cleanup{host}, {_jobs(jobs)} cleaned, {freed} freed"
    else:
        done = "would be cleaned" if report.dry_run else "cleaned"
        gone = f"about {freed}" if report.dry_run else f"{freed} freed"
        head = f"{test}EEMT cleanup{host}: {_jobs(jobs)} {done}, {gone}"
    facts = [
        ("Jobs Cleaned", f"{jobs} ({report.successful.jobs} successful, {report.failed.jobs} failed)"),
        ("Space Freed", freed),
        ("Status", _STATUS[report.outcome] + (" (a test)" if report.is_test else "")),
    ]
    storage = report.storage
    if storage is not None:
        facts += _storage(storage)
    facts.append(("Next cleanup scheduled for", _moment(report.next_run_at)))
    facts.append(("Run", f"{report.run_id} ({_line(report.trigger)}, {_line(report.user)})"))
    if report.errors:
        facts.append(("Errors", str(report.errors)))
    if report.remaining:
        facts.append(("Left for another run", _jobs(report.remaining)))
    if report.pressure:
        facts.append(("Disk pressure", _line(report.pressure)))
    mood: Severity = {Outcome.SUCCESS: "good", Outcome.INTERRUPTED: "warning"}.get(report.outcome, "danger")  # type: ignore[assignment]
    return Message(head, mood, tuple(facts), _lists(report), storage)


_STATUS = {
    Outcome.SUCCESS: "Success",
    Outcome.ERRORS: "Failed for some jobs",
    Outcome.INTERRUPTED: "Interrupted",
}


def _storage(storage: StorageState) -> list[tuple[str, str]]:
    facts = [("Current Storage Usage", human_size(storage.used_bytes))]
    if storage.capacity_max_bytes:
        percent = 100 * storage.used_bytes / storage.capacity_max_bytes
        facts.append(("Budget", f"{human_size(storage.capacity_max_bytes)}, {percent:.1f} % used"))
    if storage.total_bytes:
        share = f" of {human_size(storage.total_bytes)}"
        facts.append(("Available Space", human_size(storage.free_bytes) + share))
    return facts


def _lists(report: RunReport) -> tuple[tuple[str, tuple[str, ...]], ...]:
    lists = (
        ("Errors", tuple(f"{_id(each)}: {_line(each.message)}" for each in report.failures)),
        ("Kept by plugins", tuple(f"{_id(each)}: {_line(each.message)}" for each in report.vetoed)),
        (
            "Biggest jobs",
            tuple(
                f"{_id(each)}: {human_size(each.bytes_freed)}" for each in report.biggest if each.bytes_freed
            ),
        ),
    )
    return tuple(each for each in lists if each[1])


def _failed(event: RunFailed) -> Message:
    host = f" on {_line(event.host)}" if event.host else ""
    return Message(
        f"FAILED: EEMT cleanup{host} did not run",
        "danger",
        (
            ("Status", "Failed"),
            ("Error", _line(event.error)),
            ("Run", f"{event.run_id} ({_line(event.trigger or '')})"),
        ),
    )


def _digest(event: Digest) -> Message:
    reports = [each.report for each in event.finished]
    jobs = sum(report.successful.jobs + report.failed.jobs for report in reports)
    freed = human_size(sum(report.bytes_freed for report in reports))
    errors = sum(report.errors for report in reports) + len(event.failed)
    host = next((f" on {_line(report.host)}" for report in reports if report.host), "")
    head = f"EEMT Daily Cleanup Report{host}: {_jobs(jobs)} cleaned, {freed} freed"
    facts = [
        ("Jobs Cleaned", str(jobs)),
        ("Space Freed", freed),
        ("Status", f"{errors} errors" if errors else "Success"),
        ("Runs", f"{len(reports)} ended, {len(event.failed)} failed"),
    ]
    storage = reports[-1].storage if reports else None
    if storage is not None:
        facts += _storage(storage)
    facts.append(("Next cleanup scheduled for", _moment(reports[-1].next_run_at if reports else None)))
    failures = [f"{_id(each)}: {_line(each.message)}" for report in reports for each in report.failures]
    failures += [f"run {each.run_id}: {_line(each.error)}" for each in event.failed]
    biggest = sorted(
        (each for report in reports for each in report.biggest), key=lambda each: -each.bytes_freed
    )
    lists = (
        ("Errors", tuple(failures[:10])),
        ("Biggest jobs", tuple(f"{_id(each)}: {human_size(each.bytes_freed)}" for each in biggest[:10])),
    )
    return Message(
        f"FAILED: {head}" if errors else head,
        "danger" if errors else "good",
        tuple(facts),
        tuple(each for each in lists if each[1]),
        storage,
    )


def _jobs(count: int) -> str:
    return f"{count} job" if count == 1 else f"{count} jobs"


def _id(note: JobNote) -> str:
    # Foreign ids may hold anything; escaping them twice does no harm.
    return _line(note.job_id)


def _line(text: str) -> str:
    return shortened(printable(text.replace("\n", " ")), 300)


def _moment(moment: datetime | None) -> str:
    return "not scheduled" if moment is None else f"{moment.astimezone():%a %Y-%m-%d %H:%M}"
