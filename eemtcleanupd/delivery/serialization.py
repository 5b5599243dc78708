"""What notifiers are told: which event by which hook, whether one wants it, and in what form it waits."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from eemtcleanupd.clock import local_zone
from eemtcleanupd.config.plugin_settings import NotifierSettings
from eemtcleanupd.events import (
    CapacityWarning,
    ConfigRejected,
    ConfigReloaded,
    DaemonStarted,
    DaemonStopping,
    DiskPressure,
    Event,
    JobCleaned,
    RunFailed,
    RunFinished,
    RunStarted,
)
from eemtcleanupd.model import Outcome, Trigger

HOOKS: dict[type[Any], str] = {
    DaemonStarted: "daemon_started",
    DaemonStopping: "daemon_stopping",
    ConfigReloaded: "config_reloaded",
    ConfigRejected: "config_rejected",
    RunStarted: "run_started",
    JobCleaned: "job_cleaned",
    RunFinished: "run_finished",
    RunFailed: "run_failed",
    DiskPressure: "disk_pressure",
    CapacityWarning: "capacity_warning",
}
"""The hook that is told of an event."""
DIGESTIBLE = ("run_finished", "run_failed")
"""The hooks whose events may wait for a digest."""

_TYPES = {hook: kind for kind, hook in HOOKS.items()}
_SURROGATE = re.compile("[\ud800-\udfff]")


def wants(settings: NotifierSettings, event: Event) -> bool:
    """Tell whether a notifier's settings let an event through (``on``, ``only_if_cleaned``)."""
    match event:
        case RunFinished(report):
            if report.is_test:
                return True
            if report.dry_run:
                return "dry_run" in settings.on
            if report.outcome is Outcome.SUCCESS:
                if report.trigger == Trigger.TRASH:
                    return "trash" in settings.on
                nothing = not (report.bytes_freed or report.successful.jobs or report.failed.jobs)
                return "success" in settings.on and not (nothing and settings.only_if_cleaned)
            return ("interrupted" if report.outcome is Outcome.INTERRUPTED else "failure") in settings.on
        case RunFailed():
            return "failure" in settings.on
        case DiskPressure():
            return "pressure" in settings.on
        case CapacityWarning():
            return "capacity" in settings.on
        case ConfigReloaded():
            return "config_reloaded" in settings.on
        case ConfigRejected():
            return "config_rejected" in settings.on
        case DaemonStarted() | DaemonStopping():
            return "daemon" in settings.on
        case _:
            return True


def next_digest(time_of_day: str, now: datetime) -> datetime:
    """Return when the next message a day is due: the next such local time, aware UTC."""
    local = now.astimezone(local_zone())
    hour, minute = map(int, time_of_day.split(":"))
    due = local.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if due <= local:
        due += timedelta(days=1)
    return due.astimezone(UTC)


def encode(event: Event) -> str:
    """Return an event as JSON; bytes of names that are not UTF-8 are escaped."""
    text = json.dumps(asdict(event), default=_as_text, ensure_ascii=False)
    return _SURROGATE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", text)


def decode(hook: str, payload: object) -> object:
    """Return the event that :func:`encode` wrote, or the event itself if it never was.

    Raises:
        ValueError: it cannot be read, for another version of the program wrote it.
    """
    if not isinstance(payload, str):
        return payload
    from pydantic import TypeAdapter

    return TypeAdapter(_TYPES[hook]).validate_json(payload)


def is_test(event: object) -> bool:
    """Tell whether an event only shows what one would look like."""
    return isinstance(event, RunFinished) and event.report.is_test


def _as_text(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
