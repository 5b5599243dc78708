"""Draw a run's progress bar on a terminal: jobs, bytes, rate, remaining time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress as RichProgress,
    TextColumn,
    TimeRemainingColumn,
)

from eemtcleanupd.cleanup import Progress
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.formatting import human_amounts

_INTERVAL_SECONDS = 0.2


@contextmanager
def bar(progress: Progress) -> Iterator[None]:
    """Draw a progress bar on stderr during the ``with`` block; printed lines appear above it."""
    display = RichProgress(
        TextColumn("Cleaning"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("jobs  {task.fields[freed]}  {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # Only if stdout is the terminal too: output into a pipe must not be redirected.
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=False,
    )
    task = display.add_task("", total=None, freed="", rate="")
    started = monotonic_seconds()
    finished = threading.Event()

    def draw() -> None:
        pool = progress.pool
        files = 0 if pool is None else pool.files
        rate = files / max(monotonic_seconds() - started, 0.001)
        display.update(
            task,
            total=progress.jobs_total or None,
            completed=progress.jobs_done,
            freed=human_amounts(progress.bytes_freed, progress.bytes_trashed, None),
            rate=f"{rate:,.0f} files/s",
        )

    def watch() -> None:
        while not finished.wait(_INTERVAL_SECONDS):
            draw()

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    with display:
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
            draw()
