"""A report as one HTML file: no script, nothing from elsewhere, so that it can be mailed and kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import jinja2

from eemtcleanupd import __version__
from eemtcleanupd.formatting import human_size
from eemtcleanupd.report import formats
from eemtcleanupd.report.collect import Report

_WIDTH, _HEIGHT = 720, 200


@dataclass(frozen=True, slots=True)
class TrendPicture:
    """The trend as coordinates of an SVG; ``ahead`` and ``band`` are empty without a forecast."""

    width: int
    height: int
    held: str
    free: str
    ahead: str
    band: str
    top_bytes: float
    began: datetime
    ends: datetime


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
    environment.filters["name"] = formats.name_words
    environment.filters["held"] = formats.held_words
    environment.filters["amount"] = formats.amount_words
    environment.filters["work"] = formats.work_words
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
        picture=_picture(report),
        trash=None if history is None else formats.trash_words(history),
        last_run=None if history is None else formats.run_words(history),
        next_run=formats.next_words(report),
        version=__version__,
    )


def _picture(report: Report) -> TrendPicture | None:
    history = report.history
    if history is None or len(history.trend) < 2:
        return None
    trend = history.trend
    ahead = [] if history.full is None else history.full.band(trend[0].at)
    began, ends = trend[0].at, ahead[-1][0] if ahead else trend[-1].at
    top = max(max(point.used_bytes, point.free_bytes) for point in trend) or 1
    span = (ends - began).total_seconds() or 1

    def line(points: Iterable[tuple[datetime, float]]) -> str:
        def across(moment: datetime) -> float:
            return _WIDTH * (moment - began).total_seconds() / span

        # A point a line: the report may be mailed, and mail has no lines of more than 998 characters.
        return "\n".join(
            f"{across(moment):.1f},{_HEIGHT * (1 - min(value, top) / top):.1f}" for moment, value in points
        )

    band = [(moment, low) for moment, low, _, _ in ahead]
    band += [(moment, high) for moment, *_, high in reversed(ahead)]
    return TrendPicture(
        width=_WIDTH,
        height=_HEIGHT,
        held=line((point.at, point.used_bytes) for point in trend),
        free=line((point.at, point.free_bytes) for point in trend),
        ahead=line((moment, middle) for moment, _, middle, _ in ahead),
        band=line(band),
        top_bytes=top,
        began=began,
        ends=ends,
    )
