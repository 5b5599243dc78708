"""What may come into the daemon's inbox: signals, timers, watchers and runs only ever put one of these there.

The inbox is a ``queue.SimpleQueue``: putting into it is safe in a signal handler, where taking a lock is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from eemtcleanupd.errors import CleanupError
from eemtcleanupd.events import Emit, RunReport
from eemtcleanupd.model import Trigger


@dataclass(frozen=True, slots=True)
class StopRequested:
    """End in order; ``reason`` is in words."""

    reason: str


@dataclass(frozen=True, slots=True)
class ReloadRequested:
    """Read the configuration again, changed or not."""

    reason: str


@dataclass(frozen=True, slots=True)
class ConfigFileChanged:
    """Something happened in the folder of the configuration file: a hint, nothing more."""


@dataclass(frozen=True, slots=True)
class RunCallbacks:
    """What somebody who waits for a run wants of it.

    ``retention`` are hours for successful and failed jobs in place of the configured ones, None for these.
    ``emit`` is told of its events in the run's thread; ``done`` is called once, in any thread, with its
    report or with why there is none (None: it broke in a way nobody foresaw).
    """

    emit: Emit
    done: Callable[[RunReport | CleanupError | None], None]
    retention: tuple[float | None, float | None] = (None, None)
    force: bool = False


@dataclass(frozen=True, slots=True)
class RunRequested:
    """Start a run, or, while one is going on, say so; ``user`` is who is recorded for it."""

    trigger: Trigger
    user: str
    order: RunCallbacks | None = None


@dataclass(frozen=True, slots=True)
class CheckTrash:
    """Look whether something in the trash has outlived its grace."""


@dataclass(frozen=True, slots=True)
class TakeStorageSample:
    """Take a point of the storage history."""


@dataclass(frozen=True, slots=True)
class CheckPressure:
    """Look how full the disk is."""


@dataclass(frozen=True, slots=True)
class CheckConfigFile:
    """Look whether the configuration file has changed, in case no watcher said so."""


@dataclass(frozen=True, slots=True)
class DumpThreads:
    """Log what every thread is doing."""


@dataclass(frozen=True, slots=True)
class Wakeup:
    """A signal arrived; its handler runs now and puts here what it means."""


@dataclass(frozen=True, slots=True)
class RoleChanged:
    """This daemon is the one that cleans from now on, or is not any more."""

    is_active: bool
    reason: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over: its report, or why there is none (``None``: it broke in a way nobody foresaw)."""

    trigger: Trigger
    result: RunReport | CleanupError | None


Message = (
    StopRequested
    | ReloadRequested
    | ConfigFileChanged
    | RunRequested
    | CheckTrash
    | TakeStorageSample
    | CheckPressure
    | CheckConfigFile
    | DumpThreads
    | Wakeup
    | RoleChanged
    | RunEnded
)
Enqueue = Callable[[Message], None]
