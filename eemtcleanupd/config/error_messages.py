"""Error messages for invalid values: what was found, what is expected, and what was probably meant."""

from __future__ import annotations

from typing import Any

from pydantic_core import ErrorDetails

from eemtcleanupd.config.base import Section, block_of
from eemtcleanupd.config.schema import Schema
from eemtcleanupd.config.yaml_reader import Loc, Scalar, dotted
from eemtcleanupd.formatting import printable, shortened

_EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "path_type": "a path",
    "tuple_type": "a list",
    "too_short": "a list that is not empty",
    "literal_error": "{expected}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than_equal": "a number of at most {le:g}",
    "greater_than": "a number above {gt:g}",
    "less_than": "a number below {lt:g}",
}
_NUMBERS = {"int_type", "int_from_float", "float_type"}


def describe(detail: ErrorDetails, written: Scalar | None, schema: Schema) -> str:
    """Return a message for a validation error. It never contains a secret.

    ``written`` is the value as written in the file, None for a value from another source.
    """
    loc, kind, value = detail["loc"], detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return _unknown(loc, schema)
    if kind == "missing":
        return "This key is missing and has no default."
    found = _found(value, loc, written, schema)
    if kind == "value_error":
        message = _sentence(detail["msg"].removeprefix("Value error, "))
        return message if isinstance(value, dict | list | tuple) else f"Found {found}. {message}"
    if kind == "model_type":
        expected = f"a block with the keys {', '.join(keys_at(loc, schema))}"
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind].format(**detail.get("ctx", {}))
    else:
        return f"Found {found}. {_sentence(detail['msg'])}"
    hint = _hint(kind, value, written)
    return f"Found {found}, but expected {expected}." + (f" {hint}" if hint else "")


def keys_at(loc: Loc, schema: Schema) -> list[str]:
    """Return the keys of the block at a location, none if it is not a block."""
    model: type[Section] | None = schema.model
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if model else None
        model = block_of(field) if field else None
    return list(model.model_fields) if model else []


def _sentence(text: str) -> str:
    """End the message of a validator with a full stop. Plugins have validators of their own."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _unknown(loc: Loc, schema: Schema) -> str:
    from difflib import get_close_matches

    name, known = str(loc[-1]), keys_at(loc[:-1], schema)
    similar = (
        get_close_matches(name, known, n=1, cutoff=0.75)
        or [key for key in schema.fields if key.rpartition(".")[2] == name]
        or get_close_matches(name, known, n=1, cutoff=0.4)
    )
    hint = f"Did you mean {' or '.join(similar)}? " if similar else ""
    return f"Unknown key. {hint}Known keys: {', '.join(known)}."


def _found(value: Any, loc: Loc, written: Scalar | None, schema: Schema) -> str:
    """Return the value as written in the file, or only its type where it can be a secret."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a block"
    if isinstance(value, list | tuple):
        return "a list"
    is_block = bool(keys_at(loc, schema))
    if is_block or any(dotted(loc).startswith(key) for key in schema.secret_keys):
        return "text" if isinstance(value, str) else "a value"
    if isinstance(value, str):
        return f"'{shortened(printable(value), 60)}'"
    return shortened(printable(written.text if written else str(value)), 60)


def _hint(kind: str, value: Any, written: Scalar | None) -> str | None:
    """Return how YAML read a value if that was probably not intended."""
    if written is None:
        return None
    if kind in {"string_type", "path_type"} and not written.quoted and value is not None:
        if isinstance(value, bool):
            read = str(value).lower()
        else:
            read = "a number" if isinstance(value, int | float) else "a date"
        return f"YAML reads it as {read}: put it in quotes."
    if kind in _NUMBERS and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return None
        return "Remove the quotes." if written.quoted else f"YAML reads it as text: write {number:.17g}."
    if kind == "bool_type" and written.quoted:
        return "Remove the quotes."
    return None
