"""What the daemon says of itself: a small file of its own, replaced whole whenever it changes."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from eemtcleanupd.files import write_atomic
from eemtcleanupd.formatting import human_age, human_size
from eemtcleanupd.store.address import StoreAddress

log = logging.getLogger(__name__)

_FILE = "status.json"
BEAT_SECONDS = 30
"""How old the file gets at most while the daemon's loop goes round."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The run that is going on; ``jobs_total`` are those that need a decision."""

    trigger: str
    started_at: datetime
    jobs_done: int
    jobs_total: int
    bytes_freed: int


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The daemon's state; times are aware UTC.

    ``config_error`` is why the last attempt to read the configuration was refused, None when the file that
    is there is in force.  ``config_attempts`` counts the attempts.
    """

    pid: int
    version: str
    state: str
    started_at: datetime
    heartbeat_at: datetime
    next_run_at: datetime | None
    schedule: str | None
    dry_run: bool
    run: RunStatus | None
    config_file: str | None
    config_loaded_at: datetime
    config_attempts: int
    config_attempted_at: datetime
    config_error: str | None
    last_error: str | None
    """Why the last run did not happen or broke off, None when it ended by itself."""
    unresponsive: tuple[str, ...] = ()
    """Notifiers that have not answered in time."""
    role: str = "active"
    """``active``, or ``standby`` while another daemon cleans."""
    active: str | None = None
    """The daemon that this one stands by for."""

    def summary(self) -> str:
        """Return the state in one line, as ``systemctl status`` shows it."""
        parts = []
        if self.state == "stopping":
            parts.append("Stopping")
        if self.role == "standby":
            parts.append(f"Standing by for {self.active or 'another daemon'}")
        if self.run is not None:
            freed = f", {human_size(self.run.bytes_freed)} freed" if self.run.bytes_freed else ""
            done = f"{self.run.jobs_done} of {self.run.jobs_total} jobs"
            parts.append(f"Run ({self.run.trigger}) has looked at {done}{freed}")
        elif self.next_run_at is None:
            parts.append("The schedule is off (schedule.enabled)")
        else:
            parts.append(f"Next run {self.next_run_at.astimezone():%a %Y-%m-%d %H:%M}")
        if self.dry_run:
            parts.append("dry runs only")
        if self.last_error:
            parts.append(f"the last run failed: {self.last_error}")
        if self.unresponsive:
            parts.append(f"no answer from {', '.join(self.unresponsive)}")
        if self.config_error:
            parts.append(f"the new configuration was refused: {self.config_error}")
        return "; ".join(parts).replace("\n", " ")


class StatusFile:
    """Writes the file; one that cannot be written is warned of once and missed by nobody else."""

    def __init__(self, location: StoreAddress) -> None:
        self._path = location.own_file(_FILE)
        self._written: DaemonStatus | None = None
        self._has_failed = False

    def write(self, status: DaemonStatus) -> None:
        """Write the status when it says something new, or the last one has become old."""
        before = self._written
        if before is not None and status.heartbeat_at - before.heartbeat_at < timedelta(seconds=BEAT_SECONDS):
            same = all(
                getattr(status, each.name) == getattr(before, each.name)
                for each in fields(status)
                if each.name != "heartbeat_at"
            )
            if same and status.heartbeat_at >= before.heartbeat_at:
                return
        try:
            text = json.dumps(status_to_dict(status), indent=2)
            write_atomic(self._path, f"{text}\n".encode(), mode=None)
        except OSError as error:
            if not self._has_failed:
                log.warning("%s cannot be written (%s): `eemtcleanupd status` knows less", self._path, error)
            self._has_failed = True
        else:
            self._has_failed = False
        self._written = status

    def remove(self) -> None:
        """Remove the file: the daemon is gone."""
        self._path.unlink(missing_ok=True)


def read_status(location: StoreAddress) -> DaemonStatus | None:
    """Return the status that the daemon wrote last, None if there is none or it cannot be read."""
    try:
        return status_from_dict(json.loads(location.own_file(_FILE).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def status_to_dict(status: DaemonStatus) -> dict[str, Any]:
    """Return a status as JSON has it; times are in ISO 8601."""
    document: dict[str, Any] = json.loads(json.dumps(asdict(status), default=_as_text))
    return document


def status_from_dict(document: dict[str, Any]) -> DaemonStatus:
    """Return the status of :func:`status_to_dict`.

    Raises:
        ValueError, KeyError, TypeError: the document is not a status.
    """
    times = ("started_at", "heartbeat_at", "next_run_at", "config_loaded_at", "config_attempted_at")
    values = {**document, "unresponsive": tuple(document["unresponsive"])}
    values |= {name: document[name] and datetime.fromisoformat(document[name]) for name in times}
    if (run := document["run"]) is not None:
        values["run"] = RunStatus(**{**run, "started_at": datetime.fromisoformat(run["started_at"])})
    return DaemonStatus(**values)


def time_with_distance(moment: datetime, now: datetime) -> str:
    """Return a time of day with how far away it is: ``Wed 2026-11-25 02:00 (in 5.2 hours)``."""
    distance = moment - now
    seconds = abs(distance.total_seconds())
    if seconds < 60:
        span = f"{seconds:.0f} seconds"
    elif seconds < 3600:
        span = f"{seconds / 60:.0f} minutes"
    else:
        span = human_age(abs(distance))
    relation = f"in {span}" if distance.total_seconds() >= 0 else f"{span} ago"
    return f"{moment.astimezone():%a %Y-%m-%d %H:%M} ({relation})"


def _as_text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{value!r} has no form in JSON")
