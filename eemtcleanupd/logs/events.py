"""Writes events into the log."""

from __future__ import annotations

import logging
import resource

from eemtcleanupd.events import Event, RunFinished
from eemtcleanupd.formatting import human_size

log = logging.getLogger("eemtcleanupd")


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
