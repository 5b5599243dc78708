"""Share options, configuration loading, ledger access and JSON output among the commands."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import ConfigError

if TYPE_CHECKING:
    from eemtcleanupd.config import Config, Loaded
    from eemtcleanupd.plugins import Plugins
    from eemtcleanupd.store.ledger import Ledger

Command = TypeVar("Command", bound=Callable[..., Any])
Audit = Callable[..., None]
"""Writes an action and its details to the audit log."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
db_path_option = click.option("--db-path", metavar="FILE", help="Path of the job database.")
config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration file (default: EEMT_CLEANUP_CONFIG, ./cleanup_config.yaml, "
    "/etc/eemtcleanupd/cleanup_config.yaml or built-in defaults).",
)


def store_options(command: Command) -> Command:
    """Add ``--config FILE`` and ``--db-path FILE`` to a command that needs only the database."""
    return config_option(db_path_option(command))


def print_json(document: object) -> None:
    """Print a document as indented JSON, with times in ISO 8601."""
    click.echo(json.dumps(document, indent=2, default=datetime.isoformat))


def local_minute(moment: datetime) -> str:
    """Return a time in the machine's time zone, to the minute: ``2026-12-31 18:00``."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def load_config(config_file: Path | None, options: Mapping[str, tuple[object, str]] | None = None) -> Loaded:
    """Load the effective configuration; an option whose value is None was not given.

    Raises:
        ConfigError: the configuration is invalid.
    """
    from eemtcleanupd.config import find_file
    from eemtcleanupd.plugins import load

    cwd = working_folder()
    given = {key: pair for key, pair in (options or {}).items() if pair[0] is not None}
    return load(find_file(config_file, os.environ, cwd), environ=os.environ, options=given, cwd=cwd)


def load_store_config(config_file: Path | None, db_path: str | None) -> Config:
    """Load the configuration for a command that takes :func:`store_options`.

    Raises:
        ConfigError: the configuration is invalid.
    """
    return load_config(config_file, {"paths.database": (db_path, "--db-path")}).config


def working_folder() -> Path:
    """Return the folder that relative paths start from.

    Raises:
        ConfigError: the folder was deleted.
    """
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"The current folder cannot be read: {error.strerror}. Change to an existing folder."
        ) from error


@contextmanager
def open_ledger(config: Config) -> Iterator[Ledger]:
    """Open the ledger of the configured job store.

    Raises:
        StoreError: the database cannot be used.
    """
    from eemtcleanupd.store.address import StoreAddress
    from eemtcleanupd.store.ledger import Ledger

    with closing(StoreAddress.of(config).open()) as database:
        yield Ledger(database)


def write_audit(plugins: Plugins, action: str, details: Mapping[str, object]) -> None:
    """Write an action of the calling user to the audit log.

    Raises:
        AuditError: the log cannot be written.
    """
    from eemtcleanupd.events import AuditEntry

    plugins.audit([AuditEntry(system_clock(), caller(), action, details)])


@contextmanager
def open_audited(config: Config) -> Iterator[tuple[Ledger, Audit]]:
    """Open the ledger for a change by a person, with a function that writes the audit log beforehand.

    Raises:
        StoreError: the database cannot be used.
        AuditError: the audit log cannot be written.
    """
    from eemtcleanupd.plugins import Plugins

    plugins = Plugins(config)

    def audit(action: str, **details: object) -> None:
        write_audit(plugins, action, details)

    with open_ledger(config) as ledger:
        yield ledger, audit


def caller() -> str:
    """Return the login name of the user who runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a numeric user without an entry in passwd, as in many containers
        return str(os.getuid())
