"""``eemtcleanupd trash``: what has been cleaned and is not gone yet."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eemtcleanupd.cli.common import Command, caller, load_config, open_ledger, store_options
from eemtcleanupd.clock import system_clock
from eemtcleanupd.formatting import human_size, printable
from eemtcleanupd.model import Trigger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eemtcleanupd.cleanup.restore import RestoreRequest, RestoreResult
    from eemtcleanupd.config import Config
    from eemtcleanupd.store.intents import Intent
    from eemtcleanupd.store.ledger import Ledger


@click.group()
def trash() -> None:
    """List, restore or purge what waits in the trash (see trash.grace_hours)."""


@trash.command("list")
@store_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(config_file: Path | None, db_path: str | None, as_json: bool) -> None:
    """List what waits in the trash, the first to go first."""
    with open_ledger(config_file, db_path) as ledger:
        intents = ledger.trashed() if ledger.exists() else []
    if as_json:
        click.echo(json.dumps([_document(intent) for intent in intents], indent=2))
        return
    for intent in intents:
        labels = ", ".join(printable(found.label) for found, _ in intent.items)
        goes = (
            "" if intent.purge_after is None else f", goes {intent.purge_after.astimezone():%Y-%m-%d %H:%M}"
        )
        job = printable(intent.job_id) or "no job"
        click.echo(f"{job} ({intent.status or 'orphan'}, {human_size(intent.size_bytes)}{goes}): {labels}")
    if not intents:
        click.echo("The trash is empty.")


def _document(intent: Intent) -> dict[str, Any]:
    return {
        "job_id": intent.job_id or None,
        "status": intent.status,
        "bytes": intent.size_bytes,
        "run_id": intent.run_id,
        "trashed_at": None if intent.created_at is None else intent.created_at.isoformat(),
        "purge_after": None if intent.purge_after is None else intent.purge_after.isoformat(),
        "artifacts": [found.label for found, _ in intent.items],
    }


def restore_options(command: Command) -> Command:
    """Add what restoring from the trash and from a backup have in common."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        store_options,
        click.option("--no-hold", is_flag=True, help="Let the next run take it again if it is due."),
        click.option(
            "--only",
            multiple=True,
            metavar="ARTIFACT",
            help="Restore this one, as list shows it; repeatable.",
        ),
        click.argument("job_id", metavar="JOB"),
    ):
        command = option(command)
    return command


def restoring(config: Config, job_id: str, only: Iterable[str], *, hold: bool) -> RestoreRequest:
    """Return what is asked for by whoever calls."""
    from eemtcleanupd.cleanup.restore import RestoreRequest
    from eemtcleanupd.plugins import Plugins

    labels = {label.rstrip("/") for label in only}
    return RestoreRequest(config, job_id, labels, hold, caller(), Plugins(config), system_clock)


def print_restored(restored: RestoreResult, *, as_json: bool) -> None:
    """Print what came back."""
    labels, until = [found.label for found in restored.artifacts], restored.held_until
    if as_json:
        held = None if until is None else until.isoformat()
        document = {"job_id": restored.job_id, "restored": labels, "held_until": held}
        click.echo(json.dumps(document, indent=2))
        return
    for label in labels:
        click.echo(f"Restored {printable(label)}")
    if until is not None:
        job = printable(restored.job_id)
        click.echo(f"Job {job} is held until {until.astimezone():%Y-%m-%d %H:%M} (see release)")


@trash.command()
@restore_options
def restore(  # noqa: PLR0917  (click passes them by name)
    job_id: str,
    only: tuple[str, ...],
    no_hold: bool,
    config_file: Path | None,
    db_path: str | None,
    as_json: bool,
) -> None:
    """Put the data of JOB back where it was, never over something that is there now.

    The job counts as not cleaned again, and is held for its retention once more, counted from now.  What
    belonged to no job is named as list shows it.
    """
    config = load_config(config_file, {"paths.database": (db_path, "--db-path")}).config
    from eemtcleanupd.cleanup.restore import restore as put_back

    print_restored(put_back(restoring(config, job_id, only, hold=not no_hold)), as_json=as_json)


@trash.command()
@click.option("--older-than", type=float, metavar="HOURS", help="Only what has been there for so long.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def purge(
    older_than: float | None, yes: bool, config_file: Path | None, db_path: str | None, as_json: bool
) -> int:
    """Delete what is in the trash now, whether its grace has passed or not; held jobs stay."""
    if older_than is not None and older_than < 0:
        raise click.UsageError("--older-than is a number of hours, 0 or more")
    config = load_config(config_file, {"paths.database": (db_path, "--db-path")}).config
    from eemtcleanupd.cleanup import RunRequest, clean
    from eemtcleanupd.plugins import Plugins

    age = timedelta(hours=older_than or 0)
    if config.dry_run:
        with open_ledger(config_file, db_path) as ledger:
            _print_dry_purge(ledger, age, as_json=as_json)
        return 0
    if not yes and sys.stdin.isatty():
        click.confirm("What is purged is gone for ever. Purge the trash?", abort=True)
    request = RunRequest(user=caller(), trigger=Trigger.TRASH, only_trash=True, purge_older_than=age)
    report = clean(config, request, emit=lambda _: None, hooks=Plugins(config))
    gone = report.trash_purged
    if as_json:
        document = {"purged": gone.jobs, "bytes_freed": gone.bytes_freed, "errors": report.errors}
        click.echo(json.dumps(document, indent=2))
    else:
        items = "1 item" if gone.jobs == 1 else f"{gone.jobs} items"
        click.echo(f"Purged {items}, {human_size(gone.bytes_freed)} freed, {report.errors} errors")
    return 1 if report.errors else 0


def _print_dry_purge(ledger: Ledger, age: timedelta, *, as_json: bool) -> None:
    """Print what a purge would delete: dry_run counts for all that deletes."""
    now = system_clock()
    there = ledger.expired(now, sys.maxsize, trashed_before=now - age) if ledger.exists() else []
    size = sum(intent.size_bytes for intent in there)
    if as_json:
        click.echo(json.dumps({"dry_run": True, "would_purge": len(there), "bytes": size}, indent=2))
    else:
        click.echo(f"[DRY RUN] Would purge {len(there)} items ({human_size(size)}): dry_run is true")
