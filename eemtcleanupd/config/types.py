"""The types of configuration values, with their validation."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, Strict, TypeAdapter, WrapValidator

from eemtcleanupd.formatting import parse_size

CRON_NAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
"""Nicknames of crontab(5) and their expressions. ``schedule.run_on_start`` replaces ``@reboot``."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_LISTEN = re.compile(r"unix:/.+|(\[[0-9a-f:.]+\]|[a-z0-9._-]+):(?P<port>\d{1,5})", re.IGNORECASE)


class DatabaseAddress(str):
    """Path or URL of a database. ``repr`` and ``redacted`` hide the password."""

    __slots__ = ()

    @property
    def is_url(self) -> bool:
        """Whether this is a URL rather than the path of a SQLite file."""
        return _URL.match(self) is not None

    @property
    def file(self) -> Path | None:
        """Path of the SQLite file, None for a database on a server."""
        return None if self.is_url else Path(self)

    @property
    def redacted(self) -> str:
        """The address, with ``***`` in place of passwords."""
        if not self.is_url:
            return str(self)
        hidden = re.sub(r"(://[^:/?#]*):.*@", r"\1:***@", self)
        return re.sub(r"(password=)[^&]*", r"\1***", hidden, flags=re.IGNORECASE)

    def __repr__(self) -> str:
        return repr(self.redacted)


def _without_slash(url: str) -> str:
    """Return a URL without a slash at its end.

    Raises:
        ValueError: its host or its port is invalid.
    """
    if urlsplit(url).port == 0:
        raise ValueError("Port 0 is invalid.")
    return url.rstrip("/")


def require(test: Callable[[Any], object], message: str) -> AfterValidator:
    """Return a validator that refuses the values for which ``test`` is not true."""

    def check(value: Any) -> Any:
        if not test(value):
            raise ValueError(message)
        return value

    return AfterValidator(check)


not_empty = require(len, "The list needs at least one entry.")
no_small_chunk = require(
    lambda size: size == 0 or size >= 1 << 20, "Use a step of at least 1M, or 0 for no steps."
)


def _path_text(value: object) -> object:
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError("A path must not be empty and must not contain NUL.")
    return value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def one_or_more(value: object) -> object:
    """Turn a single text into a list of one."""
    return [value] if isinstance(value, str) else value


def _zone(value: str) -> str:
    if value != "local":
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("Unknown time zone. Use local, or a name such as Europe/Berlin.") from None
    return value


def _cron(value: str) -> str:
    from datetime import UTC, datetime

    from cronsim import CronSim, CronSimError

    expression = " ".join(value.split())
    expression = CRON_NAMES.get(expression.lower(), expression)
    if expression.lower() == "@reboot":
        raise ValueError("Use schedule.run_on_start: true instead.")
    if len(expression.split()) != 5:
        names = ", ".join(CRON_NAMES)
        raise ValueError(f"Write five fields (minute hour day month weekday), or one of {names}.")
    try:
        next(CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC)))
    except StopIteration:
        raise ValueError("No date matches this expression.") from None
    except (CronSimError, ValueError) as error:
        raise ValueError(f"Invalid cron expression: {str(error).lower()}. See crontab(5).") from None
    return expression


def _listen(value: str) -> str:
    match = _LISTEN.fullmatch(value)
    if match is None or int(match["port"] or 1) not in range(1, 65536):
        raise ValueError("Write HOST:PORT, such as 127.0.0.1:5001, or unix:/path/of/the.sock.")
    return value


def _size(value: object) -> object:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return parse_size(str(value))
    return value


def _number_or_auto(value: object, _handler: object) -> object:
    if isinstance(value, str) and value != "auto":
        raise ValueError("Write a whole number without quotes, or auto.")
    return value if value == "auto" else _number_of_workers().validate_python(value)


@cache
def _number_of_workers() -> TypeAdapter[int]:
    return TypeAdapter(Annotated[int, Field(ge=1, le=256), Strict()])


Hours = Annotated[float, Field(ge=0, le=1_000_000)]
Days = Annotated[float, Field(ge=0, le=40_000)]
Percent = Annotated[float, Field(gt=0, le=100)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Size = Annotated[
    int,
    Field(ge=1, le=2**62),
    BeforeValidator(_size, json_schema_input_type=Annotated[int, Field(ge=1)] | str),
]
SizeOrZero = Annotated[int, Field(ge=0, le=2**60), BeforeValidator(_size, json_schema_input_type=int | str)]
Workers = Annotated[Annotated[int, Field(ge=1, le=256)] | Literal["auto"], WrapValidator(_number_or_auto)]
# A client that can reach a scheduler can run code on its workers, so TLS is required.
Cluster = Annotated[
    str,
    require(
        re.compile(r"tls://(\[[0-9a-f:.]+\]|[a-z0-9._-]+):\d{1,5}", re.IGNORECASE).fullmatch,
        "Write tls://HOST:PORT, such as tls://cluster.example.org:8786. TLS is required.",
    ),
]
# Without a password, because the URL is shown and audited.
HttpUrl = Annotated[
    str,
    require(
        re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", re.IGNORECASE).fullmatch,
        "Write http://HOST:PORT or https://HOST:PORT, also with a path, but without a password.",
    ),
    AfterValidator(_without_slash),
]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Strict(False)]
SomeTexts = Annotated[Texts, not_empty]
Level = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)]
Listen = Annotated[str, AfterValidator(_listen)]
FilePath = Annotated[Path, Strict(False), BeforeValidator(_path_text)]
Zone = Annotated[str, AfterValidator(_zone)]
Crons = Annotated[
    tuple[Annotated[str, AfterValidator(_cron)], ...],
    Strict(False),
    not_empty,
    BeforeValidator(one_or_more, json_schema_input_type=str | list[str]),
]
Pattern = Annotated[
    Text,
    require(lambda text: "/" not in text, "Patterns match file names, so they must not contain a slash."),
]
Patterns = Annotated[tuple[Pattern, ...], Strict(False)]
Database = Annotated[Text, BeforeValidator(_path_text), AfterValidator(DatabaseAddress)]
Metadata = Annotated[
    bool, require(bool, "The only allowed value is true: the metadata of jobs is never deleted.")
]
