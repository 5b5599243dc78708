"""``eemtcleanupd history``: list past runs, or show what one run did."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from eemtcleanupd.abbreviations import MOST_LISTED, complete
from eemtcleanupd.cli.common import json_option, load_config, open_ledger, print_json, store_options
from eemtcleanupd.errors import IdError
from eemtcleanupd.formatting import human_size, human_trashed, printable, shortened

if TYPE_CHECKING:
    from eemtcleanupd.store.ledger import Ledger
    from eemtcleanupd.store.runs import RunRecord


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Number of runs to list."
)
@json_option
@store_options
def history(run_id: str | None, limit: int, as_json: bool) -> None:
    """List past runs, newest first, or show what RUN did (an id or the start of one)."""
    with open_ledger(load_config().config) as ledger:
        if run_id is None:
            _list(ledger.runs(limit) if ledger.exists() else [], as_json=as_json)
            return
        runs = ledger.runs(MOST_LISTED + 1, run_id) if ledger.exists() else []
        complete_id = complete(run_id, (run.id for run in runs), "runs")
        if complete_id is None:
            raise IdError(f"There is no run {printable(run_id)}. List the runs with `eemtcleanupd history`.")
        _show(ledger, next(run for run in runs if run.id == complete_id), as_json=as_json)


def _list(runs: list[RunRecord], *, as_json: bool) -> None:
    if as_json:
        print_json([_document(run) for run in runs])
        return
    if not runs:
        click.echo("There are no runs yet.")
        return
    click.echo(
        f"{'RUN':<21}  {'STARTED (UTC)':<19}  {'TRIGGER':<8}  {'OUTCOME':<11}  "
        f"{'OK':>6}  {'FAILED':>6}  {'ERRORS':>6}  {'FREED':>8}  TRASHED"
    )
    for run in runs:
        click.echo(
            f"{run.id:<21}  {run.started_at:%Y-%m-%d %H:%M:%S}  {run.trigger:<8}  "
            f"{run.outcome or 'unfinished':<11}  {run.successful:>6}  {run.failed:>6}  "
            f"{run.errors:>6}  {human_size(run.bytes_freed):>8}  {human_size(run.bytes_trashed or 0)}"
        )


def _show(ledger: Ledger, run: RunRecord, *, as_json: bool) -> None:
    entries = ledger.log_entries(run.id)
    if as_json:
        print_json({**_document(run), "jobs": [asdict(entry) for entry in entries]})
        return
    finished = f"{run.finished_at:%Y-%m-%d %H:%M:%S} UTC" if run.finished_at else "unknown"
    click.echo(f"Run      {run.id} ({run.outcome or 'unfinished'})")
    click.echo(f"Started  {run.started_at:%Y-%m-%d %H:%M:%S} UTC, finished {finished}")
    click.echo(f"By       {run.user} ({run.trigger}), process {run.pid} on {run.host}")
    click.echo(f"Policy   {run.policy}")
    click.echo(f"Cleaned  {run.successful} successful and {run.failed} failed jobs, {run.orphans} orphans")
    click.echo(f"Freed    {human_size(run.bytes_freed)}; {run.skipped} skipped, {run.errors} errors")
    if run.bytes_trashed:
        click.echo(f"Trash    {human_trashed(run.bytes_trashed, run.purge_after)}")
    if run.error:
        click.echo(f"Error    {run.error}")
    for entry in entries:
        job = shortened(printable(entry.job_id), 60)
        click.echo(f"  {entry.action:<14}  {job}: {printable(entry.message)}")


def _document(run: RunRecord) -> dict[str, object]:
    return {**asdict(run), "space_freed": human_size(run.bytes_freed, fixed=True)}
