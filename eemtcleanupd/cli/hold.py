"""``eemtcleanupd hold`` and ``release``: what a person says must stay."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from eemtcleanupd.cli.common import (
    caller,
    load_config,
    open_audited,
    open_ledger,
    store_options,
)
from eemtcleanupd.clock import system_clock
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Hold


class _Moment(click.ParamType[datetime]):
    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(
                f"{value!r} is not a time; write for example 2026-12-31 or 2026-12-31T18:00", param, ctx
            )
        moment = moment.astimezone(UTC)
        if moment <= system_clock():
            self.fail(f"{value} has passed already", param, ctx)
        return moment


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option(
    "--until", type=_Moment(), metavar="TIME", help="When the hold ends (local time; default: never)."
)
@click.option("--reason", default="", help="Why, for whoever meets the hold later.")
@store_options
def hold(
    job_id: str, until: datetime | None, reason: str, config_file: Path | None, db_path: str | None
) -> None:
    """Never clean JOB, until a time or for ever."""
    from eemtcleanupd.cleanup.session import hold_warning

    with open_audited(config_file, db_path) as (ledger, audit):
        ledger.create_tables()
        audit(
            "hold",
            job_id=printable(job_id),
            until=None if until is None else until.isoformat(),
            reason=printable(reason),
        )
        ledger.hold(Hold(job_id, reason or "no reason given", caller(), until), system_clock())
        config = load_config(config_file, {"paths.database": (db_path, "--db-path")}).config
        late = hold_warning(config, ledger, job_id)
    end = "for ever" if until is None else f"until {until.astimezone():%Y-%m-%d %H:%M}"
    click.echo(f"Job {printable(job_id)} is held {end}")
    if late is not None:
        click.echo(f"[WARNING] {late}", err=True)


@click.command()
@click.argument("job_id", metavar="JOB")
@store_options
def release(job_id: str, config_file: Path | None, db_path: str | None) -> int:
    """Take the hold off JOB."""
    with open_audited(config_file, db_path) as (ledger, audit):
        released = ledger.exists() and any(each.job_id == job_id for each in ledger.all_holds())
        if released:
            audit("release", job_id=printable(job_id))
            ledger.release(job_id)
    click.echo(f"Job {printable(job_id)} is " + ("released" if released else "not held"))
    return 0 if released else 1


@click.command()
@store_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def holds(config_file: Path | None, db_path: str | None, as_json: bool) -> None:
    """List the jobs that are held, by whom, until when and why."""
    with open_ledger(config_file, db_path) as ledger:
        found = ledger.all_holds() if ledger.exists() else []
    now = system_clock()
    active = [each for each in found if each.is_active(now)]
    if as_json:
        document = [
            {
                "job_id": each.job_id,
                "reason": each.reason,
                "owner": each.owner,
                "until": None if each.until is None else each.until.isoformat(),
            }
            for each in active
        ]
        click.echo(json.dumps(document, indent=2))
        return
    for each in active:
        end = "for ever" if each.until is None else f"until {each.until.astimezone():%Y-%m-%d %H:%M}"
        click.echo(f"{printable(each.job_id)} {end}, by {printable(each.owner)}: {printable(each.reason)}")
    if not active:
        click.echo("No job is held.")
