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
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import IO, Any

from eemtcleanupd.errors import ReportError
from eemtcleanupd.events import StoragePoint
from eemtcleanupd.policy.forecast import CONFIDENCE_PERCENT, Forecast

log = logging.getLogger(__name__)

FORMS = ("png", "svg")
"""The forms of a picture."""

_SECONDS = 60


def can_draw() -> bool:
    """Tell whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def trend_png(trend: Sequence[StoragePoint]) -> bytes | None:
    """Return the picture of a trend as PNG; None with fewer than two points, or without matplotlib."""
    if len(trend) < 2 or not can_draw():
        return None
    try:
        return picture(trend)
    except ReportError as error:
        log.warning("%s", error)
        return None


def picture(
    trend: Sequence[StoragePoint],
    form: str = "png",
    *,
    forecast: Forecast | None = None,
    budget: int | None = None,
) -> bytes:
    """Return the picture of a trend.

    Args:
        trend: at least two points, the oldest first.
        form: one of :data:`FORMS`.
        forecast: of free space; it is drawn with its band.
        budget: bytes that the jobs may hold, a line.

    Raises:
        ReportError: there are too few points, or matplotlib could not draw it.
    """
    if len(trend) < 2:
        raise ReportError("there is no picture yet: the storage history has fewer than two days")
    told = {
        "points": [[point.at.isoformat(), point.used_bytes, point.free_bytes] for point in trend],
        "band": []
        if forecast is None
        else [[moment.isoformat(), *values] for moment, *values in forecast.band(trend[0].at)],
        "full_at": None if forecast is None else forecast.at.isoformat(),
        "budget": budget,
        "form": form,
    }
    try:
        drawn = subprocess.run(
            [sys.executable, "-m", "eemtcleanupd.report.plots"],
            input=json.dumps(told).encode(),
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ReportError(f"the storage trend could not be drawn: {type(error).__name__}") from error
    return drawn.stdout


def draw(told: Mapping[str, Any], out: IO[bytes]) -> None:
    """Draw what :func:`picture` was given, with times in ISO form, into a file."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    times: Any = [datetime.fromisoformat(at) for at, _, _ in told["points"]]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(times, [used / 2**30 for _, used, _ in told["points"]], label="used by jobs", color="#0969da")
    free = [free / 2**30 for *_, free in told["points"]]
    axes.plot(times, free, label="free", color="#1a7f37", linestyle="--")
    if told["band"]:
        ahead: Any = [datetime.fromisoformat(at) for at, *_ in told["band"]]
        low, middle, high = ([row[at] / 2**30 for row in told["band"]] for at in (1, 2, 3))
        axes.plot(ahead, middle, color="#1a7f37", linestyle=":")
        day = told["full_at"][:10]
        label = f"free, if it goes on so ({CONFIDENCE_PERCENT} %); full about {day}"
        axes.fill_between(ahead, low, high, color="#1a7f37", alpha=0.15, linewidth=0, label=label)
    top = max(max(used, free) for _, used, free in told["points"])
    if told["budget"] and told["budget"] < 2 * top:  # a line far above would flatten the others
        top = max(top, told["budget"])
        axes.axhline(told["budget"] / 2**30, color="#cf222e", linewidth=1, label="budget of the jobs")
    highest = 1.05 * top / 2**30 or None  # as a wide band would
    axes.set(title="EEMT Storage Usage Trend", ylabel="Storage (GB)", ylim=(0, highest))
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(out, format=told["form"], dpi=100)


if __name__ == "__main__":
    draw(json.load(sys.stdin), sys.stdout.buffer)
