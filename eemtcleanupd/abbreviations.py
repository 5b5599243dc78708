"""Ids that a person abbreviates: the start of an id stands for it while no other id starts the same way."""

from __future__ import annotations

from collections.abc import Mapping

from eemtcleanupd.errors import IdError
from eemtcleanupd.formatting import printable, short_name, shortened

MOST_LISTED = 20
"""How many ids the error for an ambiguous one lists."""


def complete(given: str, known: Mapping[str, str], noun: str) -> str | None:
    """Return the id that was given, or the only known one that starts with it.

    Args:
        given: an id, or its start.
        known: the ids in question, each with its state and date for the message.  Others than those that
            start with ``given`` do no harm.
        noun: what the ids are, for the message.

    Returns:
        The id; None if no known id starts with ``given``, or nothing was given.

    Raises:
        IdError: several ids start with it, and none is equal to it.
    """
    if given in known:
        return given
    matches = sorted(each for each in known if given and each.startswith(given))
    if len(matches) > 1:
        lines = [f"  {short_name(each)}  ({shortened(printable(known[each]))})" for each in matches]
        if len(lines) > MOST_LISTED:
            lines[MOST_LISTED:] = ["  and others"]
        listed = "\n".join([f"Several {noun} start with {printable(given)}:", *lines])
        raise IdError(f"{listed}\nGive a longer part of the id.")
    return matches[0] if matches else None
