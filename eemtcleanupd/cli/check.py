"""``eemtcleanupd check``: the effective configuration, explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eemtcleanupd.cli.common import config_option, load_config
from eemtcleanupd.formatting import printable

if TYPE_CHECKING:
    from eemtcleanupd.config import Loaded

_WIDEST_VALUE = 44


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--schema", is_flag=True, help="Print the JSON Schema of the file, for editors, and look at none."
)
def check(config_file: Path | None, as_json: bool, schema: bool) -> None:
    """Explain the effective configuration: every key, its value, and where that came from.

    Ends with 2 and every problem, with its file and line, when something is wrong.  Touches nothing.
    """
    if schema:
        from eemtcleanupd.plugins import schema as all_keys

        click.echo(json.dumps(all_keys().json_schema(), indent=2, ensure_ascii=False))
        return
    loaded = load_config(config_file)
    from eemtcleanupd.policy.retention import Policy

    policy = str(Policy.from_config(loaded.config.retention))
    if as_json:
        click.echo(json.dumps(_document(loaded, policy), indent=2))
    else:
        _explain(loaded, policy)


def _document(loaded: Loaded, policy: str) -> dict[str, object]:
    return {
        "file": None if loaded.file is None else str(loaded.file),
        "policy": policy,
        "settings": [
            {"key": setting.key, "value": setting.value, "from": setting.origin}
            for setting in loaded.settings()
        ],
        "warnings": list(loaded.warnings),
    }


def _explain(loaded: Loaded, policy: str) -> None:
    file = "none, the defaults count" if loaded.file is None else printable(str(loaded.file))
    click.echo(f"Configuration file: {file}\n")
    rows = [("key", "value", "from")]
    rows += [(setting.key, _text(setting.value), setting.origin) for setting in loaded.settings()]
    key_width = max(len(key) for key, _, _ in rows)
    value_width = min(_WIDEST_VALUE, max(len(value) for _, value, _ in rows))
    for key, value, origin in rows:
        click.echo(f"{key:<{key_width}}  {value:<{value_width}}  {origin}")
    click.echo(f"\n{printable(policy)}")
    for warning in loaded.warnings:
        click.echo(click.style("[WARNING]", fg="yellow") + f" {warning}")
    click.echo("The configuration is valid.")


def _text(value: object) -> str:
    """Return a value as one would write it into the file."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return printable(", ".join(value)) or "none"
    return "none" if value is None or value == [] else json.dumps(value)
