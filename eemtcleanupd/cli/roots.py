"""``eemtcleanupd roots``: which folders the last run knew, and the operator's word that they moved."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import click

from eemtcleanupd.cli.common import caller, config_option, load_config
from eemtcleanupd.formatting import printable


@click.command()
@config_option
@click.option("--db-path", metavar="FILE", help="Path of the job database.")
@click.option("--accept", is_flag=True, help="The folders that are there now are the right ones.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def roots(config_file: Path | None, db_path: str | None, accept: bool, as_json: bool) -> None:
    """Show the folders of the job store as the last run knew them, or accept those that are there now.

    A run refuses a folder that is not the one of the last run, because an unmounted disk looks like an
    empty folder.  When a folder was moved or replaced on purpose, say so here.
    """
    config = load_config(config_file, {"paths.database": (db_path, "--db-path")}).config
    from eemtcleanupd.cleanup.session import open_roots, record_root
    from eemtcleanupd.clock import system_clock
    from eemtcleanupd.deletion.trash import Trash
    from eemtcleanupd.events import AuditEntry
    from eemtcleanupd.plugins import Plugins
    from eemtcleanupd.store.address import StoreAddress
    from eemtcleanupd.store.ledger import Ledger
    from eemtcleanupd.store.lock import run_lock

    with ExitStack() as stack:
        database = StoreAddress.of(config).open()
        stack.callback(database.close)
        ledger = Ledger(database)
        if accept:
            stack.enter_context(run_lock(database, "roots --accept", system_clock()))
            ledger.create_tables()
            records = []
            for root in open_roots(config, {}, stack).values():
                trash = Trash(root)
                stack.callback(trash.close)
                records.append(record_root(root, trash))
            audit = AuditEntry(
                system_clock(),
                caller(),
                "roots_accepted",
                {each.name: printable(each.path) for each in records},
            )
            Plugins(config).audit([audit])
            ledger.save_roots(records)
        known = ledger.roots() if ledger.exists() else {}
        if as_json:
            click.echo(
                json.dumps(
                    [
                        {"name": r.name, "path": r.path, "device": r.device, "inode": r.inode}
                        for r in known.values()
                    ],
                    indent=2,
                )
            )
            return
        for record in known.values():
            click.echo(f"{record.name:<8} {record.path} (device {record.device}, inode {record.inode})")
        if not known:
            click.echo("No run yet.")
