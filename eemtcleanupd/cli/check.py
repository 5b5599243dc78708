"""``eemtcleanupd check``: show the effective configuration and where each value comes from."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from eemtcleanupd.cli.common import config_option, json_option, load_config, print_json
from eemtcleanupd.formatting import printable

if TYPE_CHECKING:
    from eemtcleanupd.config import Loaded

_MAX_VALUE_WIDTH = 44


@click.command()
@config_option
@json_option
@click.option(
    "--schema", is_flag=True, help="Print the JSON Schema of configuration files (for editors) and exit."
)
def check(as_json: bool, schema: bool) -> None:
    """Show every configuration key, its value and the origin of the value.

    Exits with 2 and lists every problem with file and line if the configuration is invalid.
    Changes nothing.
    """
    if schema:
        from eemtcleanupd.plugins import schema as all_keys

        click.echo(json.dumps(all_keys().json_schema(), indent=2, ensure_ascii=False))
        return
    loaded = load_config()
    from eemtcleanupd.policy.retention import Policy
    from eemtcleanupd.privileges import User

    policy = str(Policy.from_config(loaded.config.retention))
    if as_json:
        print_json(
            {
                "file": None if loaded.file is None else str(loaded.file),
                "policy": policy,
                "user": User.of(os.geteuid()).name,
                "settings": [
                    {"key": setting.key, "value": setting.value, "from": setting.origin}
                    for setting in loaded.settings()
                ],
                "warnings": list(loaded.warnings),
            }
        )
    else:
        _print_table(loaded, policy)


def _print_table(loaded: Loaded, policy: str) -> None:
    from eemtcleanupd.store.owner import user_of_run

    file = "none, defaults are used" if loaded.file is None else printable(str(loaded.file))
    click.echo(f"Configuration file: {file}\n")
    rows = [("key", "value", "from")]
    rows += [(setting.key, _text(setting.value), setting.origin) for setting in loaded.settings()]
    key_width = max(len(key) for key, _, _ in rows)
    value_width = min(_MAX_VALUE_WIDTH, max(len(value) for _, value, _ in rows))
    for key, value, origin in rows:
        click.echo(f"{key:<{key_width}}  {value:<{value_width}}  {origin}")
    click.echo(f"\n{printable(policy)}\n{user_of_run()}")
    for warning in loaded.warnings:
        click.echo(click.style("[WARNING]", fg="yellow") + f" {warning}")
    click.echo("The configuration is valid.")


def _text(value: object) -> str:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return printable(", ".join(value)) or "none"
    return "none" if value is None or value == [] else json.dumps(value)
