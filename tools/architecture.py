"""Renders the module tables of ARCHITECTURE.md from the docstrings of the package's modules."""

from __future__ import annotations

import ast
import re
import tomllib
from itertools import groupby
from pathlib import Path

from tools.reference import cell, page, table

_ROOT = Path(__file__).parents[1]
_PACKAGE = _ROOT / "eemtcleanupd"


def modules() -> str:
    """Return a table for each package, from the top layer to the bottom, and one for the other modules."""
    order = _layers()
    packages = {path.parent for path in _PACKAGE.rglob("__init__.py")} - {_PACKAGE}
    names = {path: str(path.relative_to(_PACKAGE)) for path in packages}
    pieces = []
    for path in sorted(packages, key=lambda path: (order.index(names[path].split("/")[0]), names[path])):
        pieces += [f"### {names[path]}/", cell(_summary(path / "__init__.py")), _table(path)]
    return page(*pieces, "### Other modules", "These modules are not in a package.", _table(_PACKAGE))


def _table(folder: Path) -> str:
    paths = sorted(path for path in folder.glob("*.py") if not path.name.startswith("__"))
    return table(("module", "purpose"), ((f"`{path.name}`", cell(_summary(path))) for path in paths))


def _layers() -> list[str]:
    """Return the packages and modules below the root package, from the top layer to the bottom."""
    settings = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = next(
        contract["layers"]
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    names = (name.strip().split(".")[1] for layer in layers for name in layer.split("|"))
    return [name for name, _ in groupby(names)]


def _summary(module: Path) -> str:
    """Return the first sentence of a module's docstring as Markdown."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"(?<=[.!?])\s", " ".join(text.partition("\n\n")[0].split()), maxsplit=1)[0]
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", sentence).replace("``", "`")
