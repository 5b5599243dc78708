"""Messages to the daemon: signals, timers, file watches, runs and the API only put these into its inbox.

The inbox is a ``queue.SimpleQueue``: a signal handler can safely put into it, but cannot safely take a lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto

from eemtcleanupd.errors import CleanupError
from eemtcleanupd.events import Emit, RunReport
from eemtcleanupd.model import Trigger


class Notice(Enum):
    """Messages without data."""

    CONFIG_FILE_CHANGED = auto()
    """Something happened in the folder of the configuration file. Its content might be the same."""
    CHECK_CONFIG_FILE = auto()
    """Check whether the configuration file has changed, in case the file watch missed it."""
    CHECK_TRASH = auto()
    """Check whether the grace of something in the trash has passed."""
    CHECK_PRESSURE = auto()
    """Check how full the disk is."""
    TAKE_STORAGE_SAMPLE = auto()
    """Add a point to the storage history."""
    DUMP_THREADS = auto()
    """Log the stack of every thread."""
    WAKEUP = auto()
    """A signal arrived; its handler, which runs now, puts the message that it stands for."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Stop in order; ``reason`` is text for the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class ReloadRequested:
    """Reload the configuration, even when its file has not changed."""

    reason: str


@dataclass(frozen=True, slots=True)
class RunCallbacks:
    """Options and callbacks of a client that waits for a run.

    ``retention`` has hours for successful and failed jobs; None keeps the configured value.
    ``purge_older_than`` is that of the run's request.
    ``emit`` receives the run's events, in the run's thread.  ``done`` is called once, in any thread, with the
    report, or with the error (None: an unexpected exception, which is in the log).
    """

    emit: Emit
    done: Callable[[RunReport | CleanupError | None], None]
    retention: tuple[float | None, float | None] = (None, None)
    force: bool = False
    purge_older_than: timedelta | None = None


@dataclass(frozen=True, slots=True)
class RunRequested:
    """Start a run, or refuse it while another is active; ``user`` is recorded as its author."""

    trigger: Trigger
    user: str
    callbacks: RunCallbacks | None = None


@dataclass(frozen=True, slots=True)
class RunStopRequested:
    """Stop the run ``run_id`` in order, or without it the run in progress; ``user`` requests it."""

    user: str
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run has ended, with a report or an error (None: an unexpected exception, which is in the log)."""

    trigger: Trigger
    result: RunReport | CleanupError | None


@dataclass(frozen=True, slots=True)
class RoleChanged:
    """This daemon became the active one, or the standby."""

    is_active: bool
    reason: str


Message = Notice | StopRequested | ReloadRequested | RunRequested | RunStopRequested | RunEnded | RoleChanged
Enqueue = Callable[[Message], None]
"""Puts a message into the inbox."""
