"""``eemtcleanupd why``: show whether a job's data is kept or deleted, why, and until when."""

from __future__ import annotations

from dataclasses import asdict

import click

from eemtcleanupd.cli import completion
from eemtcleanupd.cli.common import echo_line, examples, json_option, load_config, print_json, store_options
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import IdError
from eemtcleanupd.formatting import human_size, local_minute, printable, space, suggested


@click.command(epilog=examples("why 32ffd03d", "why 32ffd03d --json"))
@click.argument("given", metavar="JOB", shell_complete=completion.jobs)
@store_options
@json_option
def why(given: str, as_json: bool) -> None:
    """Show what the next run would do with JOB (an id or the start of one), and why."""
    config = load_config().config
    from eemtcleanupd.cleanup.session import find_job_id, unknown_job
    from eemtcleanupd.plugins import Plugins
    from eemtcleanupd.report.job_state import job_state

    job_id = find_job_id(config, given)
    state = None
    if job_id is not None:
        state = job_state(config, job_id, Plugins(config), system_clock(), is_thorough=True)
    if state is None:
        raise IdError(unknown_job(config, given))
    if as_json:
        document = asdict(state)
        size_bytes = document.pop("size_bytes")
        print_json({**document, "size": None if size_bytes is None else space(size_bytes)})
        return
    rows = [("Job", f"{printable(state.job_id)} ({printable(state.status)})")]
    if state.cleaned:
        when = "" if state.cleaned_at is None else f" on {local_minute(state.cleaned_at)}"
        rows.append(("Cleaned", f"yes{when}"))
    else:
        rows.append(("Next run", "cleans it" if state.would_clean else "keeps it"))
    rows.append(("Why", printable(state.why)))
    if state.kept_until is not None and not state.would_clean:
        rows.append(("Until", local_minute(state.kept_until)))
    if (known := state.acknowledgement) is not None:
        rows.append(("Warning", f"acknowledged by {printable(known.owner)}: {printable(known.reason)}"))
    elif state.is_warned_of:
        silence = suggested("acknowledge", state.job_id)
        rows.append(("Warning", f"every run warns about it. Silence it with {silence}"))
    if state.hold is not None:
        rows.append(("Held by", f"{printable(state.hold.owner)}: {printable(state.hold.reason)}"))
    if state.shared:
        rows.append(("Shared", f"other jobs still need {', '.join(state.shared)}"))
    if state.purge_after is not None:
        rows.append(("Trash", f"deleted after {local_minute(state.purge_after)}"))
    if state.size_bytes is not None:
        rows.append(("Size", human_size(state.size_bytes)))
    for title, text in rows:
        echo_line(f"{title:<8} {text}", indent=9)
