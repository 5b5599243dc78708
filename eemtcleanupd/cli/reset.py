"""``eemtcleanupd reset``: forget what was cleaned, as the user's document does it in SQL."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import click

from eemtcleanupd.cli.common import caller, load_config, store_options
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import StoreError


@click.command()
@click.option("--yes", is_flag=True, help="Yes, forget it.")
@store_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reset(yes: bool, config_file: Path | None, db_path: str | None, as_json: bool) -> None:
    """Forget what was cleaned: every job counts as not cleaned, and cleanup_log is empty.

    A copy is made first: of a SQLite file beside it, on a server of what is forgotten in tables of its own.
    No file of a job is touched, and holds, runs and the
    audit trail stay.  The next run looks at all jobs anew and records those whose files are gone as cleaned.
    """
    if not yes:
        raise click.UsageError("reset forgets which jobs were cleaned and when; say --yes if you mean it")
    config = load_config(config_file, {"paths.database": (db_path, "--db-path")}).config
    from sqlalchemy import Connection

    from eemtcleanupd.events import AuditEntry
    from eemtcleanupd.plugins import Plugins
    from eemtcleanupd.policy.retention import Policy
    from eemtcleanupd.store.address import StoreAddress
    from eemtcleanupd.store.history import AuditLine
    from eemtcleanupd.store.jobs import JobTable
    from eemtcleanupd.store.ledger import Ledger
    from eemtcleanupd.store.lock import run_lock
    from eemtcleanupd.store.timestamps import zone_named

    now = system_clock()
    plugins = Plugins(config)
    with ExitStack() as stack:
        database = StoreAddress.of(config).open()
        stack.callback(database.close)
        stack.enter_context(run_lock(database, "reset", now))
        policy = Policy.from_config(config.retention)
        catalog = JobTable(database, policy, zone_named(config.database.timezone))
        catalog.add_columns()
        ledger = Ledger(database)
        ledger.create_tables()
        copy = database.snapshot_before_reset(catalog.id_column, now)
        details = {"copy": copy}

        def work(connection: Connection) -> tuple[int, int]:
            ledger.add_audit(connection, [AuditLine("", "reset", 0)], caller(), system_clock())
            done = catalog.mark_all_uncleaned(connection), ledger.clear_log(connection)
            plugins.audit([AuditEntry(now, caller(), "reset", details)])  # if it fails, nothing is committed
            return done

        jobs, lines = database.write(work)
        try:
            database.vacuum()
        except StoreError as error:  # it only saves space, and the web interface goes first
            click.echo(f"[WARNING] {error}", err=True)
    if as_json:
        click.echo(json.dumps({"jobs": jobs, "log_lines": lines, "copy": copy}, indent=2))
    else:
        click.echo(f"{jobs} jobs count as not cleaned again, {lines} lines of cleanup_log are gone")
        click.echo(f"As it was before: {copy}")
