"""Reading the YAML file, with the place of every key and value, so that errors can point at them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from eemtcleanupd.errors import ConfigError

_MAX_BYTES = 1 << 20
_MAX_NODES = 50_000
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Path_ = tuple[str | int, ...]


@dataclass(slots=True)
class Document:
    """A file's content as plain values; ``places`` has line and column of each key's path."""

    file: Path
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Path_, tuple[int, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def place(self, path: Path_) -> str:
        """Return ``FILE:LINE:COLUMN`` of a key, or of the nearest one above it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                line, column = self.places[path[:length]]
                return f"{self.file}:{line}:{column}"
        return str(self.file)


def read_document(file: Path) -> Document:
    """Read a configuration file.

    Raises:
        ConfigError: it cannot be read, is not YAML, or is no mapping.
    """
    document = Document(file)
    try:
        raw = file.read_bytes() if file.stat().st_size <= _MAX_BYTES else None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    if raw is None:
        raise ConfigError(f"{file} is larger than 1 MB: is it the right file?")
    try:
        loader = _Loader(raw.decode("utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return document
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                f"{file}:1:1: the file must be a mapping of blocks such as retention: and paths:"
            )
        document.data = _Reader(document, loader).mapping(node, ())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text (byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise ConfigError(f"{file}: not valid YAML: {reason}") from error
    return document


class _Reader:
    def __init__(self, document: Document, loader: Any) -> None:
        self._document = document
        self._loader = loader
        self._nodes = 0

    def mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
            here = (*path, key)
            line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            if key in result:
                first = self._document.places[here][0]
                self._document.problems.append(
                    f"{self._document.file}:{line}:{column}: {dotted(here)} stands here again "
                    f"(first in line {first}); keep one of them"
                )
                continue
            self._document.places[here] = (line, column)
            result[key] = self._value(value_node, here)
        return result

    def _value(self, node: yaml.Node, path: Path_) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES:  # aliases of aliases can grow a small file beyond all bounds
            raise ConfigError(
                f"{self._document.file} has more than {_MAX_NODES} values: is it the right file?"
            )
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            for at, child in enumerate(node.value):
                self._document.places[(*path, at)] = (child.start_mark.line + 1, child.start_mark.column + 1)
            return [self._value(child, (*path, at)) for at, child in enumerate(node.value)]
        value = self._loader.construct_object(node, deep=True)
        if isinstance(value, int | float) and ":" in str(node.value):
            self._document.problems.append(
                f"{self._document.place(path)}: {dotted(path)}: YAML reads {node.value} as the number "
                f"{value}; write a plain number, or put it in quotes"
            )
        return value


def dotted(path: Path_) -> str:
    """Return a path as people write it: ``retention.overrides[0].workflow_type``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
