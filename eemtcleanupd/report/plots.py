"""Draw the storage trend and the comparison of retention periods with matplotlib in a separate process.

In the daemon's own process, matplotlib's memory would stay allocated until the daemon exits.  Without the
extra ``plots`` no chart is drawn, and everything else works.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import IO, Any

from eemtcleanupd.errors import ReportError
from eemtcleanupd.events import StoragePoint
from eemtcleanupd.policy.forecast import CONFIDENCE_PERCENT, Forecast
from eemtcleanupd.policy.what_if import Curve

log = logging.getLogger(__name__)

FORMS = ("png", "svg")
"""The image formats."""

_TIMEOUT_SECONDS = 60
_UNITS = ("KB", "MB", "GB", "TB", "PB", "EB")


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def trend_png(trend: Sequence[StoragePoint]) -> bytes | None:
    """Return a trend chart as PNG, or None without points or without matplotlib."""
    if not trend or not can_draw():
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
    """Return a trend chart as an image file in one of the :data:`FORMS`, with forecast and budget in bytes.

    Raises:
        ReportError: there are no points, or matplotlib failed.
    """
    if not trend:
        raise ReportError(
            "The trend cannot be drawn: there is no storage history yet. Run `eemtcleanupd clean` once."
        )
    data = {
        "points": [[point.at.isoformat(), point.used_bytes, point.free_bytes] for point in trend],
        "band": []
        if forecast is None
        else [[moment.isoformat(), *values] for moment, *values in forecast.band(trend[0].at)],
        "full_at": None if forecast is None else forecast.at.isoformat(),
        "budget": budget,
        "form": form,
    }
    return _drawn(data)


def what_if_picture(curves: Sequence[Curve], form: str) -> bytes:
    """Return a chart of what each retention keeps as an image file in one of the :data:`FORMS`.

    Raises:
        ReportError: no size is known yet, or matplotlib failed.
    """
    if not all(curve.points for curve in curves):
        raise ReportError(
            "The chart cannot be drawn: no job has a known size yet. Run `eemtcleanupd clean` once."
        )
    lines = [
        {
            "name": curve.job_class,
            "line": curve.line,
            "configured": [curve.hours, curve.current.kept_bytes],
        }
        for curve in curves
    ]
    return _drawn({"curves": lines, "form": form})


def _drawn(data: Mapping[str, Any]) -> bytes:
    try:
        process = subprocess.run(
            [sys.executable, "-P", "-m", "eemtcleanupd.report.plots"],
            cwd="/",  # no code (-P) and no matplotlibrc of the current folder, which can be anybody's
            input=json.dumps(data).encode(),
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ReportError(f"The chart could not be drawn: {type(error).__name__}.") from error
    return process.stdout


def draw(data: Mapping[str, Any], out: IO[bytes]) -> None:
    """Draw the data of :func:`picture` or :func:`what_if_picture` into a file."""
    if "curves" in data:
        _draw_what_if(data, out)
    else:
        _draw_trend(data, out)


def _draw_what_if(data: Mapping[str, Any], out: IO[bytes]) -> None:
    from matplotlib.figure import Figure

    top = max(kept for curve in data["curves"] for _, *values in curve["line"] for kept in values)
    exponent = _exponent(top)
    unit = 1024**exponent
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for curve, color in zip(data["curves"], ("#1a7f37", "#b3530b"), strict=True):
        days = [hours / 24 for hours, *_ in curve["line"]]
        axes.plot(
            days, [kept / unit for _, kept, _ in curve["line"]], label=f"{curve['name']}: kept", color=color
        )
        freed = [freed / unit for *_, freed in curve["line"]]
        axes.plot(days, freed, label=f"{curve['name']}: freed by the next run", color=color, linestyle=":")
        hours, kept = curve["configured"]
        label = f"{curve['name']}: configured, {hours:g} h"
        axes.plot([hours / 24], [kept / unit], marker="o", linestyle="", color=color, label=label)
    axes.set(
        title="Data kept and freed by retention",
        xlabel="Retention (days)",
        ylabel=f"Data ({_UNITS[exponent - 1]})",
        xscale="log",
        ylim=(0, 1.05 * top / unit or None),
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(out, format=data["form"], dpi=100)


def _exponent(top: float) -> int:
    return max(1, min((int(top).bit_length() - 1) // 10, len(_UNITS)))


def _draw_trend(data: Mapping[str, Any], out: IO[bytes]) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    top = max(max(used, free) for _, used, free in data["points"])
    exponent = _exponent(top)
    unit = 1024**exponent
    times: Any = [datetime.fromisoformat(at) for at, _, _ in data["points"]]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    marker = None
    if len(times) == 1:  # a single point has no line, and its axis would cover years
        marker = "o"
        axes.set_xlim(times[0] - timedelta(days=1), times[0] + timedelta(days=1))
    used = [used / unit for _, used, _ in data["points"]]
    axes.plot(times, used, label="used by jobs", color="#0969da", marker=marker)
    free = [free / unit for *_, free in data["points"]]
    axes.plot(times, free, label="free", color="#1a7f37", linestyle="--", marker=marker)
    if data["band"]:
        days: Any = [datetime.fromisoformat(at) for at, *_ in data["band"]]
        low, middle, high = ([row[column] / unit for row in data["band"]] for column in (1, 2, 3))
        axes.plot(days, middle, color="#1a7f37", linestyle=":")
        label = f"free, forecast ({CONFIDENCE_PERCENT} %); full about {data['full_at'][:10]}"
        axes.fill_between(days, low, high, color="#1a7f37", alpha=0.15, linewidth=0, label=label)
    if data["budget"] and data["budget"] < 2 * top:  # a line far above flattens the others
        top = max(top, data["budget"])
        axes.axhline(data["budget"] / unit, color="#cf222e", linewidth=1, label="budget")
    highest = 1.05 * top / unit or None  # a wide band would flatten the lines, too
    axes.set(title="EEMT Storage Usage Trend", ylabel=f"Storage ({_UNITS[exponent - 1]})", ylim=(0, highest))
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(out, format=data["form"], dpi=100)


if __name__ == "__main__":
    draw(json.load(sys.stdin), sys.stdout.buffer)
