"""What the documents say is what the program does."""

from __future__ import annotations

import importlib
import re
import typing
from pathlib import Path

import click
import pytest

from eemtcleanupd import errors
from eemtcleanupd.cli.main import COMMANDS
from eemtcleanupd.store.tables import METADATA
from tests.conftest import Aged, RunCli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs/commands.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    match = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", REFERENCE, re.MULTILINE | re.DOTALL)
    assert match, f"docs/commands.md has no section {name}"
    return match[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_in_the_reference_and_nothing_else(name: str) -> None:
    command: click.Command = getattr(importlib.import_module(COMMANDS[name][0]), name.replace("-", "_"))
    options = {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
    documented = set(re.findall(r"^\| `(--[a-z-]+)", section(name), re.MULTILINE))
    assert documented == options
    assert f"`{name}" in README


def test_every_exit_code_is_documented() -> None:
    codes = {
        error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.CleanupError)
    }
    for code in {0, *codes}:
        assert f"| {code} | " in section("Exit codes")
        assert re.search(rf"\b{code} ", README[README.index("Exit codes: ") :])


def test_every_table_of_the_ledger_is_in_the_architecture() -> None:
    architecture = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for table in METADATA.tables:
        assert f"`{table}`" in architecture


def test_every_module_has_its_place_in_the_architecture() -> None:
    architecture = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for package in ("daemon", "notifiers", "cleanup", "deletion", "store", "policy"):
        for module in (ROOT / "eemtcleanupd" / package).glob("[a-z]*.py"):
            assert f"`{module.name}`" in architecture, f"{package}/{module.name}"


@pytest.mark.parametrize("document", ["README.md", "docs/safety.md", "docs/migration.md"])
def test_the_commands_that_are_shown_work(
    document: str, sample_store: Path, aged: Aged, run_cli: RunCli
) -> None:
    store = aged(sample_store, 10)
    shown = re.findall(r"^\$ eemtcleanupd (.*)$", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)
    assert shown
    for command in shown:
        assert run_cli(*command.split(), cwd=store).returncode == 0


def test_links_between_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_notifier_that_is_shown_is_the_example() -> None:
    shown = (ROOT / "docs" / "writing-a-notifier.md").read_text(encoding="utf-8")
    for name in ("eemtcleanupd_ntfy.py", "pyproject.toml"):
        assert (ROOT / "examples" / "eemtcleanupd-ntfy" / name).read_text(encoding="utf-8").rstrip() in shown


def test_every_hook_and_every_key_of_all_notifiers_is_documented() -> None:
    from eemtcleanupd.config.notifier import NotifierSettings, Occasion
    from eemtcleanupd.hookspecs import Hooks

    plugins = (ROOT / "docs" / "writing-a-notifier.md").read_text(encoding="utf-8")
    for hook in vars(Hooks):
        assert hook.startswith("_") or f"{hook}" in plugins
    channels = (ROOT / "docs" / "notifications.md").read_text(encoding="utf-8")
    for word in (*NotifierSettings.model_fields, *typing.get_args(Occasion)):
        assert f"`{word}`" in channels
