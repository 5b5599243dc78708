"""The log: where it goes, its form, and what a run writes into it.

The form is the user's document's: ``2024-01-20 02:00:01 INFO: Starting job cleanup process``.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from eemtcleanupd.errors import ConfigError
from eemtcleanupd.events import (
    CapacityWarning,
    ConfigRejected,
    ConfigReloaded,
    DaemonStarted,
    DaemonStopping,
    DiskPressure,
    Event,
    JobCleaned,
    JobFailed,
    JobPlanned,
    JobSkipped,
    OrphanFound,
    RunFailed,
    RunFinished,
    RunReport,
    RunStarted,
    Warned,
)
from eemtcleanupd.formatting import human_age, human_size, printable, shortened
from eemtcleanupd.model import Outcome

log = logging.getLogger("eemtcleanupd")

_MAX_BYTES = 10 * 1024 * 1024
_BACKUPS = 5
_FORM = "%(asctime)s %(levelname)s: %(message)s"
_TIME_FORM = "%Y-%m-%d %H:%M:%S"


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON: time, level, logger, message, and the traceback if there is one."""
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        elif record.exc_text:  # from the process that answers HTTP
            entry["traceback"] = record.exc_text
        return json.dumps(entry)


class _RotatingFile(logging.handlers.RotatingFileHandler):
    """A log file.  On a full disk, which is what a run is there to mend, work goes on without it."""

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        super().__init__(
            path, maxBytes=_MAX_BYTES, backupCount=_BACKUPS, encoding="utf-8", errors="backslashreplace"
        )
        self._tell = tell
        self._faults = 0
        self._is_told = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; that it cannot be written is told once, until one can be again."""
        before = self._faults
        super().emit(record)
        if self._faults == before:
            self._is_told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (of logging)
        """Tell that a record could not be written."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._fault(error)
        else:
            super().handleError(record)

    def doRollover(self) -> None:  # noqa: N802  (of logging)
        """Begin a new file; the next record tries again where that fails."""
        try:
            super().doRollover()
        except OSError:
            if self.stream is not None and self.stream.closed:  # which close(2) may do as it fails, on NFS
                self.stream = None
            raise

    def close(self) -> None:
        """Close the file, whatever is left to be written."""
        try:
            super().close()
        except OSError as error:
            self._fault(error)

    def _fault(self, error: OSError) -> None:
        self._faults += 1
        if not self._is_told:
            self._is_told = True  # before it is told: what is told may come here again
            why = error.strerror or error
            self._tell(f"The log {self.baseFilename} cannot be written ({why}); the work goes on without it")


def log_to_file(
    path: Path, *, form: str, level: str, tell: Callable[[str], None] = log.error
) -> logging.FileHandler:
    """Send the log to a file that is rotated at 10 MB, five old ones kept.

    Args:
        path: the file; its folder is made.
        form: ``text`` or ``json`` (``logging.format``).
        level: the lowest level that is written (``logging.level``).
        tell: is told when it can no longer be written.

    Raises:
        ConfigError: the file cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _RotatingFile(path, tell)
    except OSError as error:
        raise ConfigError(
            f"the log {path} cannot be written ({error.strerror}); set logging.file to a place that can"
        ) from error
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_FORM, _TIME_FORM))
    handler.setLevel(level)
    log.addHandler(handler)
    log.setLevel(min(handler.level, log.level or handler.level))
    return handler


class JournalFormatter(logging.Formatter):
    """Lines for the journal: the priority as sd-daemon(3) has it; the journal knows the time by itself."""

    _PRIORITIES: ClassVar = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}

    def format(self, record: logging.LogRecord) -> str:
        """Return the record, each of its lines with the priority."""
        priority = self._PRIORITIES.get(record.levelname, 6)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def log_to_stderr(environ: Mapping[str, str]) -> logging.Handler:
    """Send the log to stderr too, in the journal's form when stderr is the journal (``JOURNAL_STREAM``)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JournalFormatter() if _is_journal(environ) else logging.Formatter(_FORM, _TIME_FORM))
    log.addHandler(handler)
    return handler


def _is_journal(environ: Mapping[str, str]) -> bool:
    """Tell whether stderr is the stream that systemd.exec(5) names by device and inode."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def write_event(event: Event) -> None:
    """Write what a run or the daemon tells into the log."""
    match event:
        case RunStarted():
            log.info("Starting job cleanup process")
            log.info("Run %s: %s", event.run_id, event.policy)
            log.info("Found %d jobs to check", event.jobs_to_check)
        case JobPlanned():
            log.info("[DRY RUN] Would clean job %s: %s", _short(event.job.id), event.reason)
        case JobCleaned():
            age = "left by an earlier run" if event.age is None else f"{human_age(event.age)} old"
            if event.ahead_of_retention:
                log.warning("Taking job %s early: it %s", _short(event.job.id), event.ahead_of_retention)
            log.info("Cleaning job %s (%s, %s)", _short(event.job.id), printable(event.job.status), age)
            for part in event.artifacts:
                verb = "Moved to the trash" if event.in_trash else "Deleted"
                log.info("%s %s (%s)", verb, _short(part.found.label), human_size(part.size_bytes))
        case JobSkipped():
            level = logging.WARNING if event.notable else logging.DEBUG
            log.log(level, "Kept job %s: %s", _short(event.job.id), event.reason)
        case JobFailed():
            log.error("Job %s could not be cleaned: %s", _short(event.job_id), printable(event.error))
        case OrphanFound():
            verb = "Removed" if event.removed else "Found"
            log.info(
                "%s %s (%s), which no job owns", verb, _short(event.found.label), human_size(event.size_bytes)
            )
        case Warned():
            log.warning("%s", event.message)
        case RunFailed():
            log.error("Cleanup failed: %s", event.error)
        case RunFinished(report):
            _write_report(report)
        case _:
            _write_daemon_event(event)


def _write_report(report: RunReport) -> None:
    log.info(
        "Cleanup summary: %d successful, %d failed, %s freed",
        report.successful.jobs,
        report.failed.jobs,
        human_size(report.bytes_freed),
    )
    if report.pressure:
        log.warning(
            "%d jobs went ahead of their retention (%s): %s",
            report.early.jobs,
            human_size(report.early.bytes_freed),
            report.pressure,
        )
    if report.outcome is Outcome.SUCCESS:
        log.info("Cleanup completed successfully")
    elif report.outcome is Outcome.ERRORS:
        log.error("Cleanup completed with errors on %d jobs", report.errors)
    else:
        log.warning("Cleanup was interrupted; the next run goes on")
    log.debug("Peak memory: %s", human_size(peak_memory_bytes()))


def _write_daemon_event(event: Event) -> None:
    match event:
        case DaemonStarted():
            next_run = f"{event.next_run_at:%Y-%m-%d %H:%M} UTC" if event.next_run_at else "not scheduled"
            log.info("Daemon started, process %d on %s; next run %s", event.pid, event.host, next_run)
        case DaemonStopping():
            log.info("Daemon stopping: %s", event.reason)
        case ConfigReloaded():
            log.info("Configuration %s is in force (%s)", event.file, event.reason)
        case ConfigRejected():
            log.error(
                "Configuration %s was refused, the one before stays in force (%s): %s",
                event.file,
                event.reason,
                event.error,
            )
        case CapacityWarning():
            log.warning(
                "Jobs hold %s, %.1f %% of their budget of %s",
                human_size(event.used_bytes),
                event.used_percent,
                human_size(event.max_bytes),
            )
        case DiskPressure():
            log.warning(
                "The results filesystem is %.1f %% full (high watermark %g %%), %s free",
                event.used_percent,
                event.high_watermark_percent,
                human_size(event.free_bytes),
            )


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held (getrusage(2) counts in KB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _short(name: str) -> str:
    return shortened(printable(name))
