"""``eemtcleanupd notify-test``: does what is told arrive?"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eemtcleanupd.cli.common import caller, config_option, load_config
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import AuditError
from eemtcleanupd.model import Outcome, Trigger

if TYPE_CHECKING:
    from eemtcleanupd.config import Config
    from eemtcleanupd.delivery import DeliveryResult
    from eemtcleanupd.events import RunFinished, StorageState
    from eemtcleanupd.plugins import Plugins

_SECONDS = 120.0


@click.command("notify-test")
@click.argument("name", required=False)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def notify_test(name: str | None, config_file: Path | None, as_json: bool) -> int:
    """Send a test, marked as one, to the notifier NAME or to all, and show what each answers.

    Takes the way that a real report takes, with one attempt.  Ends with 1 when one did not take it.
    """
    config = load_config(config_file).config
    from eemtcleanupd.delivery import Dispatcher
    from eemtcleanupd.plugins import Plugins

    plugins = Plugins(config)
    names = [each for each in plugins.names if _can_be_tested(plugins, each)]
    if name is not None and name not in names:
        known = ", ".join(names) or "none"
        raise click.UsageError(
            f"{name} is no notifier that is switched on; switched on are: {known} (see notifications.{name})"
        )
    wanted = [name] if name is not None else names
    delivery = Dispatcher(None, system_clock, single_attempt=True)
    delivery.configure(plugins.subset(wanted))
    try:
        delivery.publish(_test(config))
        delivery.drain(_SECONDS)
        answers = delivery.last_results()
    finally:
        delivery.close()
    results = {each: _result(plugins, each, answers.get(each)) for each in wanted}
    if as_json:
        document = {each: {"ok": ok, "answer": words} for each, (ok, words) in results.items()}
        click.echo(json.dumps(document, indent=2))
    else:
        for each, (ok, words) in results.items():
            mark = click.style("ok", fg="green") if ok else click.style("FAILED", fg="red")
            click.echo(f"{each}: {mark}: {words}")
        if not results:
            click.echo("No notifier is switched on (see notifications: in the configuration)")
    return 0 if all(ok for ok, _ in results.values()) else 1


def _can_be_tested(plugins: Plugins, name: str) -> bool:
    return plugins.hook_for(name, "run_finished") is not None or plugins.hook_for(name, "audit") is not None


def _result(plugins: Plugins, name: str, answer: DeliveryResult | None) -> tuple[bool, str]:
    if answer is not None:
        return answer.error is None, answer.error or answer.message
    if plugins.hook_for(name, "run_finished") is not None:
        return False, "no answer in time"
    from eemtcleanupd.events import AuditEntry

    try:
        plugins.subset([name]).audit([AuditEntry(system_clock(), caller(), "notify_test", {})])
    except AuditError as error:
        return False, plugins.redact(name, str(error))
    return True, "written"


def _test(config: Config) -> RunFinished:
    from eemtcleanupd.events import JobNote, JobTally, RunFinished, RunReport

    now = system_clock()
    return RunFinished(
        RunReport(
            run_id=f"{now:%Y%m%dT%H%M%S}-test",
            dry_run=False,
            trigger=Trigger.TEST,
            user=caller(),
            started_at=now,
            finished_at=now,
            outcome=Outcome.SUCCESS,
            successful=JobTally(1, 1024**3),
            host=socket.gethostname(),
            biggest=(JobNote("a-job-that-does-not-exist", "completed", 1024**3),),
            storage=_storage(config),
            is_test=True,
        )
    )


def _storage(config: Config) -> StorageState | None:
    """Return what the ledger knows; a test goes out all the same where there is none yet."""
    from eemtcleanupd.errors import CleanupError
    from eemtcleanupd.store.address import StoreAddress
    from eemtcleanupd.store.ledger import Ledger

    try:
        database = StoreAddress.of(config).open()
        try:
            ledger = Ledger(database)
            return ledger.storage_state(system_clock(), 0, 0) if ledger.exists() else None
        finally:
            database.close()
    except CleanupError:
        return None
