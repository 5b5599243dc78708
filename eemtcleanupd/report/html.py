"""Render a report as one self-contained HTML file without scripts, for mail and archives."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import jinja2

from eemtcleanupd import __version__
from eemtcleanupd.formatting import human_size
from eemtcleanupd.report import formats
from eemtcleanupd.report.collect import Report

_WIDTH, _HEIGHT = 720, 200


def as_html(report: Report) -> str:
    """Return the report as an HTML document."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eemtcleanupd.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = human_size
    environment.filters["name"] = formats.display_name
    environment.filters["group"] = formats.describe_group
    environment.filters["usage"] = formats.describe_usage
    environment.filters["runs"] = formats.describe_runs
    environment.filters["local"] = lambda moment, form="%a %Y-%m-%d %H:%M": f"{moment.astimezone():{form}}"
    history = report.history
    groups = (
        ("By status", "Status", formats.by_size(report.jobs.by_status)),
        ("By workflow type", "Workflow type", formats.by_size(report.jobs.by_workflow_type)),
    )
    return environment.get_template("report.html").render(
        report=report,
        history=history,
        total=report.jobs.total,
        groups=groups,
        largest=max((group.held.size_bytes for *_, rows in groups for _, group in rows), default=0) or 1,
        outlook=formats.outlook(report),
        chart=_chart(report),
        trash=None if history is None else formats.describe_trash(history),
        last_run=None if history is None else formats.describe_last_run(history),
        next_run=formats.describe_next_run(report),
        version=__version__,
    )


def _chart(report: Report) -> dict[str, Any] | None:
    """Return the storage trend as SVG coordinates; ``forecast`` and ``band`` are empty without a forecast."""
    history = report.history
    if history is None or len(history.trend) < 2:
        return None
    trend = history.trend
    forecast = [] if history.disk_full is None else history.disk_full.band(trend[0].at)
    start, end = trend[0].at, forecast[-1][0] if forecast else trend[-1].at
    top = max(max(point.used_bytes, point.free_bytes) for point in trend) or 1
    span = (end - start).total_seconds() or 1

    def line(points: Iterable[tuple[datetime, float]]) -> str:
        # One point per line: the report can be mailed, and a line of a mail has at most 998 characters.
        return "\n".join(
            f"{_WIDTH * (moment - start).total_seconds() / span:.1f},"
            f"{_HEIGHT * (1 - min(value, top) / top):.1f}"
            for moment, value in points
        )

    band = [(moment, low) for moment, low, _, _ in forecast]
    band += [(moment, high) for moment, *_, high in reversed(forecast)]
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "held": line((point.at, point.used_bytes) for point in trend),
        "free": line((point.at, point.free_bytes) for point in trend),
        "forecast": line((moment, middle) for moment, _, middle, _ in forecast),
        "band": line(band),
        "top_bytes": top,
        "start": start,
        "end": end,
    }
