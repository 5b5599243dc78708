"""What several commands share: finding the configuration, the caller's name, opening the ledger."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import ConfigError

if TYPE_CHECKING:
    from eemtcleanupd.config import Loaded
    from eemtcleanupd.store.ledger import Ledger

Command = TypeVar("Command", bound=Callable[..., Any])
Audit = Callable[..., None]
"""Writes an action and its details into the audit log."""


def config_option(command: Command) -> Command:
    """Add ``--config FILE`` to a command."""
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Configuration file (else EEMT_CLEANUP_CONFIG, ./cleanup_config.yaml, "
        "/etc/eemtcleanupd/cleanup_config.yaml, defaults).",
    )(command)


def store_options(command: Command) -> Command:
    """Add ``--config FILE`` and ``--db-path FILE`` to a command that only needs the database."""
    option = click.option("--db-path", metavar="FILE", help="Path of the job database.")
    return config_option(option(command))


def load_config(config_file: Path | None, options: Mapping[str, tuple[object, str]] | None = None) -> Loaded:
    """Load the effective configuration; options that are None were not given.

    Raises:
        ConfigError: something in it is wrong.
    """
    from eemtcleanupd.config import find_file
    from eemtcleanupd.plugins import load

    cwd = working_folder()
    given = {key: pair for key, pair in (options or {}).items() if pair[0] is not None}
    return load(find_file(config_file, os.environ, cwd), environ=os.environ, options=given, cwd=cwd)


def working_folder() -> Path:
    """Return the folder that relative paths start from.

    Raises:
        ConfigError: it was deleted.
    """
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"the folder that this was started in cannot be found ({error.strerror}): change into another"
        ) from error


@contextmanager
def open_ledger(config_file: Path | None, db_path: str | None) -> Iterator[Ledger]:
    """Open the ledger of the configured job store.

    Raises:
        ConfigError, StoreError: the configuration is wrong, or the database cannot be used.
    """
    loaded = load_config(config_file, {"paths.database": (db_path, "--db-path")})
    from eemtcleanupd.store.address import StoreAddress
    from eemtcleanupd.store.ledger import Ledger

    config = loaded.config
    database = StoreAddress.of(config).open()
    try:
        yield Ledger(database)
    finally:
        database.close()


@contextmanager
def open_audited(config_file: Path | None, db_path: str | None) -> Iterator[tuple[Ledger, Audit]]:
    """Open the ledger for a change that a person makes, with what writes it down before it is made.

    Raises:
        ConfigError, StoreError, AuditError: the configuration is wrong, the database cannot be used, or the
            change cannot be written down.
    """
    from eemtcleanupd.events import AuditEntry
    from eemtcleanupd.plugins import Plugins

    loaded = load_config(config_file, {"paths.database": (db_path, "--db-path")})
    plugins = Plugins(loaded.config)

    def audit(action: str, **details: object) -> None:
        plugins.audit([AuditEntry(system_clock(), caller(), action, details)])

    with open_ledger(config_file, db_path) as ledger:
        yield ledger, audit


def caller() -> str:
    """Return the login name of whoever runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a numeric user without an entry in passwd, as in many containers
        return str(os.getuid())
