"""What the reference pages are made of, taken from the code: tables of keys, options, metrics, hooks, routes.

Cog (https://cog.readthedocs.io) runs the blocks between ``[[[cog`` and ``[[[end]]]`` in ``docs/*.md``; each
calls one function of this module, which returns Markdown.  ``make reference`` writes the pages anew, with
``--check`` this script ends with 1 when one is not current.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import subprocess
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import click
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from eemtcleanupd import errors, events, hookspecs, model
from eemtcleanupd.cli.main import COMMANDS
from eemtcleanupd.config.environment import BASE_DIR, CONFIG_FILE, VARIABLES
from eemtcleanupd.config.plugin_settings import NotifierSettings
from eemtcleanupd.notifiers.prometheus import Prometheus
from eemtcleanupd.plugins import schema
from eemtcleanupd.store.tables import METADATA
from eemtcleanupd.web.app import build_routes
from eemtcleanupd.web.auth import Authenticator
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.cache import ResponseCache
from eemtcleanupd.web.context import ApiContext
from eemtcleanupd.web.router import routes as interface

_DOCS = Path(__file__).parent
_ARCHITECTURE = _DOCS.parent / "ARCHITECTURE.md"
_KINDS = {"boolean": "true or false", "integer": "whole number", "number": "number", "string": "text"}
Spec = Mapping[str, Any]
"""A part of a JSON Schema."""


# Commands


def command(name: str) -> str:
    """Return the usage and the options of a command, and of the commands below it."""
    found: click.Command = getattr(importlib.import_module(COMMANDS[name][0]), name.replace("-", "_"))
    return _page(*_command(f"eemtcleanupd {name}", found))


def _command(path: str, found: click.Command) -> Iterator[str]:
    if isinstance(found, click.Group):
        for name, below in sorted(found.commands.items()):
            yield from _command(f"{path} {name}", below)
        return
    context = click.Context(found, info_name=path)
    yield f"`{' '.join([path, *found.collect_usage_pieces(context)])}`"
    records = [
        record
        for parameter in found.params
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context))
    ]
    yield _table(("option", "what it does"), ((_code(option), _cell(words)) for option, words in records))


def exit_codes() -> str:
    """Return the exit codes, with what ends with each."""
    kinds: dict[int, list[str]] = {0: ["Done."], 1: ["Done, with errors on some jobs."]}
    for kind in errors.CleanupError.__subclasses__():
        if kind.__module__ == errors.__name__:
            kinds.setdefault(kind.exit_code, []).append(_words(kind))
    rows = [(str(code), " ".join(words)) for code, words in sorted(kinds.items())]
    ended = "Ended by signal n in order (130: Ctrl-C); the rest is left to the next run."
    return _page(_table(("code", "meaning"), [*rows, ("128 + n", ended)]))


# Configuration


def variables() -> str:
    """Return the environment variables, with the key that each sets and what it may be."""
    whole = schema().json_schema()
    kinds = {key: _kind(spec, whole) for key, spec, _ in _leaves(whole, whole)}
    rows = [
        (f"`{CONFIG_FILE}`", "the configuration file", "path"),
        (f"`{BASE_DIR}`", "the folder of `paths.*`, see above", "path"),
    ]
    newer: set[str] = set()
    for each in VARIABLES:
        older = " (older)" if each.key in newer else ""
        newer.add(each.key)
        unit = ", in days" if each.name.endswith("_DAYS") else ""
        rows.append((f"`{each.name}`{older}", f"`{each.key}`{unit}", kinds[each.key]))
    return _page(_table(("variable", "sets", "value"), rows))


def keys() -> str:
    """Return every key of the configuration, by block."""
    whole = schema().json_schema()
    common = NotifierSettings.model_json_schema()["properties"]
    blocks: dict[str, list[tuple[str, Spec, bool]]] = {}
    for key, spec, is_needed in _leaves(whole, whole):
        parts = key.split(".")
        block = ".".join(parts[:2]) if parts[0] == "notifications" else parts[0] if len(parts) > 1 else ""
        blocks.setdefault(block, []).append((key, spec, is_needed))
    pieces = ["## The whole", _keys(blocks.pop(""), whole)]
    for block, entries in blocks.items():
        pieces.append(f"## {block}")
        if block.startswith("notifications.") and set(common) <= {_last(key) for key, _, _ in entries}:
            pieces.append("Besides [what all notifiers have](#what-all-notifiers-have):")
            pieces.append(
                _keys((entry for entry in entries if entry[1] != common.get(_last(entry[0]))), whole)
            )
        else:
            pieces.append(_keys(entries, whole))
    pieces += ["## What all notifiers have", "In each block of a notifier, unless it says otherwise:"]
    pieces.append(_keys([(key, spec, False) for key, spec in common.items()], whole))
    return _page(*pieces)


def _keys(entries: Iterable[tuple[str, Spec, bool]], whole: Spec) -> str:
    by_key: dict[str, list[str]] = {}
    for each in VARIABLES:
        by_key.setdefault(each.key, []).append(f"`{each.name}`")
    rows = []
    for key, spec, is_needed in entries:
        words = spec.get("description", "")
        if key in by_key:
            words += f" Also {', '.join(by_key[key])}."
        rows.append((f"`{key}`", _kind(spec, whole), _default(spec, is_needed=is_needed), _cell(words)))
    return _table(("key", "value", "default", "meaning"), rows)


def _leaves(block: Spec, whole: Spec, prefix: str = "") -> Iterator[tuple[str, Spec, bool]]:
    """Yield each key that is no block, dotted, with its schema and whether it must be given."""
    for name, spec in block["properties"].items():
        below = [option for option in spec.get("anyOf", [spec]) if "$ref" in option]
        if below:
            yield from _leaves(_resolved(below[0], whole), whole, f"{prefix}{name}.")
            continue
        yield prefix + name, spec, name in block.get("required", ())
        if "$ref" in spec.get("items", {}):
            yield from _leaves(_resolved(spec["items"], whole), whole, f"{prefix}{name}[].")


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _default(spec: Spec, *, is_needed: bool) -> str:
    if is_needed:
        return "must be given"
    return f"`{json.dumps(spec['default'])}`" if "default" in spec else ""


def _resolved(spec: Spec, whole: Spec) -> Spec:
    return cast("Spec", whole["$defs"][spec["$ref"].rpartition("/")[2]])


def _kind(spec: Spec, whole: Spec) -> str:
    """Say what a value may be, with its bounds."""
    if "$ref" in spec:
        return "block"
    if "anyOf" in spec:
        kinds = [_kind(option, whole) for option in spec["anyOf"]]
        if len(kinds) == 2 and kinds[1] == f"list of {kinds[0]}":
            return f"{kinds[0]}, or a list of these"
        return (", or " if any(" " in kind for kind in kinds) else " or ").join(kinds)
    if "enum" in spec:
        return ", ".join(f"`{value}`" for value in spec["enum"])
    if "const" in spec:
        return f"`{spec['const']}`"
    if spec["type"] == "null":
        return "null"
    if spec["type"] == "array":
        return f"list of {_kind(spec['items'], whole)}"
    kind = {"path": "path", "password": "secret"}.get(spec.get("format", ""), _KINDS[spec["type"]])
    return kind + _bounds(spec)


def _bounds(spec: Spec) -> str:
    low, above, high = spec.get("minimum"), spec.get("exclusiveMinimum"), spec.get("maximum")
    words = [f"at least {low:g}"] if low is not None else [f"above {above:g}"] if above is not None else []
    if high is not None:
        words.append(f"at most {high:,.0f}" if high >= 1 else f"at most {high:g}")
    return f", {', '.join(words)}" if words else ""


# Metrics


def metrics() -> str:
    """Return every metric."""
    rows = []
    for family in Prometheus().metrics():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
        rows.append((f"`{name}`", family.type, labels, family.documentation))
    return _page(_table(("metric", "type", "labels", "what it says"), rows))


# Hooks and events


def hooks() -> str:
    """Return every hook, with its arguments."""
    pieces = []
    for name, hook in vars(hookspecs.Hooks).items():
        if not name.startswith("_"):
            arguments = ", ".join(list(inspect.signature(hook).parameters)[1:])
            pieces += [f"### {name}", f"`{name}({arguments})`", _words(hook)]
    return _page(*pieces)


def event_types() -> str:
    """Return the values that hooks are given, and all that is in these."""
    pieces = []
    for kind in _values_of_hooks():
        rows = [(f"`{field.name}`", _code(str(field.type))) for field in dataclasses.fields(kind)]
        rows += [
            (f"`{name}`", _words(member))
            for name, member in vars(kind).items()
            if isinstance(member, property) and not name.startswith("_")
        ]
        pieces += [f"### {kind.__name__}", _words(kind), _table(("field", "type"), rows)]
    return _page(*pieces)


def _values_of_hooks() -> list[type]:
    """Return the dataclasses that hooks are given, each before what is inside it."""
    names = {**vars(events), **vars(model), **vars(hookspecs)}
    found: dict[type, None] = {}

    def look(annotation: Any) -> None:
        for part in typing.get_args(annotation):
            look(part)
        if dataclasses.is_dataclass(annotation) and annotation not in found:
            kind = cast("type", annotation)
            found[kind] = None
            for inner in typing.get_type_hints(kind, {**vars(inspect.getmodule(kind)), **names}).values():
                look(inner)

    for name, hook in vars(hookspecs.Hooks).items():
        if not name.startswith("_"):
            for annotation in typing.get_type_hints(hook).values():
                look(annotation)
    return list(found)


# HTTP


def routes() -> str:
    """Return every route of the HTTP interface, with its parameters, its body and its answers."""
    nothing = cast("Backend", None)  # only what the routes say of themselves is asked for
    access = Authenticator(nothing)
    site = ApiContext(nothing, ResponseCache(), access.requires("read"), access.requires("clean"))
    app = build_routes(site, access)
    description = app.openapi()
    scopes = dict(_scopes([*app.routes, *interface(site).routes]))
    pieces = []
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            is_open = "security" not in route
            pieces += [
                f"### {method.upper()} {path}",
                " ".join(route["description"].split()),
                "No token is needed." if is_open else f"Scope: `{scopes[path, method.upper()]}`.",
            ]
            if rows := list(_parameters(route, description)):
                pieces.append(_table(("parameter", "where", "value", "default", "meaning"), rows))
            answers = [_answer(code, answer) for code, answer in sorted(route["responses"].items())]
            pieces.append(f"Answers: {', '.join(answers)}.")
    return _page(*pieces)


def _scopes(found: Iterable[BaseRoute]) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield what a token must be good for, by path and method."""
    for route in found:
        if isinstance(route, APIRoute):
            for dependency in route.dependant.dependencies:
                scope = inspect.getclosurevars(cast("Any", dependency.call)).nonlocals.get("scope")
                if isinstance(scope, str):
                    yield from (((route.path, method), scope) for method in route.methods or ())


def _parameters(route: Spec, description: Spec) -> Iterator[tuple[str, ...]]:
    whole = {"$defs": description["components"]["schemas"]}
    for each in route.get("parameters", ()):
        default = _default(each["schema"], is_needed=each["required"])
        words = _cell(each.get("description", ""))
        yield f"`{each['name']}`", each["in"], _kind(each["schema"], whole), default, words
    for content in route.get("requestBody", {}).get("content", {}).values():
        body = content["schema"]
        if "anyOf" in body:
            body = body["anyOf"][0]
        for key, spec, is_needed in _leaves(_resolved(body, whole), whole):
            default = _default(spec, is_needed=is_needed)
            yield f"`{key}`", "body", _kind(spec, whole), default, _cell(spec.get("description", ""))


def _answer(code: str, answer: Spec) -> str:
    if code == "202":
        return f"202 ({answer['description'][0].lower()}{answer['description'][1:]})"
    return code


# Tables of the ledger


def tables() -> str:
    """Return our tables in the job database: what a row is, after the architecture, and its columns."""
    meanings = dict(re.findall(r"^\| `(cleanup_\w+)` \| (.*) \|$", _ARCHITECTURE.read_text(), re.MULTILINE))
    pieces = []
    for name, table in METADATA.tables.items():
        rows = [
            (f"`{column.name}`", str(column.type).lower(), "key" if column.primary_key else "")
            for column in table.columns
        ]
        pieces += [f"### {name}", f"A row is {meanings[name]}.", _table(("column", "type", ""), rows)]
    return _page(*pieces)


# Markdown


def _page(*pieces: str) -> str:
    """Join what a block is made of, with the empty lines around it that Markdown wants after a comment."""
    return "\n" + "\n\n".join(pieces) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(line)} |".replace("  |", " |") for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "&#124;").replace("<", "&lt;")


def _code(text: str) -> str:
    """Return code for a cell; what is between backticks cannot hold a bar that every Markdown reads so."""
    return f"<code>{_cell(text)}</code>" if "|" in text else f"`{text}`"


def _words(thing: object) -> str:
    """Return a docstring as Markdown; its sections of arguments are left to the signature."""
    text = (inspect.getdoc(thing) or "").partition("\n\nArgs:")[0]
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def main() -> None:
    """Let Cog write (or check) every page."""
    cog: list[str | Path] = [
        sys.executable,
        "-m",
        "cogapp",
        "-I",
        _DOCS,
        "-p",
        "import cog, reference",
        "--verbosity=1",
    ]
    done = subprocess.run([*cog, *(sys.argv[1:] or ["-r"]), *sorted(_DOCS.glob("*.md"))], check=False)
    sys.exit(done.returncode and "docs/*.md: what is generated is not current; run: make reference")


if __name__ == "__main__":
    main()
