"""Each event class carries all that log, notifiers and filters need."""

from __future__ import annotations

import logging
import typing

import pytest

from eemtcleanupd.events import HOOK_EVENTS, OCCASIONS, Event, Occasion, Severity
from eemtcleanupd.hookspecs import EVENT_HOOKS, NOTIFY_COVERS, Hooks
from eemtcleanupd.notifiers.messages import render
from tests.notifiers.samples import EVENTS

SAMPLES = [event for event in EVENTS if isinstance(event, Event)]


def test_every_event_with_a_hook_has_one_class_and_one_hookspec() -> None:
    assert all(hook == event.hook for hook, event in HOOK_EVENTS.items())
    assert all(getattr(Hooks, hook).__doc__ for hook in EVENT_HOOKS)


def test_notify_covers_all_events_but_the_ephemeral_ones() -> None:
    ephemeral = {hook for hook, event in HOOK_EVENTS.items() if event.is_ephemeral}
    assert set(EVENT_HOOKS) - NOTIFY_COVERS == {*ephemeral, "notify"}


def test_every_occasion_has_a_meaning() -> None:
    assert list(OCCASIONS) == list(typing.get_args(Occasion))


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: type(event).__name__)
def test_an_event_sent_to_notifiers_has_a_filter_a_severity_and_texts(event: Event) -> None:
    assert event.hook in HOOK_EVENTS
    assert event.occasion in typing.get_args(Occasion)
    message = render(event)
    assert message.severity is event.severity
    assert message.facts
    assert type(event).__name__ not in message.headline


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: type(event).__name__)
def test_a_dangerous_event_is_at_least_a_warning_in_the_log(event: Event) -> None:
    lines = list(event.log_lines())
    assert lines
    if event.severity is Severity.DANGER:
        assert max(level for level, _ in lines) >= logging.WARNING
