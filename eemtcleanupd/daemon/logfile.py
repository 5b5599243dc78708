"""The daemon's log file, which a new configuration may change, and what every thread does, written there."""

from __future__ import annotations

import logging
import sys
import threading
import traceback

from eemtcleanupd.config import Config
from eemtcleanupd.logs.setup import log, log_to_file


class LogFile:
    """The log file that is open."""

    def __init__(self) -> None:
        self._handler: logging.Handler | None = None
        self._before = log.level  # lower than configured where --debug wants more on stderr

    def open(self, config: Config) -> None:
        """Open the log that a configuration names, and only then let go of the one before.

        Raises:
            ConfigError: it cannot be opened; the one before stays open.
        """
        settings = config.logging
        handler = log_to_file(settings.file, form=settings.format, level=settings.level)
        self.close()
        self._handler = handler
        log.setLevel(min(handler.level, self._before or handler.level))

    def close(self) -> None:
        """Write no log any more."""
        if self._handler is not None:
            log.removeHandler(self._handler)
            self._handler.close()
            log.setLevel(self._before)


def log_threads() -> None:
    """Log what every thread is doing."""
    frames = sys._current_frames()  # noqa: SLF001  (its documentation names just this use)
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "it has no frame"
        log.info("Thread %s:\n%s", thread.name, stack.rstrip())
