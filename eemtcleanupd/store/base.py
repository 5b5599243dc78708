"""The base of all parts of the ledger: access to the database, and checks of the rows read from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BindParameter, bindparam

from eemtcleanupd.errors import StoreError
from eemtcleanupd.formatting import printable
from eemtcleanupd.store.database import Database

MOST_VALUES = 500
"""The most values bound in one statement, well below SQLite's limit."""
VALUES: BindParameter[Any] = bindparam("values", expanding=True)
"""The values of an IN, for statements that are built once: building one takes longer than executing it."""


class Repository:
    """A part of the ledger: the methods of some of its tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def database(self) -> Database:
        """The job database."""
        return self._database

    @property
    def database_name(self) -> str:
        """The name of the database in messages."""
        return self._database.name


@contextmanager
def corruption_guard(table: str) -> Iterator[None]:
    """Refuse rows that this program cannot have written.  Other programs can write to the database.

    Raises:
        StoreError: a row of ``table`` is invalid.
    """
    try:
        yield
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise StoreError(
            f"Invalid row in table {table} of the job database: {printable(str(error))}. Nothing more was "
            "done. Fix the row, or restore the database from a backup."
        ) from error


def read_utc(value: str | None) -> datetime | None:
    """Return a time from the ledger as aware UTC."""
    if value is None:
        return None
    with corruption_guard("the ledger"):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
