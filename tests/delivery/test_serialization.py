"""Events survive the way through the outbox."""

from __future__ import annotations

import pytest

from eemtcleanupd.delivery.serialization import decode, encode
from eemtcleanupd.events import Event
from tests.notifiers.samples import EVENTS, FINISHED, HOSTILE_REPORT


@pytest.mark.parametrize(
    "event", [event for event in EVENTS if isinstance(event, Event)], ids=lambda event: type(event).__name__
)
def test_a_decoded_event_equals_the_encoded_one(event: Event) -> None:
    decoded = decode(event.hook, encode(event))
    assert type(decoded) is type(event)
    if event is not HOSTILE_REPORT:  # bytes that are not UTF-8 become escapes
        assert decoded == event


def test_an_event_in_memory_stays_as_it_is() -> None:
    assert decode(FINISHED.hook, FINISHED) is FINISHED


@pytest.mark.parametrize(
    ("hook", "payload"), [("run_failed", '{"other": 1}'), ("run_failed", "{"), ("unknown", "{}")]
)
def test_an_event_of_another_version_is_a_value_error(hook: str, payload: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (the class is the contract)
        decode(hook, payload)
