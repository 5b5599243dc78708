"""Events as JSON, the form in which they wait in the outbox."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import datetime

from eemtcleanupd.events import HOOK_EVENTS, Event

_SURROGATE = re.compile("[\ud800-\udfff]")


def encode(event: Event) -> str:
    """Return an event as JSON; bytes of names that are not UTF-8 are escaped."""
    text = json.dumps(asdict(event), default=datetime.isoformat, ensure_ascii=False)
    return _SURROGATE.sub(lambda match: f"\\\\u{ord(match[0]):04x}", text)


def decode(hook: str, payload: object) -> Event:
    """Return the event that :func:`encode` wrote, or ``payload`` itself if it is an event.

    Raises:
        ValueError: another version of the program wrote it, so it is not readable.
    """
    if isinstance(payload, Event):
        return payload
    from pydantic import TypeAdapter

    event_class = HOOK_EVENTS.get(hook)
    if event_class is None or not isinstance(payload, str):
        raise ValueError(f"unknown event {hook}")
    return TypeAdapter(event_class).validate_json(payload)
