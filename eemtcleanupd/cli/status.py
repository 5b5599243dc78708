"""``eemtcleanupd status``: how the daemon and the job store are."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eemtcleanupd.cli.common import load_config, store_options
from eemtcleanupd.clock import system_clock
from eemtcleanupd.formatting import human_age, human_size, printable

if TYPE_CHECKING:
    from datetime import datetime

    from eemtcleanupd.daemon.status import DaemonStatus


@click.command()
@store_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--healthy", is_flag=True, help="End with 1 unless a daemon lives and its scheduler beats.")
def status(config_file: Path | None, db_path: str | None, as_json: bool, healthy: bool) -> int:
    """Show how the daemon and the job store are: next run, last run, storage, trash, configuration."""
    config = load_config(config_file, {"paths.database": (db_path, "--db-path")}).config
    from eemtcleanupd.daemon.status import read_status
    from eemtcleanupd.daemon.status_document import overview
    from eemtcleanupd.store.address import StoreAddress
    from eemtcleanupd.store.lock import find_daemon

    location = StoreAddress.of(config)
    holder = find_daemon(location)
    told = read_status(location) if holder is not None and holder.host == socket.gethostname() else None
    if healthy:  # a health check must not wait for a database that is locked
        return _tell_health(told)
    document = overview(config, holder, told)
    if as_json:
        click.echo(json.dumps(document, indent=2, default=str))
    else:
        _show(document, told)
    return 0


def _tell_health(told: DaemonStatus | None) -> int:
    if told is None:
        click.echo("no daemon lives here, or it has not said how it is")
        return 1
    click.echo(told.summary())
    return 1 if _is_silent(told, system_clock()) else 0


def _is_silent(told: DaemonStatus, now: datetime) -> bool:
    from eemtcleanupd.daemon.status import BEAT_SECONDS

    return (now - told.heartbeat_at).total_seconds() > 3 * BEAT_SECONDS


def _notifier_rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, each in document["notifiers"].items():
        if name == "audit_log" or not (each["enabled"] or each["waiting"]):
            continue
        words = f"{name}: {each['delivered']} delivered, {each['waiting']} waiting, {each['failed']} failed"
        if each["unresponsive"]:
            words += "; it does not answer"
        elif each["last_error"] and (each["last_delivered_at"] or "") <= each["last_error_at"]:
            words += f"; last error: {printable(each['last_error'])}"
        rows.append(("" if rows else "Notifiers", words))
    return rows


def _show(document: dict[str, Any], told: DaemonStatus | None) -> None:
    from eemtcleanupd.daemon.status import time_with_distance

    now = system_clock()
    rows: list[tuple[str, str]] = []
    if not document["running"]:
        rows.append(("Daemon", "none runs"))
    elif document["host"] != socket.gethostname():
        words = f"active on {document['host']}, process {document['pid']}; ask there how it is"
        rows.append(("Daemon", words))
    elif told is None:
        rows.append(("Daemon", f"process {document['pid']} on {document['host']}; it has not said how it is"))
    else:
        since = time_with_distance(told.started_at, now)
        rows.append(("Daemon", f"{told.state}, process {told.pid} on {document['host']}, since {since}"))
        if _is_silent(told, now):
            rows.append(("", f"it has been silent for {human_age(now - told.heartbeat_at)}: is it stuck?"))
        if told.role == "standby":
            rows.append(("Active", told.active or "another daemon"))
        if told.run is not None:
            rows.append(("Now", told.summary()))
        rows.append(("Next run", _next_run(told, now)))
    rows.append(("Last run", _last_in_words(document["last_run"])))
    if document["last_refusal"]:
        rows.append(("", f"the one after it failed: {document['last_refusal']}"))
    rows += _storage_rows(document)
    waiting = document["trash"]["jobs"]
    rows.append(
        (
            "Trash",
            f"{waiting} jobs ({human_size(document['trash']['bytes'])}) wait for their grace"
            if waiting
            else "empty",
        )
    )
    rows += _notifier_rows(document)
    if told is not None:
        read = time_with_distance(told.config_loaded_at, now)
        rows.append(("Config", f"{printable(told.config_file or 'no file, the defaults')}, read {read}"))
        if told.config_error:
            rows.append(
                ("", f"refused {time_with_distance(told.config_attempted_at, now)}: {told.config_error}")
            )
    for name, text in rows:
        click.echo(f"{name:<9} {text}")


def _next_run(told: DaemonStatus, now: datetime) -> str:
    from eemtcleanupd.daemon.status import time_with_distance

    if told.next_run_at is None:
        return "none: the schedule is off (schedule.enabled)"
    dry = ", a dry run" if told.dry_run else ""
    return f"{time_with_distance(told.next_run_at, now)}{dry}; {told.schedule}"


def _last_in_words(run: dict[str, Any] | None) -> str:
    if run is None:
        return "none yet"
    jobs = f"{run['successful']} successful and {run['failed']} failed jobs"
    freed = f"{human_size(run['bytes_freed'])} freed, {run['errors']} errors"
    return f"{run['started_at']} ({run['trigger']}): {run['outcome'] or 'going on'}, {jobs}, {freed}"


def _storage_rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    storage = document["storage"]
    rows = []
    if storage["used_percent"] is not None:
        free = f"{human_size(storage['free_bytes'])} of {human_size(storage['total_bytes'])} free"
        rows.append(("Storage", f"{storage['used_percent']:.1f} % used, {free}"))
    rows += [
        ("", f"{name}: {each['jobs']} jobs, {human_size(each['bytes'])}")
        for name, each in storage["by_status"].items()
    ]
    if (capacity := document["capacity"]) is not None:
        budget = human_size(capacity["max_bytes"])
        if capacity["held_bytes"] is None:
            rows.append(("Budget", f"{budget}, nothing is measured yet"))
        else:
            held = human_size(capacity["held_bytes"])
            rows.append(("Budget", f"jobs hold {held} of {budget} ({capacity['used_percent']:.1f} %)"))
    return rows
