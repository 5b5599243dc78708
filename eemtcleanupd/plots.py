"""Pictures of the storage trend, drawn by matplotlib in a process of its own.

The daemon would otherwise hold matplotlib's memory for the rest of its life.  Without the extra ``plots``
there is no picture, and nothing else is missing.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import IO, Any

from eemtcleanupd.events import StoragePoint

log = logging.getLogger(__name__)

_SECONDS = 60


def trend_png(trend: Sequence[StoragePoint]) -> bytes | None:
    """Return the picture of a trend as PNG; None with fewer than two points, or without matplotlib."""
    if len(trend) < 2 or importlib.util.find_spec("matplotlib") is None:
        return None
    points = [[point.at.isoformat(), point.used_bytes, point.free_bytes] for point in trend]
    try:
        drawn = subprocess.run(
            [sys.executable, "-m", "eemtcleanupd.plots"],
            input=json.dumps(points).encode(),
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("The storage trend could not be drawn: %s", type(error).__name__)
        return None
    return drawn.stdout


def draw(points: Sequence[tuple[str, int, int]], out: IO[bytes], form: str = "png") -> None:
    """Draw used and free space over time (ISO times, bytes) into a file, as PNG or SVG."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    times: Any = [datetime.fromisoformat(at) for at, _, _ in points]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(times, [used / 2**30 for _, used, _ in points], label="used by jobs", color="#0969da")
    axes.plot(times, [free / 2**30 for _, _, free in points], label="free", color="#8c959f", linestyle="--")
    axes.set(title="EEMT Storage Usage Trend", ylabel="Storage (GB)", ylim=(0, None))
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(out, format=form, dpi=100)


if __name__ == "__main__":
    draw(json.load(sys.stdin), sys.stdout.buffer)
