"""Who may say no while a run goes on: asked before a job is planned, before it moves, and for the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from eemtcleanupd.events import AuditEntry
from eemtcleanupd.model import Found, Job


class RunHooks(Protocol):
    """Asked by a run, in its own thread."""

    def veto(self, job: Job) -> str | None:
        """Return why a job that is due must stay, None when it may go; never raises."""

    def before_stage(self, job: Job, artifacts: Sequence[Found]) -> str | None:
        """Do what must be done before these artifacts go; return why they may not, None when they may."""

    def audit(self, entries: Sequence[AuditEntry]) -> None:
        """Write down what is about to be done, or was done.

        Raises:
            AuditError: it cannot be; then nothing more may be done.
        """


class NullHooks:
    """Nobody has anything to say."""

    def veto(self, job: Job) -> str | None:
        """Return None."""

    def before_stage(self, job: Job, artifacts: Sequence[Found]) -> str | None:
        """Return None."""

    def audit(self, entries: Sequence[AuditEntry]) -> None:
        """Do nothing."""
