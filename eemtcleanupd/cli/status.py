"""``eemtcleanupd status``: show the status of the daemon and the job store."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from eemtcleanupd.cli.common import (
    echo_line,
    examples,
    json_option,
    load_config_or_daemon,
    print_json,
    store_options,
)
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.formatting import human_amounts, human_size, local_time, plural, printable

if TYPE_CHECKING:
    from eemtcleanupd.daemon.status import DaemonStatus

Row = tuple[str, str]


@click.command(epilog=examples("status", "status --healthy", "status --json"))
@store_options
@json_option
@click.option(
    "--healthy",
    is_flag=True,
    help="Check only the daemon: exit with 1 unless it runs on this host and its scheduler responds.",
)
def status(as_json: bool, healthy: bool) -> int:
    """Show the daemon, the next and the last run, storage, trash, notifiers and configuration."""
    from eemtcleanupd.daemon.status import read_status
    from eemtcleanupd.daemon.status_document import daemon_document, overview
    from eemtcleanupd.store.lock import find_daemon

    config, address = load_config_or_daemon()
    holder = find_daemon(address)
    daemon = read_status(address) if holder is not None and holder.host == socket.gethostname() else None
    if healthy:  # a health check must not wait for a locked database
        return _print_health(daemon_document(holder, daemon), daemon, as_json=as_json)
    if isinstance(config, ConfigError):
        document = daemon_document(holder, daemon)
        document["config"]["error"] = str(config)
    else:
        document = overview(config, holder, daemon)
    if as_json:
        print_json(document)
        return 0
    now = system_clock()
    rows = [
        *_daemon_rows(document, daemon, now),
        *([] if isinstance(config, ConfigError) else _store_rows(document)),
        *_config_rows(daemon, now),
    ]
    if isinstance(config, ConfigError):
        rows.append(("", "The file is invalid now. The daemon keeps the configuration that it has loaded."))
        rows += [("", line.strip()) for line in str(config).splitlines()]
    for title, text in rows:
        echo_line(f"{title:<9} {text}", indent=10)
    return 0


def _store_rows(document: dict[str, Any]) -> Iterator[Row]:
    yield from _progress_rows(document)
    yield "Last run", _last_run(document["last_run"])
    yield from _failure_rows(document)
    yield from _storage_rows(document)
    yield "Trash", _trash(document["trash"])
    if document["acknowledged"]:
        warnings = plural(document["acknowledged"], "warning")
        yield "Kept", f"{warnings} acknowledged. List them with `eemtcleanupd acknowledge --list`"
    yield from _notifier_rows(document)


def _print_health(document: dict[str, Any], daemon: DaemonStatus | None, *, as_json: bool) -> int:
    is_healthy = False
    if daemon is None:
        text = "No daemon is running on this host, or it has not written its status yet."
    elif _is_silent(daemon, system_clock()):
        text = f"The daemon has not responded since {local_time(daemon.heartbeat_at)}."
    else:
        is_healthy, text = True, daemon.summary()
    if as_json:
        print_json({"healthy": is_healthy, "summary": text, **document})
    else:
        click.echo(text)
    return 0 if is_healthy else 1


def _is_silent(daemon: DaemonStatus, now: datetime) -> bool:
    from eemtcleanupd.daemon.status import BEAT_SECONDS

    return (now - daemon.heartbeat_at).total_seconds() > 3 * BEAT_SECONDS


def _daemon_rows(document: dict[str, Any], daemon: DaemonStatus | None, now: datetime) -> Iterator[Row]:
    from eemtcleanupd.daemon.status import time_with_distance

    process = f"process {document['pid']} on {document['host']}"
    if not document["running"]:
        yield "Daemon", "not running"
    elif document["host"] != socket.gethostname():
        yield "Daemon", f"active as {process}. Run `eemtcleanupd status` there for details"
    elif daemon is None:
        yield "Daemon", f"{process}; it has not written its status yet"
    else:
        yield "Daemon", f"{daemon.state}, {process}, since {time_with_distance(daemon.started_at, now)}"
        if _is_silent(daemon, now):
            import humanize

            silence = humanize.naturaldelta(now - daemon.heartbeat_at)
            yield "", f"no heartbeat for {silence}; the daemon may be stuck"
        if daemon.role == "standby":
            yield "Active", daemon.active or "another daemon"
        if daemon.next_run_at is None:
            yield "Next run", "none: the schedule is off (schedule.enabled)"
        else:
            dry_run = ", a dry run" if daemon.dry_run else ""
            yield "Next run", f"{time_with_distance(daemon.next_run_at, now)}{dry_run}; {daemon.schedule}"


def _last_run(run: dict[str, Any] | None) -> str:
    if run is None:
        return "none yet"
    jobs = f"{run['successful']:,} successful and {plural(run['failed'], 'failed job')}"
    purge_after = run["purge_after"] and datetime.fromisoformat(run["purge_after"])
    amounts = human_amounts(run["bytes_freed"], run["bytes_trashed"], purge_after)
    started = local_time(datetime.fromisoformat(run["started_at"]))
    outcome = run["outcome"] or "in progress"
    return f"{started} ({run['trigger']}): {outcome}, {jobs}, {amounts}, {plural(run['errors'], 'error')}"


def _progress_rows(document: dict[str, Any]) -> Iterator[Row]:
    if (run := document["run"]) is not None:
        from eemtcleanupd.daemon.status import RunStatus

        yield "Now", RunStatus(**run).summary()


def _failure_rows(document: dict[str, Any]) -> Iterator[Row]:
    error = (document["last_run"] or {}).get("error")
    if error:
        yield "", f"reason: {printable(error)}"
    if document["last_refusal"] not in {None, error}:  # such as on a database that cannot be written
        yield "", f"a later run did not begin: {printable(document['last_refusal'])}"


def _storage_rows(document: dict[str, Any]) -> Iterator[Row]:
    storage = document["storage"]
    if storage["used_percent"] is not None:
        free = f"{human_size(storage['free_bytes'])} of {human_size(storage['total_bytes'])} free"
        yield "Storage", f"{storage['used_percent']:.1f} % used, {free}"
    for name, group in storage["by_status"].items():
        yield "", f"{name}: {plural(group['jobs'], 'job')}, {human_size(group['bytes'])}"
    if (capacity := document["capacity"]) is not None:
        budget = human_size(capacity["max_bytes"])
        if capacity["held_bytes"] is None:
            yield "Budget", f"{budget}, not measured yet"
        else:
            held = human_size(capacity["held_bytes"])
            yield "Budget", f"jobs use {held} of {budget} ({capacity['used_percent']:.1f} %)"


def _trash(trash: dict[str, Any]) -> str:
    if not trash["jobs"]:
        return "empty"
    return f"{plural(trash['jobs'], 'job')} ({human_size(trash['bytes'])}) until their grace period ends"


def _notifier_rows(document: dict[str, Any]) -> Iterator[Row]:
    title = "Notifiers"
    for name, stats in document["notifiers"].items():
        if name == "audit_log" or not (stats["enabled"] or stats["waiting"]):
            continue
        counts = (f"{stats[count]:,} {count}" for count in ("delivered", "waiting", "failed"))
        text = f"{name}: {', '.join(counts)}"
        if stats["unresponsive"]:
            text += "; not responding"
        elif stats["last_error"] and (stats["last_delivered_at"] or "") <= stats["last_error_at"]:
            text += f"; last error: {printable(stats['last_error'])}"
        yield title, text
        title = ""


def _config_rows(daemon: DaemonStatus | None, now: datetime) -> Iterator[Row]:
    if daemon is None:
        return
    from eemtcleanupd.daemon.status import time_with_distance

    loaded = time_with_distance(daemon.config_loaded_at, now)
    yield "Config", f"{printable(daemon.config_file or 'no file, defaults are used')}, loaded {loaded}"
    if daemon.config_error:
        yield "", f"rejected {time_with_distance(daemon.config_attempted_at, now)}: {daemon.config_error}"
