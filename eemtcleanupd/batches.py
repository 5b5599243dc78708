"""Work in batches of a size, as ``itertools.batched`` of Python 3.12 does."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the values in lists of ``size``; the last can be shorter."""
    iterator = iter(values)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
