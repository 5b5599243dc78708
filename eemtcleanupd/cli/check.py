"""``eemtcleanupd check``: the effective configuration, explained."""

from __future__ import annotations

import json
from pathlib import Path, PurePath

import click
from pydantic import SecretStr

from eemtcleanupd.cli.common import config_option, load_config
from eemtcleanupd.policy.retention import Policy


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(config_file: Path | None, as_json: bool) -> None:
    """Explain the effective configuration: every key, its value, and where that came from.

    Ends with 2 and every problem, its file and line, when something is wrong.  Touches nothing.
    """
    loaded = load_config(config_file)
    policy = str(Policy.from_config(loaded.config.retention))
    settings = [(key, _plain(value), origin) for key, value, origin in loaded.settings()]
    file = None if loaded.file is None else str(loaded.file)
    if as_json:
        rows = [{"key": key, "value": value, "from": origin} for key, value, origin in settings]
        answer = {"file": file, "policy": policy, "settings": rows, "warnings": list(loaded.warnings)}
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo(f"Configuration file: {file or 'none, all defaults'}\n")
    texts = [(key, json.dumps(value, ensure_ascii=False), origin) for key, value, origin in settings]
    key_width = max(len(key) for key, _, _ in texts)
    value_width = min(44, max(len(value) for _, value, _ in texts))
    for key, value, origin in texts:
        click.echo(f"{key:<{key_width}}  {value:<{value_width}}  {origin}")
    click.echo(f"\n{policy}")
    for warning in loaded.warnings:
        click.echo(click.style("[WARNING]", fg="yellow") + f" {warning}")
    click.echo("The configuration is valid.")


def _plain(value: object) -> object:
    """Return a value as JSON has it, secrets hidden."""
    if isinstance(value, SecretStr):
        return "(secret)"
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return _without_password(value) if isinstance(value, str) and "://" in value else value


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url  # noqa: PLC0415  (late: only for a database URL)

    return make_url(url).render_as_string(hide_password=True)
