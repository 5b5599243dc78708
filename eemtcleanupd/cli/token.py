"""``eemtcleanupd token``: who may use the HTTP interface."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from eemtcleanupd.cli.common import caller, config_option, load_config
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.formatting import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eemtcleanupd.web.tokens import Scope, TokenFile

SCOPES = click.Choice(["read", "clean"])


@click.group()
def token() -> None:
    """Add, list or revoke the tokens of the HTTP interface (see api.tokens_file)."""


@contextmanager
def _tokens(config_file: Path | None, action: str = "", **details: object) -> Iterator[TokenFile]:
    """Give the file of the tokens; with an action, after it was written down."""
    config = load_config(config_file).config
    if config.api.tokens_file is None:
        raise ConfigError("api.tokens_file names no file: write one into the configuration first")
    from eemtcleanupd.web.tokens import TokenFile

    yield TokenFile(config.api.tokens_file)
    if action:
        from eemtcleanupd.events import AuditEntry
        from eemtcleanupd.plugins import Plugins

        Plugins(config).audit([AuditEntry(system_clock(), caller(), action, details)])


@token.command()
@click.argument("name")
@click.option("--scope", type=SCOPES, required=True, help="read: look at everything; clean: start runs too.")
@click.option("--days", type=click.FloatRange(min=0), help="How long it is good for (default: for ever).")
@config_option
def add(name: str, scope: str, days: float | None, config_file: Path | None) -> None:
    """Make a token for NAME and print it, this once."""
    with _tokens(config_file, "token_added", name=name, scope=scope, days=days) as tokens:
        secret = tokens.add(name, cast("Scope", scope), system_clock(), days)
    click.echo("It is shown this once; send it as `Authorization: Bearer TOKEN`:", err=True)
    click.echo(secret)


@token.command("list")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(config_file: Path | None, as_json: bool) -> None:
    """List the tokens, without themselves."""
    with _tokens(config_file) as tokens:
        known = tokens.all()
    if as_json:
        shown = [
            {"name": t.name, "scope": t.scope, "created_at": t.created_at, "expires_at": t.expires_at}
            for t in known
        ]
        click.echo(json.dumps(shown, indent=2))
        return
    now = system_clock()
    for each in known:
        end = ""
        if each.expires_at is not None:
            end = f", {'expired' if each.is_expired(now) else 'good until'} {each.expires_at[:16]} UTC"
        click.echo(f"{printable(each.name)} ({each.scope}, since {each.created_at[:10]}{end})")
    if not known:
        click.echo("There are no tokens.")


@token.command()
@click.argument("name")
@config_option
def revoke(name: str, config_file: Path | None) -> int:
    """Take the token of NAME away, at once."""
    with _tokens(config_file, "token_revoked", name=name) as tokens:
        found = tokens.revoke(name)
    if not found:
        raise ConfigError(f"there is no token {printable(name)}; `token list` shows them all")
    click.echo(f"The token {name} is no longer good")
    return 0
