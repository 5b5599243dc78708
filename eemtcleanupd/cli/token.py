"""``eemtcleanupd token``: manage access tokens of the HTTP interface."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from math import isnan
from typing import TYPE_CHECKING, Any, cast

import click

from eemtcleanupd.cli import completion
from eemtcleanupd.cli.common import (
    config_option,
    echo_line,
    examples,
    json_option,
    load_config,
    print_json,
    write_audit,
)
from eemtcleanupd.cli.groups import CommandGroup
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.formatting import local_minute, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from eemtcleanupd.web.tokens import Scope, TokenFile

SCOPES = click.Choice(["read", "clean"])


@click.group(cls=CommandGroup)
def token() -> None:
    """Add, list or revoke tokens of the HTTP interface (see api.tokens_file)."""


class _Days(click.FloatRange):
    """A number of days that the calendar can hold."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        days: float = super().convert(value, param, ctx)
        return self.fail(f"{value} is not a number of days.", param, ctx) if isnan(days) else days


def _tokens() -> tuple[TokenFile, Callable[..., None]]:
    """Return the token file, and the function that writes an action to the audit log."""
    config = load_config().config
    if config.api.tokens_file is None:
        raise ConfigError("api.tokens_file is not set. Set it to the path of the token file.")
    from eemtcleanupd.web.tokens import TokenFile

    def record(action: str, **details: object) -> None:
        from eemtcleanupd.plugins import Plugins

        write_audit(Plugins(config), action, **details)

    return TokenFile(config.api.tokens_file), record


@token.command(epilog=examples("token add grafana --scope read", "token add ann --scope clean --days 30"))
@click.argument("name")
@click.option("--scope", type=SCOPES, required=True, help="read: view everything; clean: start runs as well.")
@click.option("--days", type=_Days(min=0, max=36_500), help="Days until the token expires (default: never).")
@config_option
@json_option
def add(name: str, scope: str, days: float | None, as_json: bool) -> None:
    """Create a token for NAME and print it once."""
    tokens, record = _tokens()
    secret = tokens.add(
        name,
        cast("Scope", scope),
        system_clock(),
        days,
        record=partial(record, "token_added", name=name, scope=scope, days=days),
    )
    if as_json:
        print_json({"name": name, "scope": scope, "token": secret})
        return
    click.echo("The token is shown only once. Send it as `Authorization: Bearer TOKEN`:", err=True)
    click.echo(secret)


@token.command("list", epilog=examples("token list"))
@config_option
@json_option
def list_(as_json: bool) -> None:
    """List token names, scopes and expiry dates."""
    tokens, _ = _tokens()
    known = tokens.all()
    if as_json:
        names = ("name", "scope", "created_at", "expires_at")
        print_json([{name: getattr(entry, name) for name in names} for entry in known])
        return
    now = system_clock()
    for entry in known:
        expiry = ""
        if entry.expires_at is not None:
            expiry = f", {'expired' if entry.is_expired(now) else 'expires'} {_local(entry.expires_at)}"
        echo_line(f"{printable(entry.name)} ({entry.scope}, since {_local(entry.created_at)}{expiry})")
    if not known:
        click.echo("There are no tokens.")


@token.command(epilog=examples("token revoke grafana"))
@click.argument("name", shell_complete=completion.tokens)
@config_option
@json_option
def revoke(name: str, as_json: bool) -> None:
    """Revoke the token of NAME immediately."""
    tokens, record = _tokens()
    if not tokens.revoke(name):
        raise ConfigError(f"There is no token {printable(name)}. List the tokens with `token list`.")
    # Audited afterwards, so that a full disk cannot prevent the revocation.
    record("token_revoked", name=name)
    if as_json:
        print_json({"name": name, "revoked": True})
    else:
        click.echo(f"Revoked token {printable(name)}.")


def _local(moment: str) -> str:
    return local_minute(datetime.fromisoformat(moment))
