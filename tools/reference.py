"""Generates everything that the code knows: reference pages, the sample configuration, the module tables.

``python -m tools.reference`` writes the files. With ``--check`` it writes nothing, and exits with 1 if a file
is out of date.

Cog (https://cog.readthedocs.io) runs the blocks between ``[[[cog`` and ``[[[end]]]`` in ``docs/``,
ARCHITECTURE.md, README.md and the man page. Each block calls a function of this package, or of
``benchmarks.report``, that returns its text.
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
from collections.abc import Iterable, Iterator
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
from eemtcleanupd.web.pages import Pages
from eemtcleanupd.web.router import routes as interface
from tools import sample_config
from tools.json_schema import Spec, block_of, default, kind, leaves, resolve

_ROOT = Path(__file__).parents[1]
_ARCHITECTURE = _ROOT / "ARCHITECTURE.md"
_MAN_PAGE = _ROOT / "packaging/man/eemtcleanupd.8"


# Commands


def command(name: str) -> str:
    """Return the usage, options and examples of a command, and of the commands below it."""
    definition: click.Command = getattr(importlib.import_module(COMMANDS[name][0]), name.replace("-", "_"))
    return page(*_command(f"eemtcleanupd {name}", definition))


def _command(path: str, definition: click.Command) -> Iterator[str]:
    if isinstance(definition, click.Group):
        for name, subcommand in sorted(definition.commands.items()):
            yield from _command(f"{path} {name}", subcommand)
        return
    context = click.Context(definition, info_name=path)
    yield f"`{' '.join([path, *definition.collect_usage_pieces(context)])}`"
    records = [
        record
        for parameter in definition.params
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context))
    ]
    yield table(("option", "meaning"), ((_code(option), cell(text)) for option, text in records))
    if definition.epilog:
        examples = [line.strip() for line in definition.epilog.splitlines() if line.startswith("  ")]
        yield "\n".join(["```text", *examples, "```"])


def man_commands() -> str:
    """Return the commands with their arguments for the man page, in mdoc(7)."""
    lines = []
    for name, (module, meaning) in COMMANDS.items():
        definition: click.Command = getattr(importlib.import_module(module), name.replace("-", "_"))
        lines += [f".It {' , '.join(_mdoc(name, definition))}", meaning]
    return "\n".join(lines)


def _mdoc(path: str, definition: click.Command) -> Iterator[str]:
    if isinstance(definition, click.Group):
        for name, subcommand in sorted(definition.commands.items()):
            yield from _mdoc(f"{path} {name}", subcommand)
        return
    pieces = [f"Cm {path}"]
    for parameter in definition.params:
        if isinstance(parameter, click.Argument):
            name = (parameter.metavar or str(parameter.name)).strip("[]").lower()
            pieces.append(f"{'' if parameter.required else 'Op '}Ar {name}")
    yield " ".join(pieces)


def exit_codes() -> str:
    """Return the exit codes with their meanings."""
    meanings: dict[int, list[str]] = {0: ["Done."], 1: ["Done, with errors on some jobs."]}
    for error in errors.CleanupError.__subclasses__():
        if error.__module__ == errors.__name__:
            meanings.setdefault(error.exit_code, []).append(markdown(error))
    rows = [(str(code), " ".join(texts)) for code, texts in sorted(meanings.items())]
    signal = "Stopped by signal n (130 after Ctrl-C). The next run continues."
    return page(table(("code", "meaning"), [*rows, ("128 + n", signal)]))


# Configuration


def variables() -> str:
    """Return the environment variables, with the key that each sets and its type."""
    root = schema().json_schema()
    kinds = {key: kind(spec, root) for key, spec, _ in leaves(root, root)}
    rows = [
        (f"`{CONFIG_FILE}`", "the configuration file", "path"),
        (f"`{BASE_DIR}`", "the base folder of `paths.*`, see above", "path"),
    ]
    keys_set: set[str] = set()
    for variable in VARIABLES:
        older = " (older)" if variable.key in keys_set else ""
        keys_set.add(variable.key)
        unit = ", in days" if variable.name.endswith("_DAYS") else ""
        rows.append((f"`{variable.name}`{older}", f"`{variable.key}`{unit}", kinds[variable.key]))
    return page(table(("variable", "sets", "value"), rows))


def keys() -> str:
    """Return every key of the configuration, by block."""
    root = schema().json_schema()
    common = NotifierSettings.model_json_schema()["properties"]
    blocks: dict[str, list[tuple[str, Spec, bool]]] = {}
    for key, spec, required in leaves(root, root):
        parts = key.split(".")
        block = ".".join(parts[:2]) if parts[0] == "notifications" else parts[0] if len(parts) > 1 else ""
        blocks.setdefault(block, []).append((key, spec, required))
    pieces = ["## Top level", _keys(blocks.pop(""), root)]
    for block, entries in blocks.items():
        pieces += [f"## {block}", cell(_description(block, root))]
        own = [entry for entry in entries if entry[1] != common.get(_last(entry[0]))]
        if block.startswith("notifications.") and set(common) <= {_last(key) for key, _, _ in entries}:
            pieces.append("The block also has the [common keys](#common-keys-of-notifiers).")
            pieces.append(_keys(own, root))
        else:
            pieces.append(_keys(entries, root))
    pieces += ["## Common keys of notifiers", "Every notifier has these keys in its block."]
    pieces.append(_keys([(key, spec, False) for key, spec in common.items()], root))
    return page(*pieces)


def _description(block: str, root: Spec) -> str:
    found: Spec = root
    for name in block.split("."):
        found = cast("Spec", block_of(found["properties"][name], root))
    return str(found["description"])


def _keys(entries: Iterable[tuple[str, Spec, bool]], root: Spec) -> str:
    by_key: dict[str, list[str]] = {}
    for variable in VARIABLES:
        by_key.setdefault(variable.key, []).append(f"`{variable.name}`")
    rows = []
    for key, spec, required in entries:
        meaning = spec.get("description", "")
        if key in by_key:
            meaning += f" Environment: {', '.join(by_key[key])}."
        rows.append((f"`{key}`", kind(spec, root), default(spec, required=required), cell(meaning)))
    return table(("key", "value", "default", "meaning"), rows)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


# Metrics


def metrics() -> str:
    """Return every metric."""
    rows = []
    for family in Prometheus().collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
        rows.append((f"`{name}`", family.type, labels, family.documentation))
    return page(table(("metric", "type", "labels", "meaning"), rows))


# Hooks and events


def occasions() -> str:
    """Return the occasions that ``on:`` can name, with their meanings."""
    defaults = NotifierSettings.model_fields["on"].default
    rows = [
        (f"`{name}`", meaning, "yes" if name in defaults else "")
        for name, meaning in events.OCCASIONS.items()
    ]
    return page(table(("occasion", "meaning", "in the default"), rows))


def hooks() -> str:
    """Return every hook, with its arguments."""
    pieces = []
    for name, hook in vars(hookspecs.Hooks).items():
        if not name.startswith("_"):
            arguments = ", ".join(list(inspect.signature(hook).parameters)[1:])
            pieces += [f"### {name}", f"`{name}({arguments})`", markdown(hook)]
    return page(*pieces)


def event_types() -> str:
    """Return the types of hook arguments, with their fields."""
    pieces = []
    for value_type in _hook_argument_types():
        rows = [(f"`{field.name}`", _code(str(field.type))) for field in dataclasses.fields(value_type)]
        rows += [
            (f"`{name}`", markdown(member))
            for name, member in vars(value_type).items()
            if isinstance(member, property) and not name.startswith("_")
        ]
        pieces += [f"### {value_type.__name__}", markdown(value_type), table(("field", "type"), rows)]
    return page(*pieces)


def _hook_argument_types() -> list[type]:
    """Return the dataclasses in hook arguments, each before the dataclasses of its fields."""
    names = {**vars(events), **vars(model), **vars(hookspecs)}
    types: dict[type, None] = {}

    def visit(annotation: Any) -> None:
        for part in typing.get_args(annotation):
            visit(part)
        if dataclasses.is_dataclass(annotation) and annotation not in types:
            value_type = cast("type", annotation)
            types[value_type] = None
            for inner in typing.get_type_hints(value_type, localns=names).values():
                visit(inner)

    for name, hook in vars(hookspecs.Hooks).items():
        if not name.startswith("_"):
            for annotation in typing.get_type_hints(hook).values():
                visit(annotation)
    return list(types)


# HTTP


def routes() -> str:
    """Return every route of the HTTP interface, with its parameters, body and responses."""
    backend = cast("Backend", None)  # no request is made
    auth = Authenticator(backend)
    context = ApiContext.create(
        backend, ResponseCache(), auth.refusals, auth.requires("read"), auth.requires("clean")
    )
    app = build_routes(Pages(context, auth))
    description = app.openapi()
    scopes = dict(_scopes([*app.routes, *interface(context).routes]))
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
                pieces.append(table(("parameter", "where", "value", "default", "meaning"), rows))
            responses = [_response(code, response) for code, response in sorted(route["responses"].items())]
            pieces.append(f"Responses: {', '.join(responses)}.")
    return page(*pieces)


def _scopes(app_routes: Iterable[BaseRoute]) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the scope that a token needs, by path and method."""
    for route in app_routes:
        if isinstance(route, APIRoute):
            # RouteGuard.limits wraps the dependency that checks the scope.
            for limited in route.dependant.dependencies:
                for dependency in limited.dependencies:
                    scope = inspect.getclosurevars(cast("Any", dependency.call)).nonlocals.get("scope")
                    if isinstance(scope, str):
                        yield from (((route.path, method), scope) for method in route.methods or ())


def _parameters(route: Spec, description: Spec) -> Iterator[tuple[str, ...]]:
    root = {"$defs": description["components"]["schemas"]}
    for parameter in route.get("parameters", ()):
        name, place, spec = parameter["name"], parameter["in"], parameter["schema"]
        value = default(spec, required=parameter["required"])
        yield f"`{name}`", place, kind(spec, root), value, cell(parameter.get("description", ""))
    for content in route.get("requestBody", {}).get("content", {}).values():
        body = content["schema"]
        if "anyOf" in body:
            body = body["anyOf"][0]
        for key, spec, required in leaves(resolve(body, root), root):
            value = default(spec, required=required)
            yield f"`{key}`", "body", kind(spec, root), value, cell(spec.get("description", ""))


def _response(code: str, response: Spec) -> str:
    if code == "202":
        text = response["description"]
        return f"202 ({text[0].lower()}{text[1:]})"
    return code


# Tables of the ledger


def tables() -> str:
    """Return the ledger's tables: the meaning of a row, from ARCHITECTURE.md, and the columns."""
    meanings = dict(re.findall(r"^\| `(cleanup_\w+)` \| (.*) \|$", _ARCHITECTURE.read_text(), re.MULTILINE))
    pieces = []
    for name, definition in METADATA.tables.items():
        rows = [
            (f"`{column.name}`", str(column.type).lower(), "key" if column.primary_key else "")
            for column in definition.columns
        ]
        pieces += [f"### {name}", f"A row is {meanings[name]}.", table(("column", "type", ""), rows)]
    return page(*pieces)


# Markdown


def page(*pieces: str) -> str:
    """Join the parts of a block, with the empty lines around it that Markdown needs after a comment."""
    return "\n" + "\n\n".join(pieces) + "\n"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table."""
    lines = [f"| {' | '.join(line)} |".replace("  |", " |") for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", "&#124;").replace("<", "&lt;")


def _code(text: str) -> str:
    """Return code for a cell. Not every Markdown parser accepts a bar between backticks."""
    return f"<code>{cell(text)}</code>" if "|" in text else f"`{text}`"


def markdown(documented: object) -> str:
    """Return a docstring as Markdown, without its section of arguments."""
    text = (inspect.getdoc(documented) or "").partition("\n\nArgs:")[0]
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


# The command


def generated_files() -> dict[Path, str]:
    """Return the content of the files that are generated as a whole."""
    json_schema = json.dumps(schema().json_schema(), indent=2, ensure_ascii=False)
    return {
        _ROOT / "etc/cleanup_config.yaml": sample_config.render(),
        _ROOT / "etc/cleanup_config.schema.json": f"{json_schema}\n",
    }


def main() -> None:
    """Write all generated files, or check them."""
    is_check = sys.argv[1:] == ["--check"]
    outdated = []
    for path, text in generated_files().items():
        if is_check:
            outdated += [path.name] if path.read_text(encoding="utf-8") != text else []
        else:
            path.write_text(text, encoding="utf-8")
    cog: list[str | Path] = [
        sys.executable,
        "-m",
        "cogapp",
        "--verbosity=1",
        "-p",
        "import cog; from benchmarks import report; from tools import architecture, reference",
    ]
    pages = [*sorted((_ROOT / "docs").rglob("*.md")), _ARCHITECTURE, _ROOT / "README.md", _MAN_PAGE]
    done = subprocess.run([*cog, "--check" if is_check else "-r", *pages], cwd=_ROOT, check=False)
    if done.returncode and not is_check:
        sys.exit(done.returncode)
    if outdated or done.returncode:
        sys.exit(
            f"Generated files are out of date: {', '.join(outdated) or 'see above'}. Run: make reference"
        )


if __name__ == "__main__":
    main()
