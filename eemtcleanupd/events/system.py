"""Events of the daemon, of its configuration and of the disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from eemtcleanupd.events.base import Event, Severity
from eemtcleanupd.events.runs import Total
from eemtcleanupd.formatting import human_size, local_time


@dataclass(frozen=True, slots=True)
class DaemonStarted(Event):
    """The daemon started; ``next_run_at`` is aware UTC, None while the schedule is off."""

    hook = "daemon_started"
    occasion = "daemon"

    pid: int
    host: str
    next_run_at: datetime | None
    totals: tuple[Total, ...] = ()
    last_success_at: datetime | None = None

    def log_line(self) -> str:
        next_run = local_time(self.next_run_at)
        return f"Daemon started, process {self.pid} on {self.host}; next run {next_run}"

    def headline(self) -> str:
        return f"EEMT cleanup started on {self.host}"

    def facts(self) -> tuple[tuple[str, str], ...]:
        return (("Next cleanup scheduled for", local_time(self.next_run_at)),)


@dataclass(frozen=True, slots=True)
class DaemonStopping(Event):
    """The daemon is stopping; ``reason`` says why as text."""

    hook = "daemon_stopping"
    occasion = "daemon"
    severity = Severity.WARNING
    log_level = logging.INFO

    reason: str

    def log_line(self) -> str:
        return f"Daemon stopping: {self.reason}"

    def headline(self) -> str:
        return "EEMT cleanup is stopping"

    def facts(self) -> tuple[tuple[str, str], ...]:
        return (("Reason", self.reason),)


@dataclass(frozen=True, slots=True)
class ConfigReloaded(Event):
    """A new configuration is in force; ``reason`` says why the daemon read it.

    ``next_run_at`` is aware UTC, None while the schedule is off.
    """

    hook = "config_reloaded"
    occasion = "config_reloaded"

    file: str
    reason: str
    next_run_at: datetime | None = None

    def log_line(self) -> str:
        return f"Configuration {self.file} is in force ({self.reason})"

    def headline(self) -> str:
        return "EEMT cleanup has a new configuration"

    def facts(self) -> tuple[tuple[str, str], ...]:
        return ("File", self.file), ("Reason", self.reason)


@dataclass(frozen=True, slots=True)
class ConfigRejected(Event):
    """A new configuration was rejected; the previous one stays in force.

    ``error`` names file, line and key.
    """

    hook = "config_rejected"
    occasion = "config_rejected"
    severity = Severity.DANGER

    file: str
    reason: str
    error: str

    def log_line(self) -> str:
        return (
            f"Configuration {self.file} was rejected, the previous one stays in force "
            f"({self.reason}): {self.error}"
        )

    def headline(self) -> str:
        return "EEMT cleanup rejected a configuration"

    def facts(self) -> tuple[tuple[str, str], ...]:
        return ("File", self.file), ("Reason", self.reason), ("Error", self.error)


@dataclass(frozen=True, slots=True)
class DiskPressure(Event):
    """The results filesystem is above its high watermark; a run follows."""

    hook = "disk_pressure"
    occasion = "pressure"
    severity = Severity.WARNING

    used_percent: float
    free_bytes: int
    high_watermark_percent: float
    low_watermark_percent: float

    def log_line(self) -> str:
        return (
            f"The results filesystem is {self.used_percent:.1f} % full (high watermark "
            f"{self.high_watermark_percent:g} %), {human_size(self.free_bytes)} free"
        )

    def headline(self) -> str:
        return f"EEMT disk is {self.used_percent:.1f} % full"

    def facts(self) -> tuple[tuple[str, str], ...]:
        return (
            ("Used", f"{self.used_percent:.1f} %"),
            ("Available Space", human_size(self.free_bytes)),
            ("Cleaning until", f"{self.low_watermark_percent:g} %"),
        )


@dataclass(frozen=True, slots=True)
class CapacityWarning(Event):
    """The jobs use more than ``warn_percent`` of their budget, or all of it."""

    hook = "capacity_warning"
    occasion = "capacity"
    log_level = logging.WARNING

    used_bytes: int
    max_bytes: int
    warn_percent: float

    @property
    def used_percent(self) -> float:
        """Used part of the budget, in percent."""
        return 100 * self.used_bytes / self.max_bytes

    @property
    def is_over(self) -> bool:
        """Whether the jobs use the complete budget or more."""
        return self.used_bytes >= self.max_bytes

    @property
    def severity(self) -> Severity:
        return Severity.DANGER if self.is_over else Severity.WARNING

    def log_line(self) -> str:
        used, budget = human_size(self.used_bytes), human_size(self.max_bytes)
        return f"Jobs use {used}, {self.used_percent:.1f} % of their budget of {budget}"

    def headline(self) -> str:
        used = "all" if self.is_over else f"{self.used_percent:.1f} %"
        return f"EEMT jobs use {used} of their budget of {human_size(self.max_bytes)}"

    def facts(self) -> tuple[tuple[str, str], ...]:
        return (
            ("Current Storage Usage", human_size(self.used_bytes)),
            ("Budget", f"{human_size(self.max_bytes)}, {self.used_percent:.1f} % used"),
            ("Warning from", f"{self.warn_percent:g} %"),
        )
