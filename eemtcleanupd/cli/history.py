"""``eemtcleanupd history``: past runs, and what one of them did."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eemtcleanupd.cli.common import open_ledger, store_options
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.formatting import human_size, printable, shortened

if TYPE_CHECKING:
    from eemtcleanupd.store.ledger import Ledger
    from eemtcleanupd.store.runs import RunRecord


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many runs to list."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@store_options
def history(
    run_id: str | None, limit: int, as_json: bool, config_file: Path | None, db_path: str | None
) -> None:
    """List past runs, newest first, or show what RUN (an id or its beginning) did."""
    with open_ledger(config_file, db_path) as ledger:
        if run_id is None:
            _list(ledger.runs(limit) if ledger.exists() else [], as_json=as_json)
            return
        found = ledger.runs(2, run_id) if ledger.exists() else []
        if not found:
            raise CleanupError(f"there is no run {run_id}; `eemtcleanupd history` lists them")
        if len(found) > 1:
            raise CleanupError(f"several runs begin with {run_id}; write more of its id")
        _show(ledger, found[0], as_json=as_json)


def _list(runs: list[RunRecord], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_as_json(run) for run in runs], indent=2))
        return
    if not runs:
        click.echo("No run yet.")
        return
    click.echo(
        f"{'RUN':<21}  {'BEGAN (UTC)':<19}  {'OUTCOME':<11}  {'OK':>6}  {'FAILED':>6}  {'ERRORS':>6}  FREED"
    )
    for run in runs:
        click.echo(
            f"{run.id:<21}  {run.started_at:%Y-%m-%d %H:%M:%S}  {run.outcome or 'unfinished':<11}  "
            f"{run.successful:>6}  {run.failed:>6}  {run.errors:>6}  {human_size(run.bytes_freed)}"
        )


def _show(ledger: Ledger, run: RunRecord, *, as_json: bool) -> None:
    entries = ledger.log_entries(run.id)
    if as_json:
        jobs = [asdict(entry) for entry in entries]
        click.echo(json.dumps({**_as_json(run), "jobs": jobs}, indent=2))
        return
    ended = f"{run.finished_at:%Y-%m-%d %H:%M:%S} UTC" if run.finished_at else "unknown"
    click.echo(f"Run      {run.id} ({run.outcome or 'unfinished'})")
    click.echo(f"Began    {run.started_at:%Y-%m-%d %H:%M:%S} UTC, ended {ended}")
    click.echo(f"By       {run.user} ({run.trigger}), process {run.pid} on {run.host}")
    click.echo(f"Policy   {run.policy}")
    click.echo(f"Cleaned  {run.successful} successful and {run.failed} failed jobs, {run.orphans} orphans")
    click.echo(f"Freed    {human_size(run.bytes_freed)}; {run.skipped} skipped, {run.errors} errors")
    if run.error:
        click.echo(f"Error    {run.error}")
    for entry in entries:
        click.echo(
            f"  {entry.action:<14}  {shortened(printable(entry.job_id), 60)}: {printable(entry.message)}"
        )


def _as_json(run: RunRecord) -> dict[str, object]:
    values = asdict(run)
    for name in ("started_at", "finished_at"):
        values[name] = values[name].isoformat() if values[name] else None
    return {**values, "space_freed": human_size(run.bytes_freed, fixed=True)}
