"""Reads the YAML file and records the position of every key and value for error messages.

PyYAML reads YAML 1.1 and uses the last of two equal keys. This reader therefore refuses duplicate keys, and
numbers with a surprising value: YAML 1.1 reads ``12:30`` as 750 and ``010`` as 8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from eemtcleanupd.errors import ConfigError
from eemtcleanupd.files import read_regular
from eemtcleanupd.formatting import printable, shortened

Loc = tuple[str | int, ...]
"""The location of a value: names of keys, and indexes of lists."""

_MAX_BYTES = 1_000_000
_MAX_NODES = 50_000
_MAX_DEPTH = 32
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_CORE = "tag:yaml.org,2002:"
_CORE_TAGS = {_CORE + kind for kind in ("str", "int", "float", "bool", "null", "timestamp", "map", "seq")}
_HINTS = {
    "while scanning an alias": "Put a text that begins with * or & in quotes.",
    "found character that cannot start any token": "Indent with spaces, not tabs. Put a text that begins "
    "with @, % or ` in quotes.",
    "mapping values are not allowed in this context": "Check the indentation. Put a text that contains "
    "': ' in quotes.",
    "found undefined alias": "Put a text that begins with * in quotes.",
}


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value as written in the file, and whether it is in quotes."""

    text: str
    quoted: bool


@dataclass(slots=True)
class YamlDocument:
    """The content of a file as plain values. Lines and columns count from 1."""

    file: Path | None
    data: dict[str, Any] = field(default_factory=dict)
    keys: dict[Loc, tuple[int, int]] = field(default_factory=dict)
    values: dict[Loc, tuple[int, int]] = field(default_factory=dict)
    scalars: dict[Loc, Scalar] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def place(self, loc: Loc, *, of_key: bool = False) -> str:
        """Return ``FILE:LINE:COLUMN`` of a value (or of its key), or of the nearest enclosing one."""
        tables = (self.keys, self.values) if of_key else (self.values, self.keys)
        for length in range(len(loc), 0, -1):
            for positions in tables:
                if loc[:length] in positions:
                    line, column = positions[loc[:length]]
                    return f"{self.name}:{line}:{column}"
        return self.name

    def line(self, loc: Loc) -> str:
        """Return ``FILE:LINE`` of a key."""
        return f"{self.name}:{self.keys[loc][0]}"

    @property
    def name(self) -> str:
        """The printable path of the file, ``configuration`` without a file."""
        return printable(str(self.file)) if self.file else "configuration"


def read_document(file: Path) -> YamlDocument:
    """Read a configuration file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping of keys.
    """
    document = YamlDocument(file)
    name = document.name
    try:
        text = _read(file)
        _refuse_depth(text)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None or node.tag == f"{_CORE}null":
            return document
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{name}:1:1: The file must be a mapping of blocks, such as retention: …")
        document.data = _Reader(document, loader).mapping(node, ())
    except OSError as error:
        raise ConfigError(f"Cannot read {name}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text (byte {error.start + 1}).") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_error(name, error)) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: Invalid YAML: {str(error).splitlines()[0]}.") from None
    except _LimitError as error:
        raise ConfigError(f"{name} {error}. Is it the right file?") from None
    return document


class _LimitError(Exception):
    """A file exceeds the limits of a configuration file."""


def _read(file: Path) -> str:
    raw = read_regular(file, _MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise _LimitError("is larger than 1 MB")
    return raw.decode("utf-8-sig")


def _refuse_depth(text: str) -> None:
    """Check the depth in the flat stream of events, because composing deep nesting overflows the C stack."""
    depth, too_deep = 0, _LimitError(f"is nested more than {_MAX_DEPTH} deep")
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _MAX_DEPTH:
                    raise too_deep
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except yaml.MarkedYAMLError as error:
        if "nesting depth" in str(error.problem):  # PyYAML 6.0.4 has a limit of its own
            raise too_deep from None
        raise


def _syntax_error(name: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    parts = [part for part in (error.context, error.problem) if part]
    hint = next((_HINTS[part] for part in parts if part in _HINTS), None)
    return f"{place}: Invalid YAML: {', '.join(parts)}." + (f" {hint}" if hint else "")


_INVALID: Final = object()
"""The placeholder of a value whose problem is already recorded."""


class _Reader:
    """Turns YAML nodes into plain values and records their positions."""

    def __init__(self, document: YamlDocument, loader: Any) -> None:
        self._document = document
        self._loader = loader
        self._nodes = 0

    def mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        document = self._document
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, loc, "A key must be a single word.")
                continue
            key_loc = (*loc, str(key_node.value))
            if key_loc in document.keys:
                first = document.keys[key_loc][0]
                self._problem(key_node, key_loc, f"Duplicate key. It is already set in line {first}.")
                continue
            document.keys[key_loc] = _position(key_node)
            if (value := self._value(value_node, key_loc)) is not _INVALID:
                result[str(key_node.value)] = value
        return result

    def _value(self, node: yaml.Node, loc: Loc) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES or len(loc) > _MAX_DEPTH:  # aliases can expand a small file
            raise _LimitError("has too many values, or a value that contains itself")
        self._document.values[loc] = _position(node)
        if node.tag not in _CORE_TAGS:
            self._problem(node, loc, "Tags and merge keys are not supported. Put a text in quotes.")
            return _INVALID
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            values = [self._value(child, (*loc, index)) for index, child in enumerate(node.value)]
            return [value for value in values if value is not _INVALID]
        return self._scalar(node, loc)

    def _scalar(self, node: Any, loc: Loc) -> Any:
        text = str(node.value)
        self._document.scalars[loc] = Scalar(text, quoted=bool(node.style))
        shown = shortened(printable(text), 40)
        try:
            value = self._loader.construct_object(node)
        except (ValueError, TypeError, OverflowError, yaml.YAMLError):
            self._problem(node, loc, f"Cannot parse {shown}. Put a text in quotes.")
            return _INVALID
        if isinstance(value, int | float) and (":" in text or _OCTAL.fullmatch(text)):
            reason = "a number in base 60" if ":" in text else "an octal number"
            example = text.lstrip("0") if ":" not in text else "12.5"
            self._problem(
                node,
                loc,
                f"YAML reads {shown} as {reason}, {shortened(str(value), 20)}. "
                f"Write a plain number such as {example}, or put a text in quotes.",
            )
            return _INVALID
        return value

    def _problem(self, node: yaml.Node, loc: Loc, message: str) -> None:
        line, column = _position(node)
        self._document.problems.append(f"{self._document.name}:{line}:{column}: {dotted(loc)}: {message}")


def _position(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def dotted(loc: Loc) -> str:
    """Return a location as text, such as ``retention.overrides[0].workflow_type``."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = shortened(printable(part), 60)
            text += f".{name}" if text else name
    return text
