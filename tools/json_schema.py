"""Describes the parts of a JSON Schema as text for tables and comments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

Spec = Mapping[str, Any]
"""A part of a JSON Schema."""

_KINDS = {"boolean": "true or false", "integer": "whole number", "number": "number", "string": "text"}


def resolve(spec: Spec, root: Spec) -> Spec:
    """Return the definition that a reference names."""
    return cast("Spec", root["$defs"][spec["$ref"].rpartition("/")[2]])


def block_of(spec: Spec, root: Spec) -> Spec | None:
    """Return the definition of a block, which can be empty (null). Return None for any other value."""
    references = [option for option in spec.get("anyOf", [spec]) if "$ref" in option]
    return resolve(references[0], root) if references else None


def leaves(block: Spec, root: Spec, prefix: str = "") -> Iterator[tuple[str, Spec, bool]]:
    """Yield each key that is not a block: its dotted name, its schema, and whether it is required."""
    for name, spec in block["properties"].items():
        below = block_of(spec, root)
        if below:
            yield from leaves(below, root, f"{prefix}{name}.")
            continue
        yield prefix + name, spec, name in block.get("required", ())
        if "$ref" in spec.get("items", {}):
            yield from leaves(resolve(spec["items"], root), root, f"{prefix}{name}[].")


def alternatives(spec: Spec) -> Iterator[Spec]:
    """Yield the schemas that a value, or an entry of a list, can match."""
    if "anyOf" in spec:
        for option in spec["anyOf"]:
            yield from alternatives(option)
    elif "items" in spec:
        yield from alternatives(spec["items"])
    else:
        yield spec


def is_size(spec: Spec) -> bool:
    """Return whether a value is a number of bytes that can be written like ``16M``."""
    return {option.get("type") for option in alternatives(spec)} - {"null"} == {"integer", "string"}


def size_text(size: int) -> str:
    """Return a number of bytes as a configuration writes it."""
    for power, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if size and size % (1 << power) == 0:
            return f"{size >> power}{unit}"
    return str(size)


def default(spec: Spec, *, required: bool) -> str:
    """Return the default of a key as code, an empty text if it has none."""
    if required:
        return "required"
    if "default" not in spec:
        return ""
    value = spec["default"]
    is_bytes = is_size(spec) and isinstance(value, int)
    return f"`{size_text(value) if is_bytes else json.dumps(value)}`"


def kind(spec: Spec, root: Spec) -> str:
    """Return the type of a value with its bounds."""
    if "$ref" in spec:
        return "block"
    if "anyOf" in spec:
        options = spec["anyOf"]
        if is_size(spec):
            options = [{"type": "string", "format": "size"}, *(o for o in options if o.get("type") == "null")]
        kinds = [kind(option, root) for option in options]
        if len(kinds) == 2 and kinds[1] == f"list of {kinds[0]}":
            return f"{kinds[0]}, or a list of these"
        return (", or " if any(" " in text for text in kinds) else " or ").join(kinds)
    if "enum" in spec:
        return ", ".join(f"`{value}`" for value in spec["enum"])
    if "const" in spec:
        return f"`{spec['const']}`"
    if spec["type"] == "null":
        return "null"
    if spec["type"] == "array":
        return f"list of {kind(spec['items'], root)}"
    formats = {"path": "path", "password": "secret", "size": "size"}
    return formats.get(spec.get("format", ""), _KINDS[spec["type"]]) + _bounds(spec)


def _bounds(spec: Spec) -> str:
    low, above, high = spec.get("minimum"), spec.get("exclusiveMinimum"), spec.get("maximum")
    parts = [f"at least {low:g}"] if low is not None else [f"above {above:g}"] if above is not None else []
    if high is not None:
        parts.append(f"at most {high:,.0f}" if high >= 1 else f"at most {high:g}")
    return f", {', '.join(parts)}" if parts else ""
