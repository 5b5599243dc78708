"""Filters of a notifier's settings, and the time of its digest."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from eemtcleanupd.config.plugin_settings import NotifierSettings
from eemtcleanupd.delivery.routing import next_digest, wants
from eemtcleanupd.events import (
    CapacityWarning,
    ConfigRejected,
    ConfigReloaded,
    DaemonStarted,
    DaemonStopping,
    DiskPressure,
    Event,
    JobTally,
    RunFinished,
)
from eemtcleanupd.model import Outcome, Trigger
from tests.notifiers.samples import FAILED, FINISHED, report

WANTED = [
    (FINISHED, {"on": ("success",)}, True),
    (FINISHED, {"on": ("failure",)}, False),
    (RunFinished(report(Outcome.ERRORS, errors=1)), {"on": ("failure",)}, True),
    (RunFinished(report(Outcome.ERRORS, errors=1)), {"on": ("success",)}, False),
    (RunFinished(report("interrupted")), {"on": ("interrupted",)}, True),
    (RunFinished(report(dry_run=True)), {"on": ("success",)}, False),
    (RunFinished(report(dry_run=True)), {"on": ("dry_run",)}, True),
    (RunFinished(report(trigger=Trigger.TRASH)), {"on": ("success",)}, False),
    (RunFinished(report(trigger=Trigger.TRASH)), {"on": ("trash",)}, True),
    (RunFinished(report(trigger=Trigger.TRASH)), {}, True),
    (RunFinished(report(Outcome.ERRORS, errors=1, trigger=Trigger.TRASH)), {"on": ("failure",)}, True),
    (RunFinished(report(trigger=Trigger.RECOVERY)), {"on": ("success",)}, False),
    (RunFinished(report(trigger=Trigger.RECOVERY)), {}, True),
    (RunFinished(report(Outcome.ERRORS, errors=1, trigger=Trigger.RECOVERY)), {"on": ("failure",)}, True),
    (FAILED, {"on": ("failure",)}, True),
    (FAILED, {"on": ("success",)}, False),
    (DiskPressure(1, 2, 3, 4), {"on": ("pressure",)}, True),
    (CapacityWarning(1, 2, 3), {}, True),
    (CapacityWarning(1, 2, 3), {"on": ("pressure",)}, False),
    (ConfigReloaded("f", "r"), {"on": ("config_rejected",)}, False),
    (ConfigRejected("f", "r", "e"), {"on": ("config_rejected",)}, True),
    (DaemonStarted(1, "h", None), {"on": ("daemon",)}, True),
    (DaemonStopping("r"), {"on": ("success",)}, False),
    (FINISHED, {"only_if_cleaned": True}, True),
    (RunFinished(report(is_test=True)), {"on": ("failure",)}, True),
]


@pytest.mark.parametrize(("event", "settings", "wanted"), WANTED)
def test_the_settings_decide_which_events_are_sent(
    event: Event, settings: dict[str, object], wanted: bool
) -> None:
    assert wants(NotifierSettings(**settings), event) == wanted


def test_only_if_cleaned_suppresses_a_run_that_cleaned_nothing() -> None:
    nothing = RunFinished(report(successful=JobTally(), failed=JobTally()))
    assert not wants(NotifierSettings(only_if_cleaned=True), nothing)
    assert wants(NotifierSettings(), nothing)


@pytest.mark.parametrize(
    ("now", "due"),
    [
        (datetime(2026, 6, 15, 4, 59, tzinfo=UTC), datetime(2026, 6, 15, 5, tzinfo=UTC)),
        (datetime(2026, 6, 15, 5, 0, tzinfo=UTC), datetime(2026, 6, 16, 5, tzinfo=UTC)),
        (datetime(2026, 10, 24, 12, tzinfo=UTC), datetime(2026, 10, 25, 6, tzinfo=UTC)),
    ],
)
def test_the_digest_is_due_at_the_next_such_local_time(
    monkeypatch: pytest.MonkeyPatch, now: datetime, due: datetime
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert next_digest("07:00", now) == due
