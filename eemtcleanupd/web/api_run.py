"""A run that somebody asked for over HTTP, and the document that answers them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import IO, Final

from eemtcleanupd.daemon.messages import RunCallbacks
from eemtcleanupd.errors import CleanupError, ReportError
from eemtcleanupd.events import Event, RunReport, RunStarted
from eemtcleanupd.report.run_document import RunDocument

IN_MEMORY_BYTES: Final = 1 << 20
"""Documents that are larger lie on the disk."""

Outcome = IO[str] | IO[bytes] | CleanupError | None
"""The document of a run that is over, at its beginning; why there is none; None where nobody foresaw that."""


@dataclass(frozen=True, slots=True)
class ApiRun:
    """Who asks for a run, and what it is to do; ``retention`` and ``force`` as an ``RunCallbacks`` has them.

    ``begun`` is told the run's id, ``over`` how it ended; either in any thread, ``over`` exactly once.
    """

    user: str
    retention: tuple[float | None, float | None]
    force: bool
    on_started: Callable[[str], None]
    on_finished: Callable[[Outcome], None]

    def callbacks(self) -> RunCallbacks:
        """Return the order for it."""
        answer = RunDocument()

        def emit(event: Event) -> None:
            answer(event)
            if isinstance(event, RunStarted):
                self.on_started(event.run_id)

        def done(result: RunReport | CleanupError | None) -> None:
            with closing(answer):
                self.on_finished(run_document(answer) if isinstance(result, RunReport) else result)

        return RunCallbacks(emit, done, self.retention, self.force)


def run_document(answer: RunDocument) -> IO[str] | CleanupError:
    """Return a run's answer as JSON, or why it cannot be had."""
    file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES, mode="w+", encoding="ascii")  # noqa: SIM115
    try:
        answer.write(file)
        file.seek(0)
    except OSError as error:
        with suppress(OSError):  # what is left to write has no room either
            file.close()
        return ReportError(f"the run is over, but its answer cannot be written: {error.strerror}")
    return file
