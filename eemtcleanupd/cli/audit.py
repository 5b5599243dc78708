"""``eemtcleanupd audit``: verify the audit log."""

from __future__ import annotations

import click

from eemtcleanupd.cli.common import config_option, json_option, load_config, print_json
from eemtcleanupd.errors import AuditError, ConfigError
from eemtcleanupd.formatting import plural, printable


@click.group()
def audit() -> None:
    """Verify the audit log."""


@audit.command()
@config_option
@json_option
def verify(as_json: bool) -> int:
    """Find lines of the audit log that were changed, removed, inserted or reordered.

    Exits with 0 if the log is intact, with 1 if it is not, and with 3 if it cannot be read.
    """
    settings = getattr(load_config().config.notifications, "audit_log", None)
    if settings is None or not settings.enabled:
        raise ConfigError("The audit log is disabled. Set notifications.audit_log.enabled to true.")
    from eemtcleanupd.notifiers.audit_log import verify as verify_log

    try:
        result = verify_log(settings.path)
    except OSError as error:
        raise AuditError(f"Audit log {settings.path} cannot be read: {error.strerror}.") from error
    if as_json:
        findings = [{"file": str(f.file), "line": f.line, "finding": f.message} for f in result.errors]
        document = {"intact": not findings, "lines": result.lines, "findings": findings}
        print_json({**document, "files": [str(file) for file in result.files]})
    else:
        for finding in result.errors:
            click.echo(f"{printable(str(finding.file))}:{finding.line}: {finding.message}")
        verdict = "is not intact" if result.errors else "is intact"
        click.echo(f"The audit log ({result.lines} lines in {plural(len(result.files), 'file')}) {verdict}.")
    return 1 if result.errors else 0
