"""Events of runs and of the daemon: data, hook, filter name, severity and texts of each in one place."""

from eemtcleanupd.events.base import (
    OCCASIONS as OCCASIONS,
    Emit as Emit,
    Event as Event,
    Occasion as Occasion,
    Severity as Severity,
)

# All events, so that a new one is only added where it is defined.
from eemtcleanupd.events.runs import *  # noqa: F403
from eemtcleanupd.events.system import *  # noqa: F403

# `slots=True` makes a second class, and the first stays a subclass: of each hook, the last class counts.
HOOK_EVENTS: dict[str, type[Event]] = {event.hook: event for event in Event.__subclasses__() if event.hook}
"""Event class by hook name, those of runs first."""
