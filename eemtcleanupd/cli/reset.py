"""``eemtcleanupd reset``: forget what was cleaned, as the user's document does it in SQL."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import click

from eemtcleanupd.cli.common import caller, load_config, store_options
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import StoreError
from eemtcleanupd.units import printable


@click.command()
@click.option("--yes", is_flag=True, help="Yes, forget it.")
@store_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reset(yes: bool, config_file: Path | None, db_path: str | None, as_json: bool) -> None:
    """Forget what was cleaned: every job counts as not cleaned, and cleanup_log is empty.

    A copy of the database is made beside it first.  No file of a job is touched, and holds, runs and the
    audit trail stay.  The next run looks at all jobs anew and records those whose files are gone as cleaned.
    """
    if not yes:
        raise click.UsageError("reset forgets which jobs were cleaned and when; say --yes if you mean it")
    config = load_config(config_file, {"paths.database": (db_path, "--db-path")}).config
    from sqlalchemy import Connection  # noqa: PLC0415  (late: --help needs none of it)

    from eemtcleanupd.events import AuditEntry  # noqa: PLC0415
    from eemtcleanupd.plugins import PluginSet  # noqa: PLC0415
    from eemtcleanupd.policy.retention import Policy  # noqa: PLC0415
    from eemtcleanupd.store.catalog import Catalog  # noqa: PLC0415
    from eemtcleanupd.store.database import Database  # noqa: PLC0415
    from eemtcleanupd.store.ledger import Ledger  # noqa: PLC0415
    from eemtcleanupd.store.lock import run_lock  # noqa: PLC0415
    from eemtcleanupd.store.timestamps import zone_named  # noqa: PLC0415

    now, path = system_clock(), Path(config.paths.database)
    plugins = PluginSet(config)
    with ExitStack() as stack:
        database = Database(path, busy_timeout_seconds=config.database.busy_timeout_seconds)
        stack.callback(database.close)
        stack.enter_context(run_lock(path, "reset", now))
        policy = Policy.from_config(config.retention)
        catalog = Catalog(database, policy, zone_named(config.database.timezone))
        catalog.add_columns()
        ledger = Ledger(database)
        ledger.create_tables()
        copy = path.with_name(f"{path.name}.before-reset-{now.astimezone():%Y%m%dT%H%M%S}")
        database.copy_to(copy)
        details = {"copy": printable(str(copy))}

        def work(connection: Connection) -> tuple[int, int]:
            ledger.add_audit(
                connection, job_id="", action="reset", bytes_freed=0, user=caller(), now=system_clock()
            )
            done = catalog.mark_all_uncleaned(connection), ledger.clear_log(connection)
            plugins.audit([AuditEntry(now, caller(), "reset", details)])  # if it fails, nothing is committed
            return done

        jobs, lines = database.write(work)
        try:
            database.vacuum()
        except StoreError as error:  # it only saves space, and the web interface goes first
            click.echo(f"[WARNING] {error}", err=True)
    if as_json:
        click.echo(json.dumps({"jobs": jobs, "log_lines": lines, "copy": str(copy)}, indent=2))
    else:
        click.echo(f"{jobs} jobs count as not cleaned again, {lines} lines of cleanup_log are gone")
        click.echo(f"The database as it was: {printable(str(copy))}")
