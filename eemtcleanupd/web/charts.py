"""Charts of the pages as shapes of SVG, with their axes, and with the values for a table beside each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any

from eemtcleanupd.events import StoragePoint
from eemtcleanupd.store.runs import RunAmounts

WIDTH, HEIGHT = 600, 120
_FEWEST_DAYS = 14


def line_chart(points: Sequence[StoragePoint], values: Sequence[int]) -> dict[str, Any] | None:
    """Return a line over time and the area below it, None for less than two points."""
    if len(points) < 2:
        return None
    since: datetime = points[0].at
    span = (points[-1].at - since).total_seconds() or 1
    top = _ceiling(max(values))
    xs = [WIDTH * (point.at - since).total_seconds() / span for point in points]
    ys = [HEIGHT * (1 - value / top) for value in values]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    # Each point has a column, from the middle before it to the middle after it, that shows its value.
    edges = [0.0, *((left + right) / 2 for left, right in pairwise(xs)), float(WIDTH)]
    return {
        "line": line,
        "area": f"0,{HEIGHT} {line} {WIDTH},{HEIGHT}",
        "columns": [
            {"x": f"{left:.1f}", "width": f"{right - left:.1f}", "at": point.at, "value": value}
            for left, right, point, value in zip(edges, edges[1:], points, values, strict=False)
        ],
        "first": values[0],
        "last": values[-1],
        "top": top,
        "since": since,
        "until": points[-1].at,
        "width": WIDTH,
        "height": HEIGHT,
    }


def bar_chart(runs: Sequence[RunAmounts], now: datetime, days: int) -> dict[str, Any] | None:
    """Return a column for each local day up to ``now``, with what its runs freed; None without any run."""
    if not runs:
        return None
    by_day: dict[date, list[RunAmounts]] = defaultdict(list)
    for run in runs:
        by_day[run.started_at.astimezone().date()].append(run)
    today = now.astimezone().date()
    first = max(today - timedelta(days=days - 1), min(*by_day, today - timedelta(days=_FEWEST_DAYS - 1)))
    shown = [first + timedelta(days=number) for number in range((today - first).days + 1)]
    columns = [_column(day, by_day.get(day, [])) for day in shown]
    top = _ceiling(max(max(column["freed"], column["trashed"]) for column in columns))
    width = WIDTH / len(columns)
    for number, column in enumerate(columns):
        column |= {"x": f"{number * width:.2f}", "width": f"{width:.2f}"}
        column["bars"] = [
            {
                "kind": kind,
                "x": f"{(number + start) * width:.2f}",
                "y": f"{HEIGHT * (1 - column[kind] / top):.2f}",
                "width": f"{0.38 * width:.2f}",
                "height": f"{HEIGHT * column[kind] / top:.2f}",
            }
            for kind, start in (("freed", 0.1), ("trashed", 0.52))
            if column[kind]
        ]
    return {
        "columns": columns,
        "top": top,
        "has_trashed": any(column["trashed"] for column in columns),
        "since": columns[0]["day"],
        "until": columns[-1]["day"],
        "width": WIDTH,
        "height": HEIGHT,
    }


def _column(day: date, runs: Sequence[RunAmounts]) -> dict[str, Any]:
    return {
        "day": day,
        "runs": len(runs),
        "freed": sum(run.bytes_freed for run in runs),
        "trashed": sum(run.bytes_trashed for run in runs),
        "errors": sum(run.errors for run in runs),
    }


def _ceiling(value: int) -> int:
    """Return the end of an axis: 1, 2, 5, 10, 20 … of a unit of 1024, at least as large as the value."""
    unit = 1
    while value > 1000 * unit:
        unit *= 1024
    step = 1
    for step in (1, 2, 4, 10, 20, 40, 100, 200, 400, 1000):
        if value <= step * unit:
            break
    return step * unit
