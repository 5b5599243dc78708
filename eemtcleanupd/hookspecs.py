"""Hooks that plugins can implement, and what plugins import to do so.

A plugin is a module, or a class, whose functions carry :data:`hookimpl`.  A class is instantiated once.
A function can leave out arguments that it does not need.  ``settings`` is the plugin's validated block under
``notifications:``, None when the plugin registers no settings.

Hooks with an ``event`` run in a thread of the plugin, one call at a time.  Text that they return is the
channel's answer, which ``notify-test`` shows.  They can raise :class:`RetryLater`; after any other exception
the message is not sent again.  ``recipients`` is empty, except in a retry after a RetryLater that named them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import pluggy

from eemtcleanupd.config.plugin_settings import NotifierSettings
from eemtcleanupd.events import HOOK_EVENTS, AuditEntry, Event, RunFailed, RunFinished
from eemtcleanupd.model import ArtifactPath, Job

PROJECT: Final = "eemtcleanupd"
"""Project name of pluggy and name of the entry-point group."""

EVENT_HOOKS: Final = (*HOOK_EVENTS, "digest", "notify")
"""Hooks that receive events; a plugin that implements one of them is a notifier."""
NOTIFY_COVERS: Final = {"digest", *(hook for hook, event in HOOK_EVENTS.items() if not event.is_ephemeral)}
"""Hooks for which ``notify`` is called when a plugin does not implement them."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

__all__ = ["ArtifactPath", "Digest", "Hooks", "NotifierSettings", "RetryLater", "hookimpl"]


class RetryLater(Exception):  # noqa: N818  (the name says what the notifier asks for)
    """Raised by a notifier when sending failed now but can succeed later.

    Args:
        reason: why, without any secret.
        after_seconds: the wait that the receiver asked for (HTTP's Retry-After), None if it did not.
        recipients: who has not received the message, by names that the notifier chooses and that contain no
            secret.  The retry gets them as the hook's argument ``recipients``.  Empty: nobody received it.
    """

    def __init__(
        self, reason: str, after_seconds: float | None = None, recipients: Sequence[str] = ()
    ) -> None:
        super().__init__(reason)
        self.after_seconds = after_seconds
        self.recipients = tuple(recipients)


@dataclass(frozen=True, slots=True)
class Digest:
    """The runs of one day for a single message, oldest first."""

    since: datetime
    until: datetime
    finished: tuple[RunFinished, ...]
    failed: tuple[RunFailed, ...]

    @property
    def page(self) -> str | None:
        """Path of the dashboard's page of the newest run, which leads to the others."""
        pages = [event.page for event in (*self.failed, *self.finished) if event.page is not None]
        return pages[-1] if pages else None


class Hooks:
    """All hooks; each event class with a hook name adds one."""

    @hookspec
    def register_settings(self) -> type[Any]:  # type: ignore[empty-body]
        """Return the pydantic model of the plugin's block under ``notifications:``.

        A subclass of :class:`NotifierSettings`, or any pydantic model, to which its keys are added.
        """

    @hookspec
    def digest(self, event: Digest, settings: Any, recipients: tuple[str, ...]) -> str | None:
        """Receive the runs of one day; a notifier without this hook cannot have the key ``digest``."""

    @hookspec
    def notify(self, event: object, settings: Any, recipients: tuple[str, ...]) -> str | None:
        """Receive events for which the plugin has no hook, except ephemeral ones such as ``run_started``."""

    @hookspec
    def veto_cleanup(self, job: Job, settings: Any) -> str | None:
        """Return why this job must be kept, or None.

        Called for each expired job, also in a dry run.  If the hook raises, or does not return within ten
        seconds, the job is kept.
        """

    @hookspec
    def before_stage(self, job: Job, artifacts: tuple[ArtifactPath, ...], settings: Any) -> None:
        """Do what must be done before these artifacts are deleted.

        It is also called for an upload that outlasted its jobs, with the job that was cleaned last.
        The run waits at most an hour.  If the hook raises, the run keeps the job and counts an error.  The
        hook must not change the folders of the job: a job that changes meanwhile waits for the next run.
        """

    @hookspec
    def audit(self, entries: Sequence[AuditEntry], settings: Any) -> None:
        """Record actions that are about to be done or were done, before the caller continues.

        An exception ends the run, because no action is done without its record.
        """


def _event_hook(name: str, event_class: type[Event]) -> Callable[..., str | None]:
    def receive(self: object, event: Any, settings: Any, recipients: tuple[str, ...]) -> str | None:
        raise NotImplementedError

    receive.__name__, receive.__doc__ = name, event_class.__doc__
    receive.__annotations__ = {
        "event": event_class,
        "settings": Any,
        "recipients": tuple[str, ...],
        "return": str | None,
    }
    return receive


for _name, _class in HOOK_EVENTS.items():
    setattr(Hooks, _name, hookspec(_event_hook(_name, _class)))
