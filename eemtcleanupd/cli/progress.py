"""Draw a run's progress bar on a terminal: jobs, bytes, rate, remaining time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

from rich.console import Console
from rich.file_proxy import FileProxy
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


class _StreamAboveBar(FileProxy):
    """Prints lines above the bar.

    Unlike rich's own proxy it has an encoding.  Without an encoding, click bypasses the proxy and writes into
    the bar.
    """

    encoding = "utf-8"  # text is not encoded here


@contextmanager
def bar(progress: Progress) -> Iterator[None]:
    """Draw a progress bar on stderr during the ``with`` block; printed lines appear above it."""
    display = RichProgress(
        TextColumn("Cleaning"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("jobs  {task.fields[freed]}  {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True, soft_wrap=True),  # a long path stays in one piece, to be copied
        transient=True,
        redirect_stdout=False,  # see _StreamAboveBar
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
    with display, ExitStack() as stack:
        stack.enter_context(redirect_stderr(_StreamAboveBar(display.console, sys.stderr)))
        if sys.stdout.isatty():  # output into a pipe stays as it is
            stack.enter_context(redirect_stdout(_StreamAboveBar(display.console, sys.stdout)))
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
            draw()
