"""``eemtcleanupd trash``: list, restore or purge cleaned data that is still in the trash."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from eemtcleanupd.cli import completion
from eemtcleanupd.cli.common import (
    Command,
    Duration,
    caller,
    complete_among,
    confirm_destruction,
    echo_line,
    emitter,
    examples,
    json_option,
    load_config,
    log_file,
    open_ledger,
    print_json,
    quiet_option,
    store_options,
    yes_option,
)
from eemtcleanupd.cli.groups import CommandGroup
from eemtcleanupd.clock import system_clock
from eemtcleanupd.formatting import human_size, local_minute, plural, printable, space, suggested
from eemtcleanupd.model import Trigger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from eemtcleanupd.cleanup.restore import RestoreRequest, RestoreResult
    from eemtcleanupd.cli.completion import Completion
    from eemtcleanupd.config import Config
    from eemtcleanupd.events import Event, JobFailed, JobTally, RunReport
    from eemtcleanupd.store.intents import Intent

_MOST_KEPT = 20


@click.group(cls=CommandGroup)
def trash() -> None:
    """List, restore or purge the trash (see trash.grace_hours)."""


@trash.command("list", epilog=examples("trash list"))
@store_options
@json_option
def list_(as_json: bool) -> None:
    """List the items in the trash, in the order of their deletion, and their total."""
    with open_ledger(load_config().config) as ledger:
        intents = ledger.trashed() if ledger.exists() else []
        holds = ledger.all_holds() if intents else []
        unfinished = len(ledger.open_intents()) if ledger.exists() else 0
    now = system_clock()
    held = {hold.job_id for hold in holds if hold.is_active(now)}
    if as_json:
        print_json([{**_document(intent), "held": intent.job_id in held} for intent in intents])
        return
    if unfinished:
        echo_line(
            f"Not in this list: {plural(unfinished, 'item')} that a run has not finished. "
            "`eemtcleanupd doctor` shows the errors.",
            indent=2,
        )
    if not intents:
        click.echo("The trash contains no other items." if unfinished else "The trash is empty.")
        return
    size = human_size(sum(intent.size_bytes for intent in intents))
    ends = (each.purge_after for each in intents if each.purge_after and each.job_id not in held)
    first = min(ends, default=None)
    deletion = "" if first is None else f". The next one is deleted after {local_minute(first)}"
    echo_line(f"In the trash: {plural(len(intents), 'item')}, {size}{deletion}.", indent=2)
    for intent in intents:
        labels = ", ".join(printable(artifact.label) for artifact, _ in intent.items)
        deletion = "" if intent.purge_after is None else f", deleted after {local_minute(intent.purge_after)}"
        deletion = ", held" if intent.job_id in held else deletion
        job, size = printable(intent.job_id) or "no job", human_size(intent.size_bytes)
        echo_line(f"{job} ({printable(intent.status) or 'orphan'}, {size}{deletion}): {labels}", indent=2)


def _document(intent: Intent) -> dict[str, Any]:
    return {
        "job_id": intent.job_id or None,
        "status": intent.status,
        "bytes": intent.size_bytes,
        "run_id": intent.run_id,
        "trashed_at": intent.created_at,
        "purge_after": intent.purge_after,
        "artifacts": [artifact.label for artifact, _ in intent.items],
    }


def restore_options(complete: Completion) -> Callable[[Command], Command]:
    """Return a decorator that adds the argument and options for restoring from the trash or a backup."""

    def add(command: Command) -> Command:
        for option in (
            json_option,
            store_options,
            click.option(
                "--no-hold", is_flag=True, help="Do not hold the job; the next run can clean it again."
            ),
            click.option(
                "--only",
                multiple=True,
                metavar="ARTIFACT",
                help="Restore only this artifact, as printed by list. Repeatable.",
            ),
            click.argument("job_id", metavar="JOB", shell_complete=complete),
        ):
            command = option(command)
        return command

    return add


def restore_request(config: Config, job_id: str, only: Iterable[str], *, hold: bool) -> RestoreRequest:
    """Return a request of the calling user to restore a job."""
    from eemtcleanupd.cleanup.restore import RestoreRequest
    from eemtcleanupd.plugins import Plugins

    labels = {label.rstrip("/") for label in only}
    return RestoreRequest(config, job_id, labels, hold, caller(), Plugins(config), system_clock)


def print_restored(restored: RestoreResult, *, as_json: bool) -> int:
    """Print what was restored and what was not, and the hold; return the exit code."""
    labels, until = [artifact.label for artifact in restored.artifacts], restored.held_until
    exit_code = 1 if restored.not_restored else 0
    if as_json:
        print_json(
            {
                "job_id": restored.job_id,
                "restored": labels,
                "not_restored": [
                    {"artifact": artifact.label, "error": reason}
                    for artifact, reason in restored.not_restored
                ],
                "warnings": list(restored.warnings),
                "held_until": until,
            }
        )
        return exit_code
    for label in labels:
        click.echo(f"Restored {printable(label)}")
    for artifact, reason in restored.not_restored:
        click.echo(f"Not restored {printable(artifact.label)}: {reason}.", err=True)
    for warning in restored.warnings:
        click.echo(f"[WARNING] {warning}", err=True)
    if until is not None or restored.held_permanently:
        job, command = printable(restored.job_id), suggested("release", restored.job_id)
        end = "permanently" if until is None else f"until {local_minute(until)}"
        click.echo(f"Job {job} is held {end}. End the hold with {command}.")
    return exit_code


@trash.command(
    epilog=examples("trash restore 32ffd03d", "trash restore 32ffd03d --only results/32ffd03d --no-hold")
)
@restore_options(completion.trashed_jobs)
def restore(job_id: str, only: tuple[str, ...], no_hold: bool, as_json: bool) -> int:
    """Move the data of JOB from the trash back to its place; existing files are never overwritten.

    JOB is an id or the start of one.  The command marks the job as not cleaned and holds it for one retention
    period.  To restore an orphan, give its path as printed by list.
    """
    config = load_config().config
    from eemtcleanupd.cleanup.restore import restore as restore_trash

    request = restore_request(config, _restorable(config, job_id), only, hold=not no_hold)
    return print_restored(restore_trash(request), as_json=as_json)


def _restorable(config: Config, given: str) -> str:
    """Return the job, or the path of an orphan, that a person means; what was given if there is none."""
    from eemtcleanupd.cleanup.session import find_job_id

    with open_ledger(config) as ledger:
        intents = ledger.trashed() if ledger.exists() else []
    names = {
        name: "in the trash"
        if intent.purge_after is None
        else f"deleted after {local_minute(intent.purge_after)}"
        for intent in intents
        for name in ([intent.job_id] if intent.job_id else [found.label for found, _ in intent.items])
    }
    # A job that is not in the trash can share an upload with a job that is.
    return complete_among(config, given, names, "items of the trash") or find_job_id(config, given) or given


@trash.command(epilog=examples("trash purge", "trash purge --older-than 2d --yes --quiet"))
@click.option(
    "--older-than",
    type=Duration(),
    metavar="DURATION",
    help="Purge only items that have been in the trash for this long, such as 2d; a number means hours.",
)
@yes_option
@quiet_option
@store_options
@json_option
def purge(older_than: float | None, yes: bool, quiet: bool, as_json: bool) -> int:
    """Delete everything in the trash now, even before its grace period ends; held jobs are kept."""
    if older_than is not None and older_than < 0:
        raise click.UsageError("--older-than must be 0 or more.")
    config = load_config().config
    from eemtcleanupd.cleanup import Progress, RunRequest, clean
    from eemtcleanupd.cleanup.recovery import plan_purge
    from eemtcleanupd.daemon.status import published_progress
    from eemtcleanupd.events import JobFailed, JobTally
    from eemtcleanupd.logs import write_event
    from eemtcleanupd.plugins import Plugins
    from eemtcleanupd.store.address import StoreAddress

    age = timedelta(hours=older_than or 0)
    if config.dry_run:  # applies to every deletion
        due, kept = plan_purge(config, age, system_clock())
        amount = JobTally(len(due), sum(intent.size_bytes for intent in due))
        _print_purge(amount, kept, as_json=as_json, quiet=quiet)
        return 0
    confirm_destruction("Purged data cannot be restored.", "Purge the trash?", yes=yes)
    request = RunRequest(caller(), Trigger.TRASH, purge_older_than=age, forget_missing=True)
    plugins = Plugins(config)
    progress = Progress()
    failed: list[JobFailed] = []

    def note_failure(event: Event) -> None:
        if isinstance(event, JobFailed):
            failed.append(event)

    with (
        log_file(config),
        emitter(config, plugins, [write_event, note_failure], durable=True) as emit,
        published_progress(StoreAddress.of(config), request.trigger, progress),
    ):
        report = clean(config, request, emit=emit, progress=progress, hooks=plugins)
    _, kept = plan_purge(config, age, report.started_at)
    _print_purge(report.trash_purged, kept, report, failed, as_json=as_json, quiet=quiet)
    return 1 if report.errors else 0


def _print_purge(
    purged: JobTally,
    kept: Sequence[tuple[Intent, str]],
    report: RunReport | None = None,
    failed: Sequence[JobFailed] = (),
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print what a purge did, or would do if there is no report, and why it kept the other items.

    ``failed`` has the jobs with data that could not be deleted.
    """
    errors = 0 if report is None else report.errors
    if as_json:
        print_json(
            {
                **({} if report is None else {"run_id": report.run_id}),
                "dry_run": report is None,
                "purged": purged.jobs,
                "space_freed": space(purged.bytes_freed),
                "error_count": errors,
                "errors": [
                    {"job_id": each.job_id, "status": each.status, "error": each.error} for each in failed
                ],
                "kept": [{**_document(intent), "reason": reason} for intent, reason in kept],
            }
        )
        return
    if quiet and not errors:
        return
    for each in failed[:_MOST_KEPT]:
        click.echo(f"[ERROR] {each.log_line()}")
    items, size = plural(purged.jobs, "item"), human_size(purged.bytes_freed)
    if report is None:
        click.echo(f"[DRY RUN] Would purge {items} ({size}): dry_run is true")
    else:
        click.echo(f"Purged {items}, {size} freed, {plural(errors, 'error')}")
    if kept:
        click.echo(f"Kept {plural(len(kept), 'item')}:")
    for intent, reason in kept[:_MOST_KEPT]:
        echo_line(f"  {printable(intent.name)}: {reason}", indent=4)
    if len(kept) > _MOST_KEPT:
        click.echo(f"  and {len(kept) - _MOST_KEPT:,} more. List them with --json.")
