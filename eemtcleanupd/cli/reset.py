"""``eemtcleanupd reset``: mark all jobs as not cleaned and clear the cleanup log."""

from __future__ import annotations

from contextlib import ExitStack

import click

from eemtcleanupd.cli.common import (
    caller,
    confirm_destruction,
    examples,
    json_option,
    load_config,
    print_json,
    store_options,
    write_audit,
    yes_option,
)
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import StoreError
from eemtcleanupd.formatting import plural


@click.command(epilog=examples("reset", "reset --yes"))
@yes_option
@store_options
@json_option
def reset(yes: bool, as_json: bool) -> None:
    """Mark all jobs as not cleaned and clear cleanup_log.

    The command first copies a SQLite file to the same folder, or a server's tables to separate tables.  It
    keeps job files, holds, runs and the audit trail.  The next run checks all jobs again and marks jobs
    without files as cleaned.
    """
    confirm_destruction("A reset deletes the record of which jobs were cleaned and when.", "Reset?", yes=yes)
    config = load_config().config
    from sqlalchemy import Connection

    from eemtcleanupd.cleanup.session import job_table, open_database
    from eemtcleanupd.plugins import Plugins
    from eemtcleanupd.store.history import AuditLine
    from eemtcleanupd.store.ledger import Ledger
    from eemtcleanupd.store.lock import run_lock

    now = system_clock()
    plugins = Plugins(config)
    with ExitStack() as stack:
        database = open_database(config, stack)
        stack.enter_context(run_lock(database, "reset", now))
        jobs = job_table(database, config)
        ledger = Ledger(database)
        ledger.create_tables(jobs)
        plugins.expect_audit(ledger)
        copy = database.snapshot_before_reset(jobs.id_column, now)

        def work(connection: Connection) -> tuple[int, int]:
            ledger.add_audit(connection, [AuditLine("", "reset", 0)], caller(), system_clock())
            counts = jobs.mark_all_uncleaned(connection), ledger.clear_log(connection)
            write_audit(plugins, "reset", copy=copy)  # if this fails, nothing is committed
            plugins.anchor_audit(ledger, connection)
            return counts

        job_count, log_lines = database.write(work)
        try:
            database.vacuum()
        except StoreError as error:  # it only saves space; the web interface has priority
            click.echo(f"[WARNING] {error}", err=True)
    if as_json:
        print_json({"jobs": job_count, "log_lines": log_lines, "copy": copy})
    else:
        marked, lines = plural(job_count, "job"), plural(log_lines, "line")
        click.echo(f"Marked {marked} as not cleaned and removed {lines} from cleanup_log.")
        click.echo(f"Copy of the previous state: {copy}")
