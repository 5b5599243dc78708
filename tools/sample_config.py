"""Renders etc/cleanup_config.yaml: every key with its default, and its description as a comment."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from eemtcleanupd.config.environment import VARIABLES
from eemtcleanupd.config.plugin_settings import NotifierSettings
from eemtcleanupd.plugins import schema
from tools.json_schema import Spec, alternatives, block_of, is_size, size_text

_WIDTH = 100
_NO_BREAK = "\xa0"
_HEAD = """\
# yaml-language-server: $schema=./cleanup_config.schema.json
#
# Sample configuration of eemtcleanupd. It contains every key with its default value. A key that you leave
# out has its default, so your own file needs only the keys that you change.
#
# eemtcleanupd reads the file that --config or $EEMT_CLEANUP_CONFIG names, else ./cleanup_config.yaml, else
# /etc/eemtcleanupd/cleanup_config.yaml. Environment variables override the file, and command-line options
# override both. `eemtcleanupd check` prints the effective values and where they come from.
#
# Relative paths are relative to this file. A line that begins with `#key:` is an example: remove the # to use
# it. A secret can be in an environment variable or in a file. The file is a path, or the name of a credential
# of the systemd unit (LoadCredential=).
#
# `make reference` generates this file from the source code.
"""
_PLAIN = re.compile(r"(\./)?[A-Za-z_][\w./@-]*")
_VARIABLE = re.compile(r"\$\{\w+\}")


def render() -> str:
    """Return the sample configuration."""
    renderer = _Renderer()
    sections = ["\n".join(renderer.lines(name, spec)) for name, spec in renderer.root["properties"].items()]
    return f"{_HEAD}\n" + "\n\n".join(sections) + "\n"


class _Renderer:
    """Renders keys and blocks, and remembers in which block the keys of all notifiers are explained."""

    def __init__(self) -> None:
        self.root: Spec = schema().json_schema()
        self._secrets = schema().secret_keys
        self._common: Spec = NotifierSettings.model_json_schema()["properties"]
        self._explained_in = ""

    def lines(self, key: str, spec: Spec) -> Iterator[str]:
        """Yield the lines of a key and of everything below it."""
        block = block_of(spec, self.root)
        *parents, name = key.split(".")
        indent = "  " * len(parents)
        if block is None:
            yield from _comment(indent, *_explanation(key, spec))
            yield f"{indent}{name}: {_value(spec)}"
            return
        yield from _comment(indent, block["description"])
        yield f"{indent}{name}:"
        for index, (child, below) in enumerate(block["properties"].items()):
            if below == self._common.get(child):
                continue
            if key == "notifications" and index:
                yield ""
            if (example := self._example(f"{key}.{child}", below, block["properties"])) is None:
                yield from self.lines(f"{key}.{child}", below)
            else:
                yield from _comment(f"{indent}  ", *_explanation(f"{key}.{child}", below))
                yield f"{indent}  #{child}: {example}"
        yield from self._common_lines(key, block, f"{indent}  ")

    def _example(self, key: str, spec: Spec, siblings: Spec) -> str | None:
        """Return the value to show in a comment, None for a key that is shown with its default."""
        section, name = key.split(".")[-2:]
        is_secret = key in self._secrets and f"{name}_file" in siblings
        if spec.get("deprecated") or (is_secret and "examples" in spec):
            return _yaml(spec["examples"][0])
        if is_secret:
            variable = f"${{{section}_{name}}}".upper()
            return _yaml([variable] if _is_list(spec) else variable)
        if name.endswith("_file") and key.removesuffix("_file") in self._secrets:
            return _yaml(f"{section}_{name.removesuffix('_file')}")
        return None

    def _common_lines(self, key: str, block: Spec, indent: str) -> Iterator[str]:
        """Yield the keys that all notifiers have, explained in the first notifier only."""
        properties = block["properties"]
        names = [name for name, spec in self._common.items() if spec == properties.get(name)]
        if names and self._explained_in:
            yield f"{indent}# As for {self._explained_in}:"
        for name in names:
            if not self._explained_in:
                yield from _comment(indent, *_explanation(name, properties[name]))
            yield f"{indent}#{name}: {_value(properties[name])}"
        if names and not self._explained_in:
            self._explained_in = key.rpartition(".")[2]


def _explanation(key: str, spec: Spec) -> Iterator[str]:
    """Yield what the comment of a key says: its description, then its bounds, variables and examples."""
    yield " ".join([spec["description"], *_allowed(spec)])
    names = [
        f"{variable.name} (in days)" if variable.name.endswith("_DAYS") else variable.name
        for variable in VARIABLES
        if variable.key == key
    ]
    if names:
        yield f"Environment: {', '.join(names)}"
    # The JSON Schema sorts the keys of an example, the field does not.
    field = schema().fields.get(key)
    for example in () if field is None or spec.get("deprecated") else field.examples or ():
        yield f"Example: {_yaml(example)}"


def _allowed(spec: Spec) -> Iterator[str]:
    for option in alternatives(spec):
        low, above, high = (option.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
        if "enum" in option:
            yield f"Values: {', '.join(option['enum'])}."
            return
        if high is not None and high < 1_000_000:
            text = f"Range: {f'{low:g}' if above is None else f'above {above:g}'} to {high:g}."
            yield text.replace(" ", _NO_BREAK)
            return


def _is_list(spec: Spec) -> bool:
    return any(option.get("type") == "array" for option in spec.get("anyOf", ()))


def _value(spec: Spec) -> str:
    """Return the default of a key as YAML."""
    value = spec["default"]
    if is_size(spec) and isinstance(value, int):
        return size_text(value)
    if spec.get("format") == "path" and not value.startswith("/"):
        return f"./{value}"
    if _is_list(spec) and len(value) == 1:  # a list of one can be written as a single value
        value = value[0]
    return _yaml(value)


def _yaml(value: Any) -> str:
    """Return a value in the flow style of YAML, with quotes around every text that needs them."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _comment(indent: str, *paragraphs: str) -> Iterator[str]:
    for paragraph in paragraphs:
        lines = textwrap.wrap(
            paragraph.replace("\n", " "),
            _WIDTH,
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        yield from (line.replace(_NO_BREAK, " ") for line in lines)
