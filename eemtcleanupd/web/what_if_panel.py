"""The dashboard's panel *What if*: tables and curves of other retention periods, without JavaScript."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from eemtcleanupd.clock import system_clock
from eemtcleanupd.formatting import human_size
from eemtcleanupd.report.what_if import as_document, compare_retention, whole_days
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.cache import ResponseCache

CACHE_KEY: Final = "what-if"
FRESH_SECONDS: Final = 300.0
"""How long a comparison is used: it scans the job table, and its figures change slowly."""
WIDTH: Final = 420
HEIGHT: Final = 200

_FIRST_HOURS = 0.5  # a logarithm has no 0, but a retention can be 0
_NAMES = ("successful", "failed")
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 26, 40
_TICK_HOURS = (
    (6, "6 h"),
    (24, "1 d"),
    (72, "3 d"),
    (168, "7 d"),
    (720, "30 d"),
    (2160, "90 d"),
    (8760, "1 y"),
)


def comparison_document(backend: Backend) -> bytes:
    """Return the comparison as JSON.

    Raises:
        StoreError: the job database cannot be read.
    """
    comparison = compare_retention(backend.config, system_clock, backend.plugins)
    return json.dumps(as_document(comparison)).encode("ascii")


def refresh_comparison(cache: ResponseCache, backend: Backend) -> None:
    """Calculate the comparison in another thread, unless the last one is still used."""
    if cache.is_expired(CACHE_KEY):
        cache.refresh(CACHE_KEY, lambda: comparison_document(backend), FRESH_SECONDS)


def what_if_panel(cache: ResponseCache) -> dict[str, Any] | None:
    """Return the values of the panel, None if they are not calculated yet."""
    document = cache.peek(CACHE_KEY)
    return None if document is None else panel_values(document)


@lru_cache(maxsize=1)
def panel_values(document: bytes) -> dict[str, Any]:
    """Return the values of the panel from the JSON; the same comparison is parsed once."""
    comparison = json.loads(document)
    curves = [comparison[name] | {"name": name, "chart": _chart(comparison[name])} for name in _NAMES]
    for point in (point for curve in curves for point in curve["points"]):
        point["days"] = whole_days(point["retention_hours"])
    return {
        "curves": curves,
        "disk_known": comparison["disk_known"],
        "unknown": comparison["unknown"],
        "width": WIDTH,
        "height": HEIGHT,
    }


def _chart(curve: dict[str, Any]) -> dict[str, Any] | None:
    """Return the geometry of a curve over a logarithmic axis of hours, None without a known size."""
    line: Sequence[tuple[float, int, int]] = curve["line"]
    if not line:
        return None
    first, last = max(line[0][0], _FIRST_HOURS), line[-1][0]
    top = max(size for _, *sizes in line for size in sizes) or 1
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT

    def x(hours: float) -> float:
        share = math.log(min(max(hours, first), last) / first) / math.log(last / first)
        return round(_LEFT + share * (right - _LEFT), 1)

    def y(kept: float) -> float:
        return round(bottom - min(kept / top, 1) * (bottom - _TOP), 1)

    points = " ".join(f"{x(hours)},{y(kept)}" for hours, kept, _ in line)
    return {
        "line": points,
        "freed": " ".join(f"{x(hours)},{y(freed)}" for hours, _, freed in line),
        "area": f"{_LEFT},{bottom} {points} {right},{bottom}",
        "left": _LEFT,
        "right": right,
        "bottom": bottom,
        "top": _TOP,
        "x_ticks": [(x(hours), label) for hours, label in _TICK_HOURS if first <= hours <= last],
        "y_ticks": [(y(top * share), human_size(top * share)) for share in (0, 0.5, 1)],
        "marks": [
            {
                "x": x(point["retention_hours"]),
                "y": y(point["kept"]["bytes"]),
                "is_configured": point["is_configured"],
                "title": f"{point['retention_hours']:g} h: {point['kept']['human_readable']}",
            }
            for point in curve["points"]
        ],
    }
