"""What this version cannot do yet though there is a key for it: nothing silently does nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NotYet:
    """A key, the test for values that ask for something, and what is missing for that."""

    key: str
    asks: Callable[[Any], object]
    missing: str


NOT_YET = (
    NotYet("performance.executor", lambda name: name == "dask", "no other machines yet"),
    NotYet("performance.io_priority", lambda name: name != "best-effort", "no disk priority yet"),
    NotYet("performance.max_deletes_per_second", bool, "no limit of the rate yet"),
)
