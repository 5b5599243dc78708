"""SQL column types: ids and file names, which can contain any bytes, and what only this program writes."""

from __future__ import annotations

import re
from contextlib import suppress
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, Integer, String, Text, Uuid, cast
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.types import TypeDecorator

from eemtcleanupd.errors import StoreError
from eemtcleanupd.formatting import printable, printable_lines, short_name


def is_storable(text: str) -> bool:
    """Return whether PostgreSQL can store a text: valid Unicode without a NUL."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


class RawText(TypeDecorator[str]):
    """Text that can contain bytes that are not UTF-8, escaped by surrogateescape.

    Python's sqlite3 refuses to bind such a string, but SQLite casts bytes to text unchanged.
    PostgreSQL cannot store such bytes, so there they are written as in a log.
    """

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        """Return the bytes to bind (SQLite), or storable text."""
        if value is None:
            return None
        if dialect.name == "sqlite":
            return value.encode("utf-8", "surrogateescape")
        return value if is_storable(value) else printable(value)

    def bind_expression(self, bindparam: BindParameter[str]) -> ColumnElement[str]:
        """Cast the bound value to text."""
        return cast(bindparam, String)


class RawName(RawText):
    """A file name, byte for byte.  PostgreSQL stores it in hexadecimal digits."""

    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        """Return the bytes to bind (SQLite), or their hexadecimal digits."""
        raw = None if value is None else value.encode("utf-8", "surrogateescape")
        return raw if raw is None or dialect.name == "sqlite" else raw.hex()

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        """Return the name."""
        if value is None or dialect.name == "sqlite":
            return None if value is None else str(value)
        return bytes.fromhex(value).decode("utf-8", "surrogateescape")


class ShortText(TypeDecorator[str]):
    """Text of one line that this program wrote, or who else can write to the database."""

    impl = String
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Return the text, without what a terminal would act on, or what looks like another line."""
        return None if value is None else printable_lines(str(value)).replace("\n", r"\x0a")


class LongText(ShortText):
    """Text of any length, also of several lines."""

    impl = Text
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Return the text, without what a terminal would act on."""
        return None if value is None else printable_lines(str(value))


class Number(TypeDecorator[int]):
    """A number that this program wrote, or who else can write to the database."""

    impl = Integer
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:  # noqa: ARG002
        """Return the number; a column of SQLite takes any value, and PostgreSQL adds up to a Decimal."""
        with suppress(ArithmeticError, ValueError, TypeError):
            # Compared first: the number of 1e999999999 would take hours.
            if value is None or -(2**63) <= (number := Decimal(value)) < 2**63:
                return None if value is None else int(number)
        raise StoreError(
            f"The ledger in the job database has {short_name(repr(value))} in place of a number. Nothing "
            "more was done. Fix the row, or restore the database from a backup."
        )


class BigNumber(Number):
    """A number of bytes."""

    impl = BigInteger
    cache_ok = True


class TextKey(RawText):
    """A text column of PostgreSQL, to compare with ids: unstorable text is equal to no row."""

    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        """Return the text, or None if it cannot be stored."""
        return value if value is not None and is_storable(value) else None


class IntegerKey(TypeDecorator[str]):
    """A numeric column of PostgreSQL, to compare with ids: any other text is equal to no row."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        """Return the number in its canonical form, or None."""
        if value is None or re.fullmatch(r"0|-?[1-9][0-9]{0,18}", value) is None:
            return None
        number = int(value)
        return number if -(2**63) <= number < 2**63 else None

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Return the number as text."""
        return None if value is None else str(value)


class UuidKey(TypeDecorator[str]):
    """A UUID column of PostgreSQL, to compare with ids: any other text is equal to no row."""

    impl = Uuid(as_uuid=False)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        """Return the UUID in its canonical form, or None."""
        pattern = r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}"
        return value if value is not None and re.fullmatch(pattern, value) else None
