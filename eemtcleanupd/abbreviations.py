"""Ids that a person abbreviates: the start of an id stands for it while no other id starts the same way."""

from __future__ import annotations

from collections.abc import Iterable

from eemtcleanupd.errors import IdError
from eemtcleanupd.formatting import printable, short_name

MOST_LISTED = 10
"""How many ids the error for an ambiguous one lists."""


def complete(given: str, known: Iterable[str], noun: str) -> str | None:
    """Return the id that was given, or the only known one that starts with it.

    Args:
        given: an id, or its start.
        known: the ids in question; others than those that start with ``given`` do no harm.
        noun: what the ids are, for the message.

    Returns:
        The id; None if no known id starts with ``given``, or nothing was given.

    Raises:
        IdError: several ids start with it, and none is equal to it.
    """
    matches = sorted({each for each in known if given and each.startswith(given)})
    if given in matches:
        return given
    if len(matches) > 1:
        listed = ", ".join(map(short_name, matches[:MOST_LISTED]))
        more = " and others" if len(matches) > MOST_LISTED else ""
        raise IdError(f"Several {noun} start with {printable(given)}: {listed}{more}. Give a longer part.")
    return matches[0] if matches else None
