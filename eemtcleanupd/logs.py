"""The log: its lines for events, and where they go: a rotated file, stderr or the journal, as text or JSON.

A line of text looks like ``2024-01-20 02:00:01 INFO: Starting job cleanup process``.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import resource
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import ClassVar

from eemtcleanupd.config import Config
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.events import Event, RunFinished
from eemtcleanupd.files import open_folder, open_log, require_log
from eemtcleanupd.formatting import human_size
from eemtcleanupd.privileges import own_rights

log = logging.getLogger("eemtcleanupd")

_MAX_BYTES = 10 * 1024 * 1024
_BACKUPS = 5
_FORMAT = "%(asctime)s %(levelname)s: %(message)s"
_TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


def write_event(event: Event) -> None:
    """Write the log lines of an event, see also :func:`log_memory`."""
    for level, line in event.log_lines():
        log.log(level, "%s", line)
    log_memory(event)


def log_memory(event: Event) -> None:
    """Log the peak memory of the process, at level DEBUG, when a run finished."""
    if isinstance(event, RunFinished):
        # getrusage(2) counts in KB.
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        log.debug("Peak memory: %s", human_size(peak_bytes))


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level, logger, message and, if there is one, the traceback as JSON."""
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        elif record.exc_text:  # from the HTTP worker process
            entry["traceback"] = record.exc_text
        return json.dumps(entry)


class _RotatingFile(logging.handlers.RotatingFileHandler):
    """A log file whose errors stop nothing: runs must work on a full disk, which they are there to clean."""

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        # Opened by the first record or by the caller, because logging.FileHandler would follow links.
        super().__init__(
            path,
            maxBytes=_MAX_BYTES,
            backupCount=_BACKUPS,
            encoding="utf-8",
            errors="backslashreplace",
            delay=True,
        )
        self.stream = self._open()
        self._report = report
        self._errors = 0
        self._is_reported = False

    def _open(self) -> TextIOWrapper:
        descriptor = open_log(Path(self.baseFilename))
        self._is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return open(descriptor, "a", encoding=self.encoding, errors=self.errors)  # noqa: PTH123

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802  (of logging)
        """Return whether the file is full; logging's own way formats each record twice."""
        del record
        if not self.maxBytes or not self._is_regular:
            return False
        stream = self.stream or self._open()
        self.stream = stream
        return stream.tell() + 1 >= self.maxBytes

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; an error is reported once, until a record can be written again."""
        before = self._errors
        with own_rights():  # a thread that deletes can log, and a new file is opened by its path
            super().emit(record)
        if self._errors == before:
            self._is_reported = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (of logging)
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._handle_oserror(error)
        else:
            super().handleError(record)

    def doRollover(self) -> None:  # noqa: N802  (of logging)
        """Start a new file; if that fails, the next record tries again."""
        stream, self.stream = self.stream, None  # close(2) can close and fail, on NFS
        if stream is not None:
            stream.close()
        path = Path(self.baseFilename)
        names = [path.name, *(f"{path.name}.{number}" for number in range(1, _BACKUPS + 1))]
        with open_folder(path.parent) as folder:
            for newer, older in zip(reversed(names[:-1]), reversed(names), strict=False):
                with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
                    os.rename(newer, older, src_dir_fd=folder, dst_dir_fd=folder)
        self.stream = self._open()

    def close(self) -> None:
        """Close the file, even if its last data cannot be written."""
        try:
            super().close()
        except OSError as error:
            self._handle_oserror(error)

    def _handle_oserror(self, error: OSError) -> None:
        self._errors += 1
        if not self._is_reported:
            self._is_reported = True  # set first, because the report can be logged and come back here
            reason = error.strerror or error
            self._report(f"The log {self.baseFilename} cannot be written ({reason}); continuing without it")


def log_to_file(
    path: Path, *, form: str, level: str, on_error: Callable[[str], None] = log.error
) -> logging.FileHandler:
    """Send the log to a file that is rotated at 10 MB, with five old files kept.

    ``form`` is ``text`` or ``json``.  ``on_error`` receives a message when the file is no longer writable.

    Raises:
        ConfigError: the file cannot be opened.
    """
    try:
        with open_folder(path.parent, create=0o777):
            pass
        handler = _RotatingFile(path, on_error)
    except OSError as error:
        raise _not_writable(path, error) from error
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_FORMAT, _TIME_FORMAT))
    handler.setLevel(level)
    log.addHandler(handler)
    log.setLevel(min(handler.level, log.level or handler.level))
    return handler


def require_writable(path: Path) -> None:
    """Check whether :func:`log_to_file` could use a file; create nothing.

    Raises:
        ConfigError: it could not.
    """
    try:
        require_log(path)
    except OSError as error:
        raise _not_writable(path, error) from error


def _not_writable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"Cannot write the log {path} ({error.strerror}). Set logging.file to a writable path."
    )


class JournalFormatter(logging.Formatter):
    """Formats lines for the journal: with the priority of sd-daemon(3), without the time."""

    _PRIORITIES: ClassVar = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}

    def format(self, record: logging.LogRecord) -> str:
        """Return the record with the priority before each of its lines."""
        priority = self._PRIORITIES.get(record.levelname, 6)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def log_to_stderr(environ: Mapping[str, str]) -> logging.Handler:
    """Send the log to stderr too, in the journal's format if stderr is the journal (``JOURNAL_STREAM``)."""
    handler = logging.StreamHandler(sys.stderr)
    is_journal = _stderr_is_journal(environ)
    handler.setFormatter(JournalFormatter() if is_journal else logging.Formatter(_FORMAT, _TIME_FORMAT))
    log.addHandler(handler)
    return handler


def _stderr_is_journal(environ: Mapping[str, str]) -> bool:
    """Return whether stderr is the stream whose device and inode systemd.exec(5) passes."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class LogFile:
    """The daemon's log file, which a new configuration can replace."""

    def __init__(self) -> None:
        self._handler: logging.Handler | None = None
        self._original_level = log.level  # below the configured one if --debug shows more on stderr

    def open(self, config: Config) -> None:
        """Open the log of a configuration, then close the previous one.

        Raises:
            ConfigError: the log cannot be opened; the previous one stays open.
        """
        settings = config.logging
        handler = log_to_file(settings.file, form=settings.format, level=settings.level)
        self.close()
        self._handler = handler
        log.setLevel(min(handler.level, self._original_level or handler.level))

    def close(self) -> None:
        """Stop logging to the file."""
        if self._handler is not None:
            log.removeHandler(self._handler)
            self._handler.close()
            log.setLevel(self._original_level)


def log_threads() -> None:
    """Log the stack of every thread."""
    frames = sys._current_frames()  # noqa: SLF001  (its documentation names just this use)
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "no frame"
        log.info("Thread %s:\n%s", thread.name, stack.rstrip())
