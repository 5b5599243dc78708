"""``eemtcleanupd stop`` and ``reload``: what is said to the daemon of a job store."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eemtcleanupd.cli.common import load_config, store_options, working_folder
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.errors import CleanupError, ConfigError

if TYPE_CHECKING:
    from eemtcleanupd.store.address import StoreAddress
    from eemtcleanupd.store.lock import Holder

_INTERVAL_SECONDS = 0.05


@click.command()
@store_options
@click.option(
    "--timeout",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Seconds to wait until it is gone.",
)
def stop(config_file: Path | None, db_path: str | None, timeout: int) -> None:
    """Stop the daemon in order and wait until it is gone."""
    location = _location(config_file, db_path)
    daemon = _daemon_of(location)
    if daemon is None:
        click.echo("No daemon runs.")
        return
    _send(daemon, signal.SIGTERM)
    if not _until(lambda: _daemon_of(location) != daemon, timeout):
        raise CleanupError(
            f"{daemon} has not ended within {timeout} seconds; it is told to, look into its log"
        )
    click.echo(f"Stopped process {daemon.pid}.")


@click.command()
@store_options
@click.option(
    "--timeout",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Seconds to wait for an answer.",
)
def reload(config_file: Path | None, db_path: str | None, timeout: int) -> None:
    """Let the daemon read its configuration again; exit 2 when it refuses the new one and keeps the old."""
    from eemtcleanupd.daemon.status import read_status

    try:
        location = _location(config_file, db_path)
    except ConfigError:
        # systemd names the daemon to ExecReload=, so that it can tell of the bad file, too.
        if main_pid := os.environ.get("MAINPID"):
            os.kill(int(main_pid), signal.SIGHUP)
        raise
    daemon = _daemon_of(location)
    if daemon is None:
        raise CleanupError(
            "no daemon runs; start it with `systemctl start eemtcleanupd` or `eemtcleanupd run`"
        )
    before = read_status(location)
    _send(daemon, signal.SIGHUP)

    def has_tried() -> bool:
        now = read_status(location)
        return now is not None and (before is None or now.config_attempts > before.config_attempts)

    if not _until(has_tried, timeout):
        raise CleanupError(f"{daemon} has not answered within {timeout} seconds; look into its log")
    after = read_status(location)
    if after is not None and after.config_error is not None:
        raise ConfigError(
            f"the new configuration was refused, the one before stays in force: {after.config_error}"
        )
    click.echo("The configuration was read and is in force.")


def _location(config_file: Path | None, db_path: str | None) -> StoreAddress:
    """Return the job database; with ``--db-path`` a daemon is found though its configuration is broken."""
    from eemtcleanupd.store.address import StoreAddress

    if db_path is not None and "://" not in db_path:
        path = Path(db_path)
        return StoreAddress.of_file(path if path.is_absolute() else working_folder() / path)
    try:
        return StoreAddress.of(load_config(config_file, {"paths.database": (db_path, "--db-path")}).config)
    except ConfigError as error:
        raise ConfigError(f"{error}\n(with --db-path FILE the daemon is found all the same)") from error


def _daemon_of(location: StoreAddress) -> Holder | None:
    from eemtcleanupd.store.lock import find_daemon

    return find_daemon(location)


def _send(daemon: Holder, number: signal.Signals) -> None:
    if daemon.host != socket.gethostname():
        raise CleanupError(f"the daemon is {daemon}: it can only be told so on its own host")
    try:
        os.kill(daemon.pid, number)
    except ProcessLookupError as error:
        raise CleanupError(f"{daemon} is not visible from here (in a container of its own?)") from error
    except PermissionError as error:
        raise CleanupError(f"{daemon} belongs to another user: use sudo, or systemctl") from error


def _until(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    deadline = monotonic_seconds() + timeout_seconds
    while not condition():
        if monotonic_seconds() > deadline:
            return False
        time.sleep(_INTERVAL_SECONDS)
    return True
