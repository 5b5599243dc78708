"""``eemtcleanupd audit``: the audit log."""

from __future__ import annotations

import json
from pathlib import Path

import click

from eemtcleanupd.cli.common import config_option, load_config
from eemtcleanupd.errors import AuditError, ConfigError
from eemtcleanupd.formatting import printable


@click.group()
def audit() -> None:
    """Look after the audit log."""


@audit.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(config_file: Path | None, as_json: bool) -> int:
    """Find lines of the audit log that were changed, removed, inserted or reordered.

    Ends with 0 when the chain is whole, with 1 when it is not, and with 3 when the log cannot be read.
    """
    settings = getattr(load_config(config_file).config.notifications, "audit_log", None)
    if settings is None or not settings.enabled:
        raise ConfigError("there is no audit log: notifications.audit_log.enabled is false")
    from eemtcleanupd.notifiers.audit_log import verify as verify_log

    try:
        found = verify_log(settings.path)
    except OSError as error:
        raise AuditError(f"the audit log {settings.path} cannot be read: {error.strerror}") from error
    if as_json:
        findings = [{"file": str(f.file), "line": f.line, "finding": f.message} for f in found.errors]
        document = {"intact": not findings, "lines": found.lines, "findings": findings}
        click.echo(json.dumps({**document, "files": [str(file) for file in found.files]}, indent=2))
    else:
        for finding in found.errors:
            click.echo(f"{printable(str(finding.file))}:{finding.line}: {finding.message}")
        files = f"{len(found.files)} file{'' if len(found.files) == 1 else 's'}"
        verdict = "is not intact" if found.errors else "is intact"
        click.echo(f"The audit log of {found.lines} lines in {files} {verdict}")
    return 1 if found.errors else 0
