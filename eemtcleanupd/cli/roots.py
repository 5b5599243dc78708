"""``eemtcleanupd roots``: show the folders that the last run used, or accept moved ones."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import click

from eemtcleanupd.cli.common import (
    echo_line,
    examples,
    json_option,
    load_config,
    print_json,
    store_options,
    write_audit,
)
from eemtcleanupd.formatting import printable


@click.command(epilog=examples("roots", "roots --accept"))
@store_options
@click.option("--accept", is_flag=True, help="Accept the current folders.")
@json_option
def roots(accept: bool, as_json: bool) -> None:
    """Show the job store's folders as the last run recorded them, or accept the present ones.

    A run refuses a folder that differs from the last run's folder: an unmounted disk looks like an empty
    folder.  It also refuses folders of another job database, and a job table that lost more than half of its
    rows.  Otherwise files would look like orphans.  Use --accept if the change was intended.
    """
    config = load_config().config
    from eemtcleanupd.cleanup.session import job_table, open_database, open_roots, record_roots
    from eemtcleanupd.clock import system_clock
    from eemtcleanupd.deletion.trash import Trash
    from eemtcleanupd.plugins import Plugins
    from eemtcleanupd.store.ledger import Ledger
    from eemtcleanupd.store.lock import run_lock

    with ExitStack() as stack:
        database = open_database(config, stack)
        ledger = Ledger(database)
        if accept:
            stack.enter_context(run_lock(database, "roots --accept", system_clock()))
            ledger.create_tables()
            opened = open_roots(config, None, stack)
            trashes = {name: Trash(root) for name, root in opened.items()}
            for trash in trashes.values():
                stack.callback(trash.close)
            paths = {str(name): printable(str(root.path)) for name, root in opened.items()}
            plugins = Plugins(config)
            plugins.expect_audit(ledger)
            write_audit(plugins, "roots_accepted", **paths)
            ledger.forget_roots()  # the trashes get new markers, so that no other ledger owns them too
            record_roots(ledger, opened, trashes, job_table(database, config).count())
            ledger.move_audit_anchor(partial(plugins.anchor_audit, ledger))
        known = ledger.roots() if ledger.exists() else {}
    if as_json:
        names = ("name", "path", "device", "inode")
        print_json([{name: getattr(record, name) for name in names} for record in known.values()])
        return
    for record in known.values():
        place = f"{printable(record.path)} (device {record.device}, inode {record.inode})"
        echo_line(f"{record.name:<8} {place}", indent=9)
    if not known:
        click.echo("There are no runs yet.")
