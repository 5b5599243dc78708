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
    from sqlalchemy import Connection  # noqa: PLC0415  (late: --help needs none of it)

    from eemtcleanupd.events import AuditEntry  # noqa: PLC0415
    from eemtcleanupd.plugins import PluginSet  # noqa: PLC0415
    from eemtcleanupd.policy.retention import Policy  # noqa: PLC0415
    from eemtcleanupd.store.address import Location  # noqa: PLC0415
    from eemtcleanupd.store.history import AuditLine  # noqa: PLC0415
    from eemtcleanupd.store.jobs import Catalog  # noqa: PLC0415
    from eemtcleanupd.store.ledger import Ledger  # noqa: PLC0415
    from eemtcleanupd.store.lock import run_lock  # noqa: PLC0415
    from eemtcleanupd.store.timestamps import zone_named  # noqa: PLC0415

    now = system_clock()
    plugins = PluginSet(config)
    with ExitStack() as stack:
        database = Location.of(config).open()
        stack.callback(database.close)
        stack.enter_context(run_lock(database, "reset", now))
        policy = Policy.from_config(config.retention)
        catalog = Catalog(database, policy, zone_named(config.database.timezone))
        catalog.add_columns()
        ledger = Ledger(database)
        ledger.create_tables()
        copy = database.keep_before_reset(catalog.id_column, now)
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
