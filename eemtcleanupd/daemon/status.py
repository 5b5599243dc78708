"""The daemon's status file: a small JSON file that is replaced whole whenever the status changes."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, AwareDatetime, PlainSerializer, TypeAdapter

from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import StoreError
from eemtcleanupd.files import read_own, write_atomic
from eemtcleanupd.formatting import human_amounts, local_time, plural, printable_lines
from eemtcleanupd.model import Trigger
from eemtcleanupd.store.address import StoreAddress

if TYPE_CHECKING:
    from eemtcleanupd.cleanup import Progress
    from eemtcleanupd.store.lock import Holder

log = logging.getLogger(__name__)

T = TypeVar("T")

_FILE = "status.json"
_RUN_FILE = "run.json"
_MAX_BYTES = 1 << 20
PROGRESS_SECONDS = 0.5
"""How often the progress of a run is published."""
BEAT_SECONDS = 30
"""Maximum age of the file while the daemon's loop is running."""

_Time = Annotated[AwareDatetime, PlainSerializer(datetime.isoformat)]
# The owner of the job store can write the file.
_Text = Annotated[str, AfterValidator(printable_lines)]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Progress of the active run; ``jobs_total`` are the jobs that need a decision."""

    trigger: _Text
    started_at: _Time
    jobs_done: int
    jobs_total: int
    bytes_freed: int
    bytes_trashed: int = 0
    run_id: str = ""

    @classmethod
    def of(cls, trigger: str, started_at: datetime, progress: Progress) -> RunStatus:
        """Return the status of a run that has this progress."""
        jobs = (progress.jobs_done, progress.jobs_total)
        return cls(trigger, started_at, *jobs, progress.bytes_freed, progress.bytes_trashed, progress.run_id)

    def summary(self) -> str:
        """Return the progress as one line."""
        done = f"{self.jobs_done:,} of {plural(self.jobs_total, 'job')} processed"
        if self.trigger == Trigger.RECOVERY:
            done = "finishing what an interrupted run left"
        elif self.trigger == Trigger.TRASH:
            done = "emptying the trash"
        amounts = human_amounts(self.bytes_freed, self.bytes_trashed, None)
        return f"Run ({self.trigger}): {done}, {amounts}"


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The daemon's state; times are aware UTC."""

    pid: int
    version: str
    state: _Text
    """``idle``, ``running``, ``standby`` or ``stopping``."""
    started_at: _Time
    heartbeat_at: _Time
    next_run_at: _Time | None
    schedule: _Text | None
    dry_run: bool
    run: RunStatus | None
    config_file: str | None
    config_loaded_at: _Time
    config_attempts: int
    """Number of attempts to load the configuration."""
    config_attempted_at: _Time
    config_error: _Text | None
    """Why the last attempt failed, None when it succeeded."""
    last_error: _Text | None
    """Why the daemon's last run failed, None when it did not."""
    last_error_at: _Time | None = None
    """When that was known; a run that began later is newer than this failure."""
    unresponsive: tuple[_Text, ...] = ()
    """Notifiers that have not answered in time."""
    role: str = "active"
    """``active``, or ``standby`` while another daemon is active."""
    active: _Text | None = None
    """The active daemon, if this one is its standby."""

    def summary(self) -> str:
        """Return the state as one line, for ``systemctl status``."""
        parts = []
        if self.state == "stopping":
            parts.append("Stopping")
        if self.role == "standby":
            parts.append(f"Standby for {self.active or 'another daemon'}")
        if self.run is not None:
            parts.append(self.run.summary())
        elif self.next_run_at is None:
            parts.append("The schedule is off (schedule.enabled)")
        else:
            parts.append(f"Next run {local_time(self.next_run_at)}")
        if self.dry_run:
            parts.append("dry runs only")
        if self.last_error:
            parts.append(f"the last run failed: {self.last_error}")
        if self.unresponsive:
            parts.append(f"no answer from {', '.join(self.unresponsive)}")
        if self.config_error:
            parts.append(f"the new configuration was refused: {self.config_error}")
        return "; ".join(parts).replace("\n", " ")


@cache
def _adapter(document: type[T]) -> TypeAdapter[T]:
    """Return what converts a document; making it takes milliseconds that a short run need not spend."""
    return TypeAdapter(document)


class StatusFile:
    """Writes the status file. A failure is logged once and otherwise ignored."""

    def __init__(self, address: StoreAddress) -> None:
        self._path = address.own_file(_FILE)
        self._written: DaemonStatus | None = None
        self._has_failed = False

    def write(self, status: DaemonStatus) -> None:
        """Write the status if it has changed, or if the file is older than ``BEAT_SECONDS``."""
        before = self._written
        if before is not None:
            age = status.heartbeat_at - before.heartbeat_at
            is_same = replace(before, heartbeat_at=status.heartbeat_at) == status
            if is_same and timedelta() <= age < timedelta(seconds=BEAT_SECONDS):
                return
        try:
            # json, unlike pydantic, escapes the bytes of a path that is not UTF-8.
            text = json.dumps(status_to_dict(status), indent=2)
            write_atomic(self._path, f"{text}\n".encode(), mode=None)
        except OSError as error:
            if not self._has_failed:
                text = "Cannot write %s (%s); 'eemtcleanupd status' will be incomplete."
                log.warning(text, self._path, error)
            self._has_failed = True
            self._written = None  # the next step tries again
        else:
            self._has_failed = False
            self._written = status

    def remove(self) -> None:
        """Remove the file when the daemon ends."""
        self._path.unlink(missing_ok=True)


class _RunFile:
    """What a run without a daemon tells other processes about its progress; ``pid`` is that of the run."""

    def __init__(self, address: StoreAddress) -> None:
        self._path = address.own_file(_RUN_FILE)

    def write(self, run: RunStatus) -> None:
        document = {"pid": os.getpid(), "run": _adapter(RunStatus).dump_python(run, mode="json")}
        with suppress(OSError):  # the disk can be full, and the run continues
            write_atomic(self._path, json.dumps(document).encode("ascii"), mode=None)

    def remove(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


@contextmanager
def published_progress(address: StoreAddress, trigger: Trigger, progress: Progress) -> Iterator[None]:
    """Let other processes read the progress of a run, which no daemon runs, during the ``with`` block."""
    file, started_at, ended = _RunFile(address), system_clock(), threading.Event()

    def watch() -> None:
        while not ended.wait(PROGRESS_SECONDS):
            if progress.pool is not None:  # the run holds the lock, so no other run writes the file
                file.write(RunStatus.of(trigger, started_at, progress))

    watcher = threading.Thread(target=watch, name="published progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        if progress.pool is not None:
            file.remove()


def read_progress(address: StoreAddress, holder: Holder | None) -> RunStatus | None:
    """Return the progress of the run that holds the lock of a job store; None if it is unknown here."""
    if holder is None or holder.host != socket.gethostname():
        return None
    try:
        document = json.loads(read_own(address.own_file(_RUN_FILE), _MAX_BYTES))
        # A killed run leaves its file.
        return _adapter(RunStatus).validate_python(document["run"]) if document["pid"] == holder.pid else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_status(address: StoreAddress) -> DaemonStatus | None:
    """Return the status that the daemon wrote last; None without a file of it, or when it is invalid.

    The file says nothing about whether the daemon runs: only its lock does.
    """
    try:
        return status_from_dict(json.loads(read_own(address.own_file(_FILE), _MAX_BYTES)))
    except (OSError, ValueError, RecursionError):
        return None


def next_run_of_daemon(address: StoreAddress) -> datetime | None:
    """Return the next scheduled run of the daemon, None if there is no daemon here or its schedule is off."""
    from eemtcleanupd.store.lock import find_daemon

    with suppress(StoreError):
        if find_daemon(address) is not None and (status := read_status(address)) is not None:
            return status.next_run_at
    return None


def status_to_dict(status: DaemonStatus) -> dict[str, Any]:
    """Return a status as JSON values; times are in ISO 8601."""
    document: dict[str, Any] = _adapter(DaemonStatus).dump_python(status, mode="json")
    return document


def status_from_dict(document: Mapping[str, Any]) -> DaemonStatus:
    """Return the status of :func:`status_to_dict`.

    Raises:
        ValueError: the document is not a status.
    """
    status: DaemonStatus = _adapter(DaemonStatus).validate_python(document)
    return status


def time_with_distance(moment: datetime, now: datetime) -> str:
    """Return a local time and its distance from now: ``Wed 2026-11-25 02:00 +0100 (5 hours from now)``."""
    import humanize  # it takes 15 ms

    with suppress(OverflowError):  # in a file that another program wrote
        return f"{local_time(moment)} ({humanize.naturaltime(now - moment, months=False)})"
    return local_time(moment)
