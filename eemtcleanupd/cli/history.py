"""``eemtcleanupd history``: list past runs, or show what one run did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from eemtcleanupd.abbreviations import MOST_LISTED, complete
from eemtcleanupd.cli import completion
from eemtcleanupd.cli.common import (
    echo_line,
    examples,
    json_option,
    load_config,
    open_ledger,
    print_json,
    store_options,
)
from eemtcleanupd.errors import IdError
from eemtcleanupd.formatting import (
    human_size,
    human_trashed,
    local_minute,
    plural,
    printable,
    shortened,
    space,
)

if TYPE_CHECKING:
    from eemtcleanupd.store.history import LogEntry
    from eemtcleanupd.store.ledger import Ledger
    from eemtcleanupd.store.runs import RunRecord


@click.command(epilog=examples("history --limit 5", "history 20240120T020001-3f2a"))
@click.argument("run_id", metavar="[RUN]", required=False, shell_complete=completion.runs)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    default=20,
    show_default=True,
    help="Number of runs to list.",
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
        complete_id = complete(run_id, {run.id: _state(run) for run in runs}, "runs")
        if complete_id is None:
            raise IdError(f"There is no run {printable(run_id)}. List the runs with `eemtcleanupd history`.")
        _show(ledger, next(run for run in runs if run.id == complete_id), as_json=as_json)


def _state(run: RunRecord) -> str:
    return f"{run.trigger}, {run.outcome or 'in progress'}, {local_minute(run.started_at)}"


def _list(runs: list[RunRecord], *, as_json: bool) -> None:
    if as_json:
        print_json([_document(run) for run in runs])
        return
    if not runs:
        click.echo("There are no runs yet.")
        return
    echo_line(
        f"{'RUN':<21}  {'STARTED':<22}  {'TRIGGER':<8}  {'OUTCOME':<11}  "
        f"{'OK':>6}  {'FAILED':>6}  {'ERRORS':>6}  {'FREED':>8}  TRASHED",
        indent=2,
    )
    for run in runs:
        echo_line(
            f"{run.id:<21}  {local_minute(run.started_at):<22}  {run.trigger:<8}  "
            f"{run.outcome or 'unfinished':<11}  {run.successful:>6,}  {run.failed:>6,}  "
            f"{run.errors:>6,}  {human_size(run.bytes_freed):>8}  {human_size(run.bytes_trashed or 0)}",
            indent=2,
        )


def _show(ledger: Ledger, run: RunRecord, *, as_json: bool) -> None:
    entries = ledger.log_entries(run.id)
    if as_json:
        print_json({**_document(run), "jobs": [_entry(entry) for entry in entries]})
        return
    finished = local_minute(run.finished_at) if run.finished_at else "unknown"
    echo_line(f"Run      {run.id} ({run.outcome or 'unfinished'})", indent=9)
    echo_line(f"Started  {local_minute(run.started_at)}, finished {finished}", indent=9)
    echo_line(f"By       {run.user} ({run.trigger}), process {run.pid} on {run.host}", indent=9)
    echo_line(f"Policy   {run.policy}", indent=9)
    orphans, errors = plural(run.orphans, "orphan"), plural(run.errors, "error")
    echo_line(
        f"Cleaned  {run.successful:,} successful and {plural(run.failed, 'failed job')}, {orphans}", indent=9
    )
    echo_line(f"Freed    {human_size(run.bytes_freed)}; {run.skipped:,} skipped, {errors}", indent=9)
    if run.bytes_trashed:
        echo_line(f"Trash    {human_trashed(run.bytes_trashed, run.purge_after)}", indent=9)
    if run.error:
        echo_line(f"Error    {run.error}", indent=9)
    for entry in entries:
        job = shortened(printable(entry.job_id), 60)
        echo_line(f"  {entry.action:<14}  {job}: {printable(entry.message)}", indent=18)


def _document(run: RunRecord) -> dict[str, object]:
    from eemtcleanupd.daemon.status_document import run_document

    more = ("user", "host", "pid", "policy", "orphans", "skipped")
    return {**run_document(run), **{name: getattr(run, name) for name in more}}


def _entry(entry: LogEntry) -> dict[str, object]:
    document = entry._asdict()
    return {**document, "space_freed": space(document.pop("bytes_freed"))}
