"""Runs that HTTP clients request, and the JSON document that answers them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import IO, Final

from eemtcleanupd.daemon.messages import RunCallbacks
from eemtcleanupd.errors import CleanupError, ReportError
from eemtcleanupd.events import Event, RunReport, RunStarted
from eemtcleanupd.model import Trigger
from eemtcleanupd.report.run_document import RunDocument
from eemtcleanupd.web.schemas import CleanupBody, PurgeBody

IN_MEMORY_BYTES: Final = 1 << 20
"""Larger documents are stored in a temporary file."""

Outcome = IO[str] | IO[bytes] | CleanupError | None
"""The document of a finished run; or why there is none; or None if the run failed unexpectedly."""


@dataclass(frozen=True, slots=True)
class ApiRun:
    """The user that requests a run, its options, and two callbacks.

    ``on_started`` gets the run's id, ``on_finished`` its outcome.  Both can be called in any thread;
    ``on_finished`` is called exactly once.
    """

    user: str
    options: CleanupBody | PurgeBody
    on_started: Callable[[str], None]
    on_finished: Callable[[Outcome], None]

    @property
    def trigger(self) -> Trigger:
        """What the run is recorded with: a purge considers the trash only."""
        return Trigger.TRASH if isinstance(self.options, PurgeBody) else Trigger.API

    def callbacks(self) -> RunCallbacks:
        """Return the callbacks that the daemon or the local backend needs for the run."""
        document = RunDocument()

        def emit(event: Event) -> None:
            document(event)
            if isinstance(event, RunStarted):
                self.on_started(event.run_id)

        def done(result: RunReport | CleanupError | None) -> None:
            with closing(document):
                self.on_finished(run_document(document) if isinstance(result, RunReport) else result)

        if isinstance(self.options, PurgeBody):
            return RunCallbacks(emit, done, purge_older_than=self.options.age)
        return RunCallbacks(emit, done, self.options.retention, self.options.force)


def run_document(document: RunDocument) -> IO[str] | CleanupError:
    """Return a run's document as JSON, or why it cannot be written."""
    file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES, mode="w+", encoding="ascii")  # noqa: SIM115
    try:
        document.write(file)
        file.seek(0)
    except OSError as error:
        with suppress(OSError):  # the disk has no room for the buffered rest either
            file.close()
        return ReportError(
            f"The run finished, but its answer cannot be written: {error.strerror}. See /api/cleanup/runs."
        )
    return file
