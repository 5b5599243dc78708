"""Pages of an audit log, the newest line first."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eemtcleanupd.notifiers.audit_chain import chain_backwards, parsed, position

_LINES_PER_SEARCH = 100_000


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Lines of an audit log as JSON objects.

    Attributes:
        entries: the lines, the newest first.
        before: the number of the line before which the next page starts; None if this is the last.
        is_partial: the search ended before it found a full page of lines.
    """

    entries: tuple[dict[str, Any], ...]
    before: int | None
    is_partial: bool


def read_page(path: Path, before: int | None, contains: str, limit: int) -> AuditPage:
    """Return the newest lines that contain a text (in any case), before the line of a number.

    Lines that are no lines of an audit log are left out: ``audit verify`` reports them.

    Raises:
        OSError: a file of the log is not readable.
    """
    matches = _matcher(contains)
    entries: list[dict[str, Any]] = []
    searched = 0
    for line in chain_backwards(path, before):
        place = position(line)
        if place is None or (before is not None and place.seq >= before):
            continue
        searched += 1
        if len(entries) == limit or searched > _LINES_PER_SEARCH:
            return AuditPage(tuple(entries), place.seq + 1, is_partial=len(entries) < limit)
        if matches(line) and (entry := parsed(line)) is not None:
            entries.append(entry)
    return AuditPage(tuple(entries), None, is_partial=False)


def _matcher(contains: str) -> Callable[[bytes], bool]:
    # The lines are JSON in ASCII, in which other characters are escaped.
    wanted = json.dumps(contains)[1:-1].encode("ascii").lower()
    return lambda line: wanted in line.lower()
