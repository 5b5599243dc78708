"""Which events a notifier receives, and when: the filters and the digest time of its settings."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from eemtcleanupd.clock import local_zone
from eemtcleanupd.config.plugin_settings import NotifierSettings
from eemtcleanupd.events import Event, RunFailed, RunFinished

DIGEST_HOOKS = (RunFinished.hook, RunFailed.hook)
"""Hooks whose events can wait for a digest."""


def wants(settings: NotifierSettings, event: Event) -> bool:
    """Return whether a notifier's settings let an event through (``on``, ``only_if_cleaned``)."""
    occasion = event.occasion
    if event.is_test or occasion is None:
        return True
    if occasion == "trash" and isinstance(event, RunFinished) and not event.report.bytes_freed:
        return False  # what expired stays in the trash, because other jobs need it
    is_success = occasion in {"success", "recovery"}
    if is_success and settings.only_if_cleaned and isinstance(event, RunFinished):
        report = event.report
        if not (report.bytes_freed or report.successful.jobs or report.failed.jobs):
            return False
    return occasion in settings.on


def next_digest(time_of_day: str, now: datetime) -> datetime:
    """Return when the next digest is due: the next occurrence of a local time, as aware UTC."""
    local = now.astimezone(local_zone())
    hour, minute = map(int, time_of_day.split(":"))
    due = local.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if due <= local:
        due += timedelta(days=1)
    return due.astimezone(UTC)
