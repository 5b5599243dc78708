"""``eemtcleanupd stop`` and ``reload``: send signals to the daemon of a job store."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from eemtcleanupd.cli.common import (
    DATABASE,
    Command,
    become_owner_of,
    examples,
    given,
    json_option,
    load_config_or_daemon,
    print_json,
    store_options,
    working_folder,
)
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.errors import CleanupError, ConfigError
from eemtcleanupd.formatting import plural

if TYPE_CHECKING:
    from eemtcleanupd.store.address import StoreAddress

_POLL_SECONDS = 0.05


def _timeout_option(seconds: int, action: str) -> Callable[[Command], Command]:
    text = f"Seconds to wait for the daemon to {action}."
    return click.option("--timeout", type=click.IntRange(1), default=seconds, show_default=True, help=text)


@click.command(epilog=examples("stop", "stop --timeout 600"))
@store_options
@json_option
@_timeout_option(100, "exit")
def stop(timeout: int, as_json: bool) -> None:
    """Stop the daemon gracefully and wait until it has exited."""
    from eemtcleanupd.store.lock import signalled

    with signalled(_store_address(), signal.SIGTERM) as daemon:
        if daemon is None:
            _answer(as_json, "No daemon is running.", stopped=False, pid=None)
            return
        if not _wait_until(daemon.has_exited, timeout):
            raise CleanupError(
                f"The daemon (process {daemon.pid}) has not exited within {plural(timeout, 'second')}. "
                "See its log."
            )
        _answer(as_json, f"Stopped process {daemon.pid}.", stopped=True, pid=daemon.pid)


@click.command(epilog=examples("reload"))
@store_options
@json_option
@_timeout_option(30, "respond")
def reload(timeout: int, as_json: bool) -> None:
    """Make the daemon reload its configuration.

    Exits with 2 if the daemon rejects the new configuration and keeps the previous one.
    """
    from eemtcleanupd.daemon.status import read_status
    from eemtcleanupd.store.lock import signalled

    try:
        address = _store_address()
    except ConfigError:
        # systemd passes the daemon's pid to ExecReload=: the daemon must log the invalid file, too.
        if main_pid := os.environ.get("MAINPID"):
            os.kill(int(main_pid), signal.SIGHUP)
        raise
    before = read_status(address)

    def has_tried() -> bool:
        now = read_status(address)
        return now is not None and (before is None or now.config_attempts > before.config_attempts)

    with signalled(address, signal.SIGHUP) as daemon:
        if daemon is None:
            raise CleanupError(
                "No daemon is running. Start it with `systemctl start eemtcleanupd` or `eemtcleanupd run`."
            )
        if not _wait_until(has_tried, timeout):
            raise CleanupError(
                f"The daemon (process {daemon.pid}) did not respond within {plural(timeout, 'second')}. "
                "See its log."
            )
    after = read_status(address)
    if after is not None and after.config_error is not None:
        raise ConfigError(
            "The daemon rejected the new configuration; the previous one stays in effect. "
            f"{after.config_error}"
        )
    _answer(as_json, "The new configuration is in effect.", reloaded=True, pid=daemon.pid)


def _answer(as_json: bool, message: str, **document: object) -> None:
    if as_json:
        print_json(document)
    else:
        click.echo(message)


def _store_address() -> StoreAddress:
    """Return the address of the daemon's files; with ``--db-path`` the configuration is not read.

    If the configuration is invalid, find the running daemon that uses the file.
    """
    from eemtcleanupd.store.address import StoreAddress

    db_path = given(DATABASE)
    if db_path is not None and "://" not in db_path:
        path = working_folder() / db_path
        become_owner_of(path)
        return StoreAddress.of_file(path)
    try:
        return load_config_or_daemon()[1]
    except ConfigError as error:
        raise ConfigError(f"{error}\n(With --db-path FILE the configuration is not needed.)") from error


def _wait_until(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    deadline = monotonic_seconds() + timeout_seconds
    while not condition():
        if monotonic_seconds() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
