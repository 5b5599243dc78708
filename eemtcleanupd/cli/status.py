"""``eemtcleanupd status``: how the daemon and the job store are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eemtcleanupd.cli.common import load_config, store_options
from eemtcleanupd.clock import system_clock
from eemtcleanupd.units import human_age, human_size, printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from eemtcleanupd.config import Config
    from eemtcleanupd.daemon.status import DaemonStatus
    from eemtcleanupd.store.ledger import RunRecord
    from eemtcleanupd.store.lock import Holder
    from eemtcleanupd.store.outbox import Tally


@click.command()
@store_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(config_file: Path | None, db_path: str | None, as_json: bool) -> None:
    """Show how the daemon and the job store are: next run, last run, storage, trash, configuration."""
    config = load_config(config_file, {"paths.database": (db_path, "--db-path")}).config
    from eemtcleanupd.daemon.status import read_status  # noqa: PLC0415  (late: --help needs none of it)
    from eemtcleanupd.store.lock import daemon_of  # noqa: PLC0415

    database = Path(config.paths.database)
    holder = daemon_of(database)
    told = read_status(database) if holder is not None else None
    document = _document(config, holder, told)
    if as_json:
        click.echo(json.dumps(document, indent=2, default=str))
    else:
        _show(document, told)


def _document(config: Config, holder: Holder | None, told: DaemonStatus | None) -> dict[str, Any]:
    """Return all there is to say; times are aware UTC in ISO 8601, sizes bytes."""
    from eemtcleanupd.store.database import Database  # noqa: PLC0415
    from eemtcleanupd.store.ledger import Ledger  # noqa: PLC0415
    from eemtcleanupd.store.outbox import tallies  # noqa: PLC0415

    database = Database(
        Path(config.paths.database), busy_timeout_seconds=config.database.busy_timeout_seconds
    )
    try:
        ledger = Ledger(database)
        has_ledger = ledger.is_current()
        last = ledger.runs(1)[:1] if has_ledger else []
        by_class = ledger.storage_by_class() if has_ledger else {}
        waiting, waiting_bytes, first_goes = ledger.trash() if has_ledger else (0, 0, None)
        told_by = tallies(database) if has_ledger else {}
    finally:
        database.close()
    return {
        "running": holder is not None,
        "pid": None if holder is None else holder.pid,
        "host": None if holder is None else holder.host,
        "state": None if told is None else told.state,
        "beat_at": _iso(None if told is None else told.beat_at),
        "started_at": _iso(None if told is None else told.started_at),
        "next_run": _iso(None if told is None else told.next_run_at),
        "schedule": None if told is None else told.schedule,
        "dry_run": config.dry_run if told is None else told.dry_run,
        "run": None
        if told is None or told.run is None
        else {
            "trigger": told.run.trigger,
            "started_at": _iso(told.run.started_at),
            "jobs_done": told.run.jobs_done,
            "jobs_total": told.run.jobs_total,
            "bytes_freed": told.run.bytes_freed,
        },
        "last_run": _last_run(last[0]) if last else None,
        "last_refusal": None if told is None else told.refused,
        "storage": _storage(config, by_class),
        "trash": {"jobs": waiting, "bytes": waiting_bytes, "next_purge": _iso(first_goes)},
        "notifiers": _notifiers(config, told_by, told),
        "config": {
            "file": None if told is None else told.config_file,
            "loaded_at": _iso(None if told is None else told.config_loaded_at),
            "attempted_at": _iso(None if told is None else told.config_attempted_at),
            "error": None if told is None else told.config_error,
        },
    }


def _notifiers(config: Config, tallies: Mapping[str, Tally], told: DaemonStatus | None) -> dict[str, Any]:
    """Return how each notifier is that is switched on, or that has had something to tell."""
    switched_on = {
        name
        for name in type(config.notifications).model_fields
        if (block := getattr(config.notifications, name)) is not None and block.enabled
    }
    from eemtcleanupd.store.outbox import Tally  # noqa: PLC0415

    document: dict[str, Any] = {}
    for name in sorted(switched_on | set(tallies)):
        tally = tallies.get(name, Tally())
        document[name] = {
            "enabled": name in switched_on,
            "delivered": tally.delivered,
            "retried": tally.retried,
            "failed": tally.failed,
            "dropped": tally.dropped,
            "waiting": tally.waiting,
            "hanging": told is not None and name in told.hanging,
            "last_delivered_at": _iso(tally.last_delivered_at),
            "last_error": tally.last_error,
            "last_error_at": _iso(tally.last_error_at),
        }
    return document


def _notifier_rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, each in document["notifiers"].items():
        if name == "audit_log" or not (each["enabled"] or each["waiting"]):
            continue
        words = f"{name}: {each['delivered']} delivered, {each['waiting']} waiting, {each['failed']} failed"
        if each["hanging"]:
            words += "; it does not answer"
        elif each["last_error"] and (each["last_delivered_at"] or "") <= each["last_error_at"]:
            words += f"; last error: {printable(each['last_error'])}"
        rows.append(("" if rows else "Notifiers", words))
    return rows


def _last_run(run: RunRecord) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "trigger": run.trigger,
        "started_at": _iso(run.started_at),
        "finished_at": _iso(run.finished_at),
        "outcome": run.outcome,
        "successful": run.successful,
        "failed": run.failed,
        "errors": run.errors,
        "bytes_freed": run.bytes_freed,
        "error": run.error,
    }


def _storage(config: Config, by_class: dict[str, tuple[int, int]]) -> dict[str, Any]:
    from eemtcleanupd.daemon.storage import Storage  # noqa: PLC0415

    usage = Storage(system_clock).usage(config)
    return {
        "by_status": {name: {"jobs": jobs, "bytes": size} for name, (jobs, size) in sorted(by_class.items())},
        "total_bytes": None if usage is None else usage.total_bytes,
        "used_bytes": None if usage is None else usage.used_bytes,
        "free_bytes": None if usage is None else usage.free_bytes,
        "used_percent": None if usage is None else round(usage.used_percent, 1),
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")


def _show(document: dict[str, Any], told: DaemonStatus | None) -> None:
    from eemtcleanupd.daemon.status import BEAT_SECONDS, in_words  # noqa: PLC0415

    now = system_clock()
    rows: list[tuple[str, str]] = []
    if not document["running"]:
        rows.append(("Daemon", "none runs"))
    elif told is None:
        rows.append(("Daemon", f"process {document['pid']} on {document['host']}; it has not said how it is"))
    else:
        since = in_words(told.started_at, now)
        rows.append(("Daemon", f"{told.state}, process {told.pid} on {document['host']}, since {since}"))
        if (silent := now - told.beat_at).total_seconds() > 3 * BEAT_SECONDS:
            rows.append(("", f"it has been silent for {human_age(silent)}: is it stuck?"))
        if told.run is not None:
            rows.append(("Now", told.words()))
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
        read = in_words(told.config_loaded_at, now)
        rows.append(("Config", f"{printable(told.config_file or 'no file, the defaults')}, read {read}"))
        if told.config_error:
            rows.append(("", f"refused {in_words(told.config_attempted_at, now)}: {told.config_error}"))
    for name, text in rows:
        click.echo(f"{name:<9} {text}")


def _next_run(told: DaemonStatus, now: datetime) -> str:
    from eemtcleanupd.daemon.status import in_words  # noqa: PLC0415

    if told.next_run_at is None:
        return "none: the schedule is off (schedule.enabled)"
    dry = ", a dry run" if told.dry_run else ""
    return f"{in_words(told.next_run_at, now)}{dry}; {told.schedule}"


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
    return rows
