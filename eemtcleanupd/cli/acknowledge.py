"""``eemtcleanupd acknowledge``: silence the warning that every run prints about a kept job."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from eemtcleanupd.cli import completion
from eemtcleanupd.cli.common import (
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
from eemtcleanupd.errors import CleanupError, IdError
from eemtcleanupd.formatting import printable

if TYPE_CHECKING:
    from eemtcleanupd.config import Config


@click.command(
    epilog=examples(
        'acknowledge 32ffd03d --reason "ran before the upgrade"',
        "acknowledge --list",
        "acknowledge 32ffd03d --remove",
    )
)
@click.argument("given", metavar="[JOB]", required=False, shell_complete=completion.jobs_to_acknowledge)
@click.option("--reason", default="", help="Why the warning needs no attention, shown by --list and why.")
@click.option("--list", "show", is_flag=True, help="List the acknowledged warnings.")
@click.option("--remove", is_flag=True, help="Let runs warn about JOB again.")
@store_options
@json_option
def acknowledge(given: str | None, reason: str, show: bool, remove: bool, as_json: bool) -> int:
    """Acknowledge the warning about JOB (an id or the start of one).

    Later runs count it but do not print it.  A run warns again as soon as it keeps the job for another
    reason.  In place of JOB you can give the path of an orphan, as printed by the run.
    """
    if show == (given is not None) or (show and (remove or reason)) or (remove and reason):
        raise click.UsageError("Give a JOB, with --reason or --remove if needed, or only --list.")
    config = load_config().config
    if given is None:
        _list(config, as_json=as_json)
        return 0
    return _remove(config, given, as_json=as_json) if remove else _add(config, given, reason, as_json=as_json)


def _add(config: Config, given: str, reason: str, *, as_json: bool) -> int:
    from eemtcleanupd.model import Acknowledgement

    name, warning = _find_warning(config, given)
    with open_audited(config) as (ledger, audit):
        ledger.create_tables()
        audit("acknowledge", job_id=printable(name), warning=warning, reason=printable(reason))
        ledger.acknowledge(
            Acknowledgement(name, warning, reason or "no reason given", caller()), system_clock()
        )
    if as_json:
        print_json({"job_id": name, "acknowledged": True, "warning": warning})
    else:
        echo_line(f"Acknowledged the warning about {printable(name)}: {printable(warning)}", indent=2)
    return 0


def _find_warning(config: Config, given: str) -> tuple[str, str]:
    """Return the job or the path of the orphan that a person means, and the text of the warning.

    Raises:
        IdError: there is neither.
        CleanupError: runs do not warn of it.
    """
    from eemtcleanupd.cleanup.inventory import orphan_warning
    from eemtcleanupd.cleanup.session import find_job_id, unknown_job
    from eemtcleanupd.plugins import Plugins
    from eemtcleanupd.report.job_state import job_state

    now, job_id = system_clock(), find_job_id(config, given)
    if job_id is None and (orphan := orphan_warning(config, given, now)) is not None:
        found, warning = orphan
        if warning is None:
            raise CleanupError(
                f"The next run deletes the orphan {printable(found.label)}, so there is no warning about it."
            )
        return found.label, warning
    state = None
    if job_id is not None:
        state = job_state(config, job_id, Plugins(config), now, is_thorough=True)
    if state is None:
        raise IdError(f"{unknown_job(config, given)} To acknowledge an orphan, give its path as printed.")
    if not state.is_warned_of:
        raise CleanupError(
            f"Runs do not warn about job {printable(state.job_id)}: {printable(state.why)}. "
            "Acknowledge only jobs that `eemtcleanupd clean --dry-run` warns about."
        )
    return state.job_id, state.why


def _remove(config: Config, given: str, *, as_json: bool) -> int:
    with open_audited(config) as (ledger, audit):
        states = {each.job_id: each.warning for each in ledger.all_acknowledgements()}
        job_id = complete_among(config, given, states, "acknowledged jobs")
        if job_id is not None:
            audit("acknowledgement_removed", job_id=printable(job_id))
            ledger.remove_acknowledgement(job_id)
    name = job_id or full_id(config, given)
    if as_json:
        print_json({"job_id": name, "acknowledged": False, "was_acknowledged": job_id is not None})
    elif job_id is None:
        echo_line(
            f"The warning about {printable(name)} was not acknowledged. List the acknowledged ones with "
            "`eemtcleanupd acknowledge --list`."
        )
    else:
        click.echo(f"The warning about {printable(name)} is no longer acknowledged.")
    return 1 if job_id is None else 0


def _list(config: Config, *, as_json: bool) -> None:
    with open_ledger(config) as ledger:
        known = ledger.all_acknowledgements()
    if as_json:
        print_json([asdict(each) for each in known])
        return
    for each in known:
        by = f"acknowledged by {printable(each.owner)}: {printable(each.reason)}"
        echo_line(f"{printable(each.job_id)}: {printable(each.warning)} ({by})", indent=2)
    if not known:
        click.echo("No warning is acknowledged.")
