"""The base of all events: which hook and filter an event has, how serious it is, and its texts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final, Literal

Occasion = Literal[
    "success",
    "failure",
    "interrupted",
    "trash",
    "recovery",
    "dry_run",
    "pressure",
    "capacity",
    "config_reloaded",
    "config_rejected",
    "daemon",
]
"""What ``on:`` in a notifier's settings can name.  The first six are results of runs."""
OCCASIONS: Final[Mapping[Occasion, str]] = {
    "success": "a run without errors",
    "failure": "a run that failed, was refused or had errors",
    "interrupted": "a run that was stopped before its end",
    "trash": "a run that only emptied the trash",
    "recovery": "a run that only finished or undid what an interrupted run had started",
    "dry_run": "a dry run",
    "pressure": "a nearly full disk",
    "capacity": "job data that approaches or exceeds its budget",
    "config_reloaded": "a new configuration in force",
    "config_rejected": "a rejected configuration",
    "daemon": "the start or the stop of the daemon",
}
"""The meaning of each occasion, for the documentation."""


class Severity(StrEnum):
    """How serious an event is; the values are Slack's colour names."""

    GOOD = "good"
    WARNING = "warning"
    DANGER = "danger"


_LOG_LEVELS = {Severity.GOOD: logging.INFO, Severity.WARNING: logging.WARNING, Severity.DANGER: logging.ERROR}


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events.

    To add an event, subclass this class and emit it.  The hooks of plugins, the outbox, the filters of
    notifiers, their messages, the log and the console derive from the members below.
    """

    hook: ClassVar[str] = ""
    """Plugin hook that receives the event; empty for an event that only the log and the console show."""
    is_ephemeral: ClassVar[bool] = False
    """Whether the event is sent from memory only, and not to ``notify``: it is frequent or soon outdated."""
    is_frequent: ClassVar[bool] = False
    """Whether a run emits many of them, so that they are sent in batches."""

    @property
    def occasion(self) -> Occasion | None:
        """What ``on:`` in a notifier's settings must name to receive the event; None: always sent."""
        return None

    @property
    def severity(self) -> Severity:
        """How serious the event is."""
        return Severity.GOOD

    @property
    def log_level(self) -> int:
        """Level of :meth:`log_line`; follows from the severity."""
        return _LOG_LEVELS[self.severity]

    @property
    def is_test(self) -> bool:
        """Whether the event only shows what a real one looks like."""
        return False

    @property
    def page(self) -> str | None:
        """Path of the dashboard's page about the event, to which messages link; None if there is none."""
        return None

    def log_line(self) -> str:
        """Return the event as one line of the log and of the console."""
        return self.headline()

    def log_lines(self) -> Iterator[tuple[int, str]]:
        """Yield each log line with its level; only events with several lines override this."""
        yield self.log_level, self.log_line()

    def headline(self) -> str:
        """Return the subject of a message to notifiers."""
        return f"EEMT cleanup: {type(self).__name__}"

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return title and value of each line of a message to notifiers."""
        return ()


Emit = Callable[[Event], None]
