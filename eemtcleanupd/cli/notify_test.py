"""``eemtcleanupd notify-test``: check that notifications arrive."""

from __future__ import annotations

import socket
from difflib import get_close_matches
from typing import TYPE_CHECKING

import click

from eemtcleanupd.cli import completion
from eemtcleanupd.cli.common import (
    caller,
    config_option,
    echo_line,
    examples,
    json_option,
    load_config,
    open_ledger,
    print_json,
    write_audit,
)
from eemtcleanupd.clock import system_clock
from eemtcleanupd.config.plugin_settings import NotifierSettings
from eemtcleanupd.errors import AuditError, CleanupError
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Outcome, Trigger

if TYPE_CHECKING:
    from eemtcleanupd.config import Config
    from eemtcleanupd.delivery import DeliveryResult
    from eemtcleanupd.events import RunFinished, StorageState
    from eemtcleanupd.plugins import Plugins

_TIMEOUT_SECONDS = 120.0


@click.command("notify-test", epilog=examples("notify-test", "notify-test slack"))
@click.argument("name", required=False, shell_complete=completion.notifiers)
@config_option
@json_option
def notify_test(name: str | None, as_json: bool) -> int:
    """Send a test notification to the notifier NAME, or to all, and show the responses.

    The message is a report that is marked as a test; it is not retried.  Exits with 1 if a notifier fails.
    """
    config = load_config().config
    from eemtcleanupd.delivery import Dispatcher
    from eemtcleanupd.plugins import Plugins

    plugins = Plugins(config)
    enabled = [
        notifier
        for notifier in plugins.names
        if any(plugins.hook_for(notifier, hook) is not None for hook in ("run_finished", "audit"))
    ]
    if name is not None and name not in enabled:
        raise click.UsageError(_not_enabled(config, name, enabled))
    selected = [name] if name is not None else enabled
    dispatcher = Dispatcher(None, system_clock, single_attempt=True)
    dispatcher.configure(plugins.subset(selected))
    try:
        dispatcher.publish(_test_event(config))
        dispatcher.drain(_TIMEOUT_SECONDS)
        deliveries = dispatcher.last_results()
    finally:
        dispatcher.close()
    results = {notifier: _result(plugins, notifier, deliveries.get(notifier)) for notifier in selected}
    if as_json:
        print_json({notifier: {"ok": ok, "answer": text} for notifier, (ok, text) in results.items()})
    else:
        for notifier, (ok, text) in results.items():
            mark = click.style("ok", fg="green") if ok else click.style("FAILED", fg="red")
            echo_line(f"{notifier}: {mark}: {text}", indent=2)
        if not results:
            click.echo("No notifier is enabled. See notifications in the configuration.")
    return 0 if all(ok for ok, _ in results.values()) else 1


def _not_enabled(config: Config, name: str, enabled: list[str]) -> str:
    """Return the message for a notifier that cannot be tested, with the one that was probably meant."""
    others = f"Enabled notifiers: {', '.join(enabled) or 'none'}."
    known = [channel for channel, block in config.notifications if isinstance(block, NotifierSettings)]
    if name in known:
        return (
            f"Notifier {name} is not enabled. Set notifications.{name}.enabled to true, with the other keys "
            f"that it needs. {others}"
        )
    near = get_close_matches(name, enabled, 1) or get_close_matches(name, known, 1)
    meant = f" Did you mean {near[0]}?" if near else ""
    return f"There is no notifier {printable(name)}.{meant} {others}"


def _result(plugins: Plugins, name: str, delivery: DeliveryResult | None) -> tuple[bool, str]:
    if delivery is not None:
        return delivery.error is None, delivery.error or delivery.message
    if plugins.hook_for(name, "run_finished") is not None:
        return False, "no response in time"
    try:
        write_audit(plugins.subset([name]), "notify_test")
    except AuditError as error:
        return False, plugins.redact(name, str(error))
    return True, "written"


def _test_event(config: Config) -> RunFinished:
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
            storage=_storage_state(config),
            is_test=True,
        )
    )


def _storage_state(config: Config) -> StorageState | None:
    """Return the storage state of the ledger, or None if there is none: a test needs no database."""
    try:
        with open_ledger(config) as ledger:
            return ledger.storage_state(system_clock(), 0, 0) if ledger.exists() else None
    except CleanupError:
        return None
