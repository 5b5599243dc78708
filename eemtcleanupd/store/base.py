"""What all parts of the ledger have in common: the database, and how our rows are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from eemtcleanupd.errors import StoreError
from eemtcleanupd.formatting import printable
from eemtcleanupd.store.database import Database

MOST_VALUES = 500
"""How many values a statement may be given: well under SQLite's limit of bound variables."""


class Repository:
    """A part of the ledger: some of its tables, in the job database."""

    def __init__(self, database: Database) -> None:
        self._database = database


@contextmanager
def corruption_guard(table: str) -> Iterator[None]:
    """Refuse rows that we cannot have written: whoever can write to the database is not always a friend.

    Raises:
        StoreError: there is one in ``table``.
    """
    try:
        yield
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise StoreError(
            f"a row of {table} in the job database makes no sense ({printable(str(error))}): somebody "
            "changed it; nothing more was done. Put it right, or restore the database from a copy"
        ) from error


def read_utc(value: str | None) -> datetime | None:
    """Return a time of ours as aware UTC."""
    if value is None:
        return None
    with corruption_guard("the ledger"):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
