"""Call code of plugins so that nothing it raises, returns or waits for reaches the caller.

The code runs in a thread of its own.  Python delivers the operator's Ctrl-C to the main thread only, so an
exception in the plugin's thread, KeyboardInterrupt and SystemExit among them, is always the plugin's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from eemtcleanupd.formatting import shortened

Result = TypeVar("Result")
_MAX_TEXT: Final = 100_000


@dataclass(frozen=True, slots=True)
class Failure:
    """What a plugin raised: the exception, and its description."""

    error: BaseException
    description: str


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """A call of a plugin: its thread, and its result or failure; both are None if it has not returned."""

    thread: threading.Thread
    result: Result | None
    failure: Failure | None
    is_over: bool


def call(function: Callable[[], Result], name: str, seconds: float | None = None) -> Call[Result]:
    """Call a function in a thread of its own, and wait for it.

    ``function`` also converts what the plugin returns: methods of such an object are code of the plugin.

    Args:
        function: what to call.
        name: name of the thread.
        seconds: how long to wait, None for as long as it takes.
    """
    outcomes: list[tuple[Result | None, Failure | None]] = []

    def run() -> None:
        try:
            outcomes.append((function(), None))
        except BaseException as error:
            outcomes.append((None, Failure(error, describe_exception(error))))

    # With the caller's context, so that a hook finds the stop flag of its run.
    thread = threading.Thread(target=copy_context().run, args=(run,), name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    result, failure = outcomes[0] if outcomes else (None, None)
    return Call(thread, result, failure, bool(outcomes))


def text_of(value: object) -> str:
    """Return an object as text of limited length; never raises, whatever the object's class does."""
    try:
        # A subclass of str keeps its own methods, so its text is copied.
        return shortened(str.__str__(str(value)), _MAX_TEXT)
    except BaseException as error:
        return f"an object whose conversion to text raised {class_name(error)}"


def describe_exception(error: BaseException) -> str:
    """Return an exception as text for a message; its class is named unless it is a system error.

    Never raises, whatever the exception's class does.
    """
    try:
        if isinstance(error, OSError) and error.strerror:
            return text_of(error.strerror) + (f": {text_of(error.filename)}" if error.filename else "")
    except BaseException:  # noqa: S110  (see the module)
        pass
    text = " ".join(text_of(error).split())
    return f"{class_name(error)}: {text}" if text else class_name(error)


def class_name(error: BaseException) -> str:
    """Return the name of an exception's class, which its metaclass cannot change."""
    name: str = type.__dict__["__name__"].__get__(type(error))
    return name
