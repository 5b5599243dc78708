"""``eemtcleanupd hold``, ``release`` and ``holds``: protect jobs from cleanup."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import click

from eemtcleanupd.cli import completion
from eemtcleanupd.cli.common import (
    Duration,
    caller,
    complete_among,
    echo_line,
    examples,
    full_id,
    json_option,
    load_config,
    open_audited,
    open_ledger,
    print_json,
    store_options,
)
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import IdError, StoreError
from eemtcleanupd.formatting import local_minute, printable
from eemtcleanupd.model import Hold


class _FutureTime(click.ParamType[datetime]):
    """A time, or a duration from now."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if re.fullmatch(r"20\d\d", str(value)):  # as hours, the hold would end too early, without a warning
            self.fail(
                f"{value} can be a year or a number of hours. Use {value}-01-01 or {value}h.", param, ctx
            )
        try:
            moment = datetime.fromisoformat(str(value)).astimezone(UTC)
        except (ValueError, OverflowError):
            try:
                hours = Duration().convert(value, None, None)
            except click.BadParameter:
                self.fail(
                    f"{value!r} is neither a time nor a duration. Use a format such as 2026-12-31, "
                    "2026-12-31T18:00, 7d or 12h.",
                    param,
                    ctx,
                )
            moment = system_clock() + timedelta(hours=hours)
        if moment <= system_clock():
            self.fail(f"{value} is in the past. Give a future time.", param, ctx)
        return moment


@click.command(
    epilog=examples(
        'hold 32ffd03d --reason "figures of the paper"',
        "hold 32ffd03d --for 2w",
        "hold 32ffd03d --until 2099-12-31T18:00",
    )
)
@click.argument("given", metavar="JOB", shell_complete=completion.jobs)
@click.option(
    "--until",
    type=_FutureTime(),
    metavar="TIME",
    help="End of the hold: a local time, or a duration from now, such as 7d (default: no end).",
)
@click.option("--for", "until_too", type=_FutureTime(), metavar="TIME", help="Same as --until.")
@click.option(
    "--reason",
    default="",
    help="Reason for the hold, shown by holds and in reports (default: the reason of the replaced hold).",
)
@click.option("--unknown-ok", is_flag=True, help="Also hold a job that is not in the database (yet).")
@store_options
@json_option
def hold(  # noqa: PLR0917  (the options)
    given: str,
    until: datetime | None,
    until_too: datetime | None,
    reason: str,
    unknown_ok: bool,
    as_json: bool,
) -> None:
    """Protect JOB (an id or the start of one) from cleanup, permanently or until a time.

    If the job is held already, the new end replaces the old one.
    """
    if until is not None and until_too is not None:
        raise click.UsageError("--until and --for have the same meaning. Give only one of them.")
    if not given:
        raise IdError("The id of the job is empty. Give the id, or the start of it.")
    until = until or until_too
    config = load_config().config
    from eemtcleanupd.cleanup.session import find_job_id, hold_warning, unknown_job

    try:
        job_id = find_job_id(config, given)
    except StoreError:  # the hold is more urgent: it is set below, with a warning
        job_id = given
    if job_id is None and not unknown_ok:
        raise IdError(f"{unknown_job(config, given)} Hold it anyway with --unknown-ok.")
    job_id = job_id or given
    with open_audited(config) as (ledger, audit):
        ledger.create_tables()
        audit(
            "hold",
            job_id=printable(job_id),
            until=None if until is None else until.isoformat(),
            reason=printable(reason),
        )
        held, replaced = ledger.hold(Hold(job_id, reason, caller(), until), system_clock())
        warning = hold_warning(config, ledger, job_id)
    if as_json:
        warnings = [] if warning is None else [warning]
        print_json(
            {
                "job_id": job_id,
                "held": True,
                "held_until": until,
                "reason": held.reason,
                "replaced": None if replaced is None else asdict(replaced),
                "warnings": warnings,
            }
        )
        return
    echo_line(f"Job {printable(job_id)} is held {_duration(until)}.")
    if replaced is not None:
        owner, old = printable(replaced.owner), printable(replaced.reason)
        is_same = "" if reason else " (the reason stays)"
        echo_line(f"This replaces a hold {_length(replaced.until)}, by {owner}: {old}{is_same}")
    if warning is not None:
        click.echo(f"[WARNING] {warning}", err=True)


@click.command(epilog=examples("release 32ffd03d"))
@click.argument("given", metavar="JOB", shell_complete=completion.held_jobs)
@store_options
@json_option
def release(given: str, as_json: bool) -> int:
    """Remove the hold from JOB (an id or the start of one); exit with 1 if it is not held."""
    config = load_config().config
    with open_audited(config) as (ledger, audit):
        holds = {each.job_id: each for each in ledger.all_holds()} if ledger.exists() else {}
        states = {name: f"held {_duration(each.until)}, by {each.owner}" for name, each in holds.items()}
        job_id = complete_among(config, given, states, "held jobs")
        if job_id is not None:
            audit("release", job_id=printable(job_id))
            ledger.release(job_id)
    name = job_id or full_id(config, given)
    hold = None if job_id is None else holds[job_id]
    if as_json:
        removed = None if hold is None else asdict(hold)
        print_json({"job_id": name, "held": False, "was_held": hold is not None, "removed": removed})
    elif hold is None:
        echo_line(f"Job {printable(name)} is not held. List the held jobs with `eemtcleanupd holds`.")
    else:
        click.echo(f"Job {printable(name)} is no longer held.")
        owner, reason = printable(hold.owner), printable(hold.reason)
        echo_line(f"The hold was {_length(hold.until)}, by {owner}: {reason}")
    return 1 if hold is None else 0


@click.command(epilog=examples("holds", "holds --json"))
@store_options
@json_option
def holds(as_json: bool) -> None:
    """List held jobs with the owner, the end and the reason of each hold."""
    config = load_config().config
    from eemtcleanupd.cleanup.session import held_jobs

    with open_ledger(config) as ledger:
        all_holds = held_jobs(config, ledger)
    now = system_clock()
    active = [(held, has_row) for held, has_row in all_holds if held.is_active(now)]
    if as_json:
        print_json([{**asdict(held), "has_row": has_row} for held, has_row in active])
        return
    for held, has_row in active:
        owner, reason = printable(held.owner), printable(held.reason)
        gone = " (the job database has no such job)" if has_row is False else ""
        echo_line(f"{printable(held.job_id)} {_duration(held.until)}, by {owner}: {reason}{gone}", indent=2)
    if not active:
        click.echo("No job is held.")


def _length(until: datetime | None) -> str:
    return "without an end" if until is None else _duration(until)


def _duration(until: datetime | None) -> str:
    return "permanently" if until is None else f"until {local_minute(until)}"
