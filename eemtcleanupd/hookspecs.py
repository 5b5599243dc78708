"""The hooks of a plugin: what it may be told, asked, and made to wait for.

A plugin is a module, or a class that is made once, whose functions carry :data:`hookimpl`.  A function may
leave out arguments that it does not need.  ``settings`` is the plugin's validated block under
``notifications:``, None when it has registered none.

Hooks with an ``event`` are told in a thread of the plugin's own, one at a time; what they return, if it is
text, is the channel's answer and is shown by ``notify-test``.  They may raise :class:`RetryLater`; any other
exception means that to try again is of no use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pluggy

from eemtcleanupd.config.plugin_settings import NotifierSettings
from eemtcleanupd.events import (
    AuditEntry,
    CapacityWarning,
    ConfigRejected,
    ConfigReloaded,
    DaemonStarted,
    DaemonStopping,
    DiskPressure,
    JobCleaned,
    RunFailed,
    RunFinished,
    RunStarted,
)
from eemtcleanupd.model import Found, Job

PROJECT: Final = "eemtcleanupd"
"""Pluggy's project name, and the entry-point group."""

EVENT_HOOKS: Final = (
    "daemon_started",
    "daemon_stopping",
    "config_reloaded",
    "config_rejected",
    "run_started",
    "job_cleaned",
    "run_finished",
    "run_failed",
    "disk_pressure",
    "capacity_warning",
    "digest",
    "notify",
)
"""Hooks that are told of events; who has one of them is a notifier."""
NOTIFY_COVERS: Final = frozenset(EVENT_HOOKS) - {"run_started", "job_cleaned", "notify"}
"""Hooks for which ``notify`` is called where a plugin has no function of its own."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

__all__ = ["ArtifactPath", "Digest", "Hooks", "NotifierSettings", "RetryLater", "hookimpl"]


class RetryLater(Exception):  # noqa: N818  (it reads as what it asks for)
    """Raised by a notifier: it did not work now, and may work later.

    Args:
        reason: why, without any secret.
        after_seconds: what the other side asked to wait (HTTP's Retry-After), None when it did not say.
    """

    def __init__(self, reason: str, after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.after_seconds = after_seconds


@dataclass(frozen=True, slots=True)
class ArtifactPath:
    """An artifact of a job that is about to go, where it lies now."""

    found: Found
    path: Path


@dataclass(frozen=True, slots=True)
class Digest:
    """What came together for one message a day, oldest first."""

    since: datetime
    until: datetime
    finished: tuple[RunFinished, ...]
    failed: tuple[RunFailed, ...]


class Hooks:
    """All hooks."""

    @hookspec
    def register_settings(self) -> type[Any]:  # type: ignore[empty-body]
        """Return the pydantic model of the plugin's block under ``notifications:``.

        A subclass of :class:`NotifierSettings`, or any pydantic model, which then gets its keys too.
        """

    @hookspec
    def daemon_started(self, event: DaemonStarted, settings: Any) -> str | None:
        """The daemon listens."""

    @hookspec
    def daemon_stopping(self, event: DaemonStopping, settings: Any) -> str | None:
        """The daemon is on its way out."""

    @hookspec
    def config_reloaded(self, event: ConfigReloaded, settings: Any) -> str | None:
        """A new configuration is in force."""

    @hookspec
    def config_rejected(self, event: ConfigRejected, settings: Any) -> str | None:
        """A new configuration was refused; the one before stays in force."""

    @hookspec
    def run_started(self, event: RunStarted, settings: Any) -> str | None:
        """A run begins; told from memory, so one that a crash cut off is not told again."""

    @hookspec
    def job_cleaned(self, event: JobCleaned, settings: Any) -> str | None:
        """A job's data is gone and recorded so; told from memory, as ``run_started``."""

    @hookspec
    def run_finished(self, event: RunFinished, settings: Any) -> str | None:
        """A run ended by itself or was asked to stop; the report says how."""

    @hookspec
    def run_failed(self, event: RunFailed, settings: Any) -> str | None:
        """A run was refused or broke off."""

    @hookspec
    def disk_pressure(self, event: DiskPressure, settings: Any) -> str | None:
        """The results filesystem is fuller than its high watermark; a run follows."""

    @hookspec
    def capacity_warning(self, event: CapacityWarning, settings: Any) -> str | None:
        """What the jobs hold has passed a mark of their budget; told once for each crossing."""

    @hookspec
    def digest(self, event: Digest, settings: Any) -> str | None:
        """The runs of a day in one message; a notifier without this hook cannot be given ``digest:``."""

    @hookspec
    def notify(self, event: object, settings: Any) -> str | None:
        """Any event worth a message: all but ``run_started`` and ``job_cleaned``.

        For channels that tell everything in the same way; a hook of the event's own goes before it.
        """

    @hookspec
    def veto_cleanup(self, job: Job, settings: Any) -> str | None:
        """Return why this job must stay, or None.

        Asked for each job that is due, also in a dry run.  One that raises, or does not answer within ten
        seconds, keeps the job.
        """

    @hookspec
    def before_stage(self, job: Job, artifacts: tuple[ArtifactPath, ...], settings: Any) -> None:
        """Do what must be done before these artifacts go.

        The run waits for it, at most an hour; one that raises keeps the job for this run, which counts as an
        error.
        """

    @hookspec
    def audit(self, entries: Sequence[AuditEntry], settings: Any) -> None:
        """Write down what is about to be done or was done, before the caller goes on.

        What cannot be written down is not done: an exception ends the run, so implement this hook only to
        take part in that promise.
        """
