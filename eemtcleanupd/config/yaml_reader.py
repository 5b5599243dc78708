"""Reading the YAML file, with the place of every key and value, so that errors can point at them.

PyYAML reads YAML 1.1 and takes the last of two equal keys.  Both surprise: the node tree is searched for
keys that stand there twice, and for numbers that were not meant (``12:30`` is 750, ``010`` is 8).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from eemtcleanupd.errors import ConfigError
from eemtcleanupd.formatting import printable, shortened

Loc = tuple[str | int, ...]
"""The way to a value: names of keys, and positions in lists."""

_MAX_BYTES = 1_000_000
_MAX_NODES = 50_000
_MAX_DEPTH = 32
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_CORE = "tag:yaml.org,2002:"
_CORE_TAGS = {_CORE + kind for kind in ("str", "int", "float", "bool", "null", "timestamp", "map", "seq")}
_HINTS = {
    "while scanning an alias": "a text that begins with * or & is put in quotes",
    "found character that cannot start any token": "indent with spaces, not tabs; a text that begins with @, "
    "% or ` is put in quotes",
    "mapping values are not allowed in this context": "check the indentation; a text with ': ' in it is put "
    "in quotes",
    "found undefined alias": "a text that begins with * is put in quotes",
}


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value as it is written, and whether it stands in quotes."""

    text: str
    quoted: bool


@dataclass(slots=True)
class YamlDocument:
    """A file's content as plain values; lines and columns count from 1."""

    file: Path | None
    data: dict[str, Any] = field(default_factory=dict)
    keys: dict[Loc, tuple[int, int]] = field(default_factory=dict)
    values: dict[Loc, tuple[int, int]] = field(default_factory=dict)
    scalars: dict[Loc, Scalar] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def place(self, loc: Loc, *, of_key: bool = False) -> str:
        """Return ``FILE:LINE:COLUMN`` of a value (or of its key), or of the nearest one above it."""
        places = (self.keys, self.values) if of_key else (self.values, self.keys)
        for length in range(len(loc), 0, -1):
            for found in places:
                if loc[:length] in found:
                    line, column = found[loc[:length]]
                    return f"{self.name}:{line}:{column}"
        return self.name

    def line(self, loc: Loc) -> str:
        """Return ``FILE:LINE`` of a key."""
        return f"{self.name}:{self.keys[loc][0]}"

    @property
    def name(self) -> str:
        """The file's path, fit for one line; ``configuration`` without a file."""
        return printable(str(self.file)) if self.file else "configuration"


def read_document(file: Path) -> YamlDocument:
    """Read a configuration file.

    Raises:
        ConfigError: it cannot be read, is not YAML, or holds no mapping of keys.
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
            raise ConfigError(f"{name}:1:1: the file must be a mapping of blocks, such as retention: …")
        document.data = _Reader(document, loader).mapping(node, ())
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text (byte {error.start + 1})") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_error(name, error)) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None
    except _TooMuchError as error:
        raise ConfigError(f"{name} {error}: is it the right file?") from None
    return document


class _TooMuchError(Exception):
    """A file that is beyond what a configuration can be."""


def _read(file: Path) -> str:
    with file.open("rb") as stream:
        raw = stream.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise _TooMuchError("is larger than 1 MB")
    return raw.decode("utf-8-sig")


def _refuse_depth(text: str) -> None:
    """Look at the flat stream of events first: composing deep nesting overflows the C stack."""
    depth, too_deep = 0, _TooMuchError(f"is nested more than {_MAX_DEPTH} deep")
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _MAX_DEPTH:
                    raise too_deep
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except yaml.MarkedYAMLError as error:
        if "nesting depth" in str(error.problem):  # PyYAML 6.0.4 looks ahead and counts by itself
            raise too_deep from None
        raise


def _syntax_error(name: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    said = [part for part in (error.context, error.problem) if part]
    hint = next((_HINTS[part] for part in said if part in _HINTS), None)
    return f"{where}: not valid YAML: {', '.join(said)}" + (f" ({hint})" if hint else "")


_TOLD: Final = object()
"""In place of a value that is among the problems already."""


class _Reader:
    """Turns nodes into plain values and notes the places."""

    def __init__(self, document: YamlDocument, loader: Any) -> None:
        self._document = document
        self._loader = loader
        self._nodes = 0

    def mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        document = self._document
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, loc, "a key is a single word")
                continue
            here = (*loc, str(key_node.value))
            if here in document.keys:
                first = document.keys[here][0]
                self._problem(
                    key_node, here, f"this key is in line {first} already and may stand here only once"
                )
                continue
            document.keys[here] = _mark(key_node)
            if (value := self._value(value_node, here)) is not _TOLD:
                result[str(key_node.value)] = value
        return result

    def _value(self, node: yaml.Node, loc: Loc) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES or len(loc) > _MAX_DEPTH:  # aliases can make much of a small file
            raise _TooMuchError("has too many values, or one that holds itself")
        self._document.values[loc] = _mark(node)
        if node.tag not in _CORE_TAGS:
            self._problem(node, loc, "a tag or a merge key has no meaning here; put a text in quotes")
            return _TOLD
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            values = [self._value(child, (*loc, at)) for at, child in enumerate(node.value)]
            return [value for value in values if value is not _TOLD]
        return self._scalar(node, loc)

    def _scalar(self, node: Any, loc: Loc) -> Any:
        text = str(node.value)
        self._document.scalars[loc] = Scalar(text, quoted=bool(node.style))
        shown = shortened(printable(text), 40)
        try:
            value = self._loader.construct_object(node)
        except (ValueError, TypeError, OverflowError, yaml.YAMLError):
            self._problem(node, loc, f"{shown} cannot be read as what it looks like; put a text in quotes")
            return _TOLD
        if isinstance(value, int | float) and (":" in text or _OCTAL.fullmatch(text)):
            reason = "a number in base 60" if ":" in text else "an octal number"
            meant = text.lstrip("0") if ":" not in text else "12.5"
            self._problem(
                node,
                loc,
                f"YAML reads {shown} as {reason}, {shortened(str(value), 20)}; "
                f"write a plain number such as {meant}, or put a text in quotes",
            )
            return _TOLD
        return value

    def _problem(self, node: yaml.Node, loc: Loc, words: str) -> None:
        line, column = _mark(node)
        self._document.problems.append(f"{self._document.name}:{line}:{column}: {dotted(loc)}: {words}")


def _mark(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def dotted(loc: Loc) -> str:
    """Return the way to a value as people write it: ``retention.overrides[0].workflow_type``."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = shortened(printable(part), 60)
            text += f".{name}" if text else name
    return text
