"""Print a run's events as lines on the console."""

from __future__ import annotations

import logging
import sys

import click

from eemtcleanupd.events import (
    ORPHAN,
    Event,
    JobCleaned,
    JobPlanned,
    JobSkipped,
    JobTally,
    OrphanFound,
    PurgePlanned,
    RunFailed,
    RunFinished,
    RunReport,
    RunStarted,
)
from eemtcleanupd.formatting import human_age, human_size, human_trashed, plural, printable, short_name
from eemtcleanupd.model import Outcome

_COLORS = {"INFO": None, "WARNING": "yellow", "ERROR": "red", "DRY RUN": "cyan"}


class ConsoleReporter:
    """Prints summaries, warnings and errors; with ``verbose`` every job too, with ``quiet`` no summary."""

    def __init__(self, *, verbose: bool = False, quiet: bool = False) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._orphans = 0
        self._orphan_bytes = 0

    def __call__(self, event: Event) -> None:
        """Print the lines of one event."""
        match event:
            case RunStarted():
                self._detail("Starting job cleanup process...")
                self._detail(event.policy)
                if event.database is not None:
                    self._database(str(event.database))
                self._detail(f"Found {plural(event.jobs_to_check, 'job', grouped=False)} to check")
            case JobPlanned():
                self._planned(event)
            case JobCleaned():
                if self._verbose:
                    self._cleaned(event)
            case JobSkipped():
                if event.notable:
                    self._say("WARNING", event.log_line())
                else:
                    noun = "orphan" if event.job.status == ORPHAN else "job"
                    end = " (acknowledged)" if event.acknowledged else ""
                    self._detail(f"Keeping {noun} {short_name(event.job.id)}: {event.reason}{end}")
            case OrphanFound():
                self._orphan(event)
            case PurgePlanned():
                labels = ", ".join(map(short_name, event.artifacts))
                self._say(
                    "DRY RUN", f"Would delete from the trash: {labels} ({human_size(event.size_bytes)})"
                )
            case RunFinished(report):
                self._finished(report)
            case RunFailed():
                pass  # the command prints the error when it exits
            case _ if event.log_level >= logging.WARNING:
                self._say(logging.getLevelName(event.log_level), event.log_line())

    def _database(self, summary: str) -> None:
        """Print which database is in use.  Without ``verbose``, only a person at a terminal sees it."""
        if self._verbose:
            self._say("INFO", summary)
        elif sys.stderr.isatty() and not self._quiet:
            # The progress bar is on this line, and is drawn again below.
            click.echo(f"\r\033[K[INFO] {summary}", err=True, color=True)

    def _detail(self, message: str) -> None:
        if self._verbose:
            self._say("INFO", message)

    def _say(self, level: str, *messages: str) -> None:
        if level in {"WARNING", "ERROR"} or not self._quiet:
            start = click.style(f"[{level}]", fg=_COLORS[level])
            click.echo("\n".join(f"{start} {message}" for message in messages))

    def _planned(self, event: JobPlanned) -> None:
        job = f"{short_name(event.job.id)} (status: {event.job.status}, age: {human_age(event.age)})"
        verb = "move to the trash" if event.to_trash else "delete"
        self._say(
            "DRY RUN",
            f"Would clean job {job}",
            *(
                f"Would {verb}: {short_name(artifact.found.label)} ({human_size(artifact.size_bytes)})"
                for artifact in event.artifacts
            ),
            *(
                f"Would keep: {short_name(label)} (another job needs it)"
                for label in (event.shared if self._verbose else ())
            ),
        )

    def _cleaned(self, event: JobCleaned) -> None:
        age = "left by an earlier run" if event.age is None else f"{human_age(event.age, precise=False)} old"
        self._detail(f"Checking job {short_name(event.job.id)} ({printable(event.job.status)}, {age})")
        verb = "Moving to the trash" if event.in_trash else "Deleting"
        for artifact in event.artifacts:
            self._detail(f"{verb} {short_name(artifact.found.label)} ({human_size(artifact.size_bytes)})")
        self._detail("Updated database: marked job as cleaned")

    def _orphan(self, event: OrphanFound) -> None:
        if event.planned:
            size = human_size(event.size_bytes)
            self._say("DRY RUN", f"Would delete: {short_name(event.found.label)} ({size}, owned by no job)")
            return
        if event.removed:
            self._detail(f"Deleted orphan {short_name(event.found.label)} ({human_size(event.size_bytes)})")
            return
        if not event.acknowledged:
            self._orphans += 1
            self._orphan_bytes += event.size_bytes
        end = " (acknowledged)" if event.acknowledged else ""
        size = human_size(event.size_bytes)
        self._detail(f"Found orphan {short_name(event.found.label)} ({size}){end}")

    def _finished(self, report: RunReport) -> None:
        if self._orphans:
            size = human_size(self._orphan_bytes)
            hint = "" if self._verbose else ". List them with --verbose."
            self._say("WARNING", f"Found {plural(self._orphans, 'orphan')} ({size}) without a job{hint}")
        self._kept(report)
        if report.dry_run:
            jobs = report.successful.jobs + report.failed.jobs
            freeing = f"freeing ~{human_size(report.bytes_freed)}"
            if report.bytes_trashed:
                freeing += f" and moving ~{human_size(report.bytes_trashed)} to the trash"
            for noun, tally in (("orphan", report.orphans), ("trash item", report.trash_purged)):
                if tally.jobs:
                    size = human_size(tally.bytes_freed + tally.bytes_trashed)
                    self._say("DRY RUN", f"Would remove {plural(tally.jobs, noun)} ({size})")
            self._say("DRY RUN", f"Summary: Would clean {plural(jobs, 'job', grouped=False)}, {freeing}")
            return
        for name, tally in (("successful", report.successful), ("failed", report.failed)):
            self._say(
                "INFO", f"Cleaned {plural(tally.jobs, f'{name} job', grouped=False)} ({_amounts(tally)})"
            )
        for noun, tally in (("orphan", report.orphans), ("expired trash item", report.trash_purged)):
            if tally.jobs:
                self._say("INFO", f"Removed {plural(tally.jobs, noun)} ({_amounts(tally)})")
        if report.bytes_trashed:
            trashed = human_trashed(report.bytes_trashed, report.purge_after)
            self._say("INFO", f"{trashed}. List it with `eemtcleanupd trash list`.")
        if report.outcome is Outcome.SUCCESS:
            self._say("INFO", "Cleanup completed successfully")
        elif report.outcome is Outcome.ERRORS:
            self._say("ERROR", f"Cleanup completed with errors on {plural(report.errors, 'job')}")
        else:
            self._say("WARNING", "Cleanup was interrupted; the next run continues")

    def _kept(self, report: RunReport) -> None:
        if report.acknowledged:
            jobs = plural(report.acknowledged, "job", grouped=False)
            self._say("INFO", f"Kept {jobs} with an acknowledged warning")
        if report.missing:
            self._say("INFO", f"Found {plural(report.missing, 'uncleaned job')} without any files")
        if report.remaining:
            size = human_size(report.remaining_bytes)
            size = f" ({size} in jobs above the size threshold)" if report.remaining_bytes else ""
            self._say("INFO", f"Left {plural(report.remaining, 'expired job')} for another run{size}")


def _amounts(tally: JobTally) -> str:
    freed = f"freed {human_size(tally.bytes_freed)}"
    if not tally.bytes_trashed:
        return freed
    return f"{freed}, moved {human_size(tally.bytes_trashed)} to the trash"
