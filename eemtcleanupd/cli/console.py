"""What a run prints: the lines of the user's document, or one JSON document."""

from __future__ import annotations

import logging

import click

from eemtcleanupd.events import (
    Event,
    JobCleaned,
    JobPlanned,
    JobSkipped,
    OrphanFound,
    RunFailed,
    RunFinished,
    RunReport,
    RunStarted,
)
from eemtcleanupd.formatting import human_age, human_size, printable, shortened
from eemtcleanupd.model import Outcome

_COLORS = {"INFO": None, "WARNING": "yellow", "ERROR": "red", "DRY RUN": "cyan"}


class ConsoleReporter:
    """Prints the document's lines; every job with ``verbose``, otherwise what a person must know."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._orphans = 0
        self._orphan_bytes = 0

    def __call__(self, event: Event) -> None:
        """Print what this event is worth."""
        match event:
            case RunStarted():
                self._detail("Starting job cleanup process...")
                self._detail(event.policy)
                self._detail(f"Found {event.jobs_to_check} jobs to check")
            case JobPlanned():
                self._planned(event)
            case JobCleaned():
                self._cleaned(event)
            case JobSkipped():
                if event.notable:
                    _say("WARNING", f"Kept job {_short(event.job.id)}: {event.reason}")
                else:
                    self._detail(f"Keeping job {_short(event.job.id)}: {event.reason}")
            case OrphanFound():
                self._orphan(event)
            case RunFinished(report):
                self._finished(report)
            case RunFailed():
                pass  # the command prints the error when it exits
            case _ if event.log_level >= logging.WARNING:
                _say(logging.getLevelName(event.log_level), event.log_line())

    def _detail(self, message: str) -> None:
        if self._verbose:
            _say("INFO", message)

    def _planned(self, event: JobPlanned) -> None:
        age = human_age(event.age)
        _say("DRY RUN", f"Would clean job {_short(event.job.id)} (status: {event.job.status}, age: {age})")
        for part in event.artifacts:
            size = f" ({human_size(part.size_bytes)})"
            _say("DRY RUN", f"Would delete: {_short(part.found.label)}{size}")
        if self._verbose:
            for label in event.shared:
                _say("DRY RUN", f"Would keep: {_short(label)} (another job needs it)")

    def _cleaned(self, event: JobCleaned) -> None:
        age = "left by an earlier run" if event.age is None else f"{human_age(event.age, precise=False)} old"
        self._detail(f"Checking job {_short(event.job.id)} ({printable(event.job.status)}, {age})")
        verb = "Moving to the trash" if event.in_trash else "Deleting"
        for part in event.artifacts:
            self._detail(f"{verb} {_short(part.found.label)} ({human_size(part.size_bytes)})")
        self._detail("Updated database: marked job as cleaned")

    def _orphan(self, event: OrphanFound) -> None:
        if event.removed:
            self._detail(
                f"Deleted {_short(event.found.label)} ({human_size(event.size_bytes)}), owned by no job"
            )
            return
        self._orphans += 1
        self._orphan_bytes += event.size_bytes
        self._detail(f"No job owns {_short(event.found.label)} ({human_size(event.size_bytes)})")

    def _finished(self, report: RunReport) -> None:
        if self._orphans:
            size = human_size(self._orphan_bytes)
            hint = "" if self._verbose else "; --verbose names them"
            _say("WARNING", f"{_plural(self._orphans, 'entry', 'entries')} ({size}) that no job owns{hint}")
        if report.missing:
            _say("INFO", f"{_plural(report.missing, 'job')} not cleaned yet whose files are gone already")
        if report.remaining:
            _say("INFO", f"{_plural(report.remaining, 'due job')} left for another run")
        if report.dry_run:
            jobs = report.successful.jobs + report.failed.jobs
            freeing = f"freeing ~{human_size(report.bytes_freed)}"
            _say("DRY RUN", f"Summary: Would clean {_plural(jobs, 'job')}, {freeing}")
            return
        for name, tally in (("successful", report.successful), ("failed", report.failed)):
            freed = human_size(tally.bytes_freed)
            _say("INFO", f"Cleaned {_plural(tally.jobs, f'{name} job')} (freed {freed})")
        for what, tally in (("orphan", report.orphans), ("expired trash item", report.trash_purged)):
            if tally.jobs:
                _say("INFO", f"Removed {_plural(tally.jobs, what)} (freed {human_size(tally.bytes_freed)})")
        if report.outcome is Outcome.SUCCESS:
            _say("INFO", "Cleanup completed successfully")
        elif report.outcome is Outcome.ERRORS:
            _say("ERROR", f"Cleanup completed with errors on {_plural(report.errors, 'job')}")
        else:
            _say("WARNING", "Cleanup was interrupted; the next run goes on")


def _say(level: str, message: str) -> None:
    click.echo(click.style(f"[{level}]", fg=_COLORS[level]) + f" {message}")


def _plural(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def _short(name: str) -> str:
    return shortened(printable(name))
