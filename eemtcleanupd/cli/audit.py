"""``eemtcleanupd audit``: verify the audit log."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eemtcleanupd.cli.common import (
    config_option,
    examples,
    json_option,
    load_config,
    open_ledger,
    print_json,
    quiet_option,
)
from eemtcleanupd.cli.groups import CommandGroup
from eemtcleanupd.errors import AuditError, ConfigError, StoreError
from eemtcleanupd.formatting import plural, printable

if TYPE_CHECKING:
    from eemtcleanupd.config import Config
    from eemtcleanupd.events import AuditAnchor
    from eemtcleanupd.notifiers.audit_verify import Verification


@click.group(cls=CommandGroup)
def audit() -> None:
    """Verify the audit log."""


@audit.command(epilog=examples("audit verify", "audit verify --quiet"))
@config_option
@quiet_option
@json_option
def verify(quiet: bool, as_json: bool) -> int:
    """Find lines of the audit log that were changed, removed, inserted or reordered.

    Also compares the log with its anchor in the job database, so that a truncated, deleted or replaced log is
    found.  Exits with 0 if the log is intact, with 1 if it is not, and with 3 if it or the database cannot be
    read.
    """
    config = load_config().config
    settings = getattr(config.notifications, "audit_log", None)
    if settings is None or not settings.enabled:
        raise ConfigError("The audit log is disabled. Set notifications.audit_log.enabled to true.")
    from eemtcleanupd.notifiers.audit_verify import verify as verify_log

    anchor, problem = _anchor(config, settings.path)
    try:
        result = verify_log(settings.path, anchor)
    except OSError as error:
        raise AuditError(f"Audit log {settings.path} cannot be read: {error.strerror}.") from error
    if as_json:
        findings = [
            {"file": str(f.file), "line": f.line, "kind": f.kind, "finding": f.message} for f in result.errors
        ]
        print_json(
            {
                "intact": not findings and problem is None,
                "lines": result.lines,
                "findings": findings,
                "interrupted": [{"file": str(file), "line": line} for file, line in result.interrupted],
                "anchor": asdict(anchor) if anchor is not None and anchor.seq else None,
                "anchor_error": None if problem is None else str(problem),
                "files": [str(file) for file in result.files],
            }
        )
    else:
        _print(result, problem, quiet=quiet)
    return 1 if result.errors else 0 if problem is None else problem.exit_code


def _anchor(config: Config, log: Path) -> tuple[AuditAnchor | None, StoreError | None]:
    """Return the anchor of the log in the ledger, and why it is not readable; a new ledger has line 0."""
    from eemtcleanupd.notifiers.audit_chain import START

    try:
        with open_ledger(config) as ledger:
            return ledger.find_audit_anchor(log) or START, None
    except StoreError as error:
        return None, error


def _print(result: Verification, problem: StoreError | None, *, quiet: bool) -> None:
    for finding in result.errors:
        click.echo(f"{printable(str(finding.file))}:{finding.line}: {printable(finding.message)}")
    for file, line in () if quiet else result.interrupted:
        click.echo(f"{printable(str(file))}:{line}: incomplete, because a writer was interrupted (no error)")
    if problem is not None:
        click.echo(f"The log cannot be compared with its anchor. {problem}", err=True)
    if quiet and not result.errors:
        return
    verdict = "is not intact" if result.errors else "is intact"
    verdict += "" if problem is None else ", as far as its own lines show"
    lines, files = plural(result.lines, "line"), plural(len(result.files), "file")
    click.echo(f"The audit log ({lines} in {files}) {verdict}.")
