"""``eemtcleanupd doctor``: find what prevents cleanup."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import click

from eemtcleanupd.cli.common import (
    echo_line,
    examples,
    json_option,
    load_config,
    print_json,
    quiet_option,
    store_options,
    write_audit,
)
from eemtcleanupd.clock import system_clock


@click.command(epilog=examples("doctor", "doctor --fix"))
@click.option(
    "--fix", is_flag=True, help="First add missing columns and tables to the job database, as a run does."
)
@quiet_option
@store_options
@json_option
def doctor(fix: bool, quiet: bool, as_json: bool) -> int:
    """Check everything that cleanup needs; report problems and how to fix them.

    Changes nothing without --fix.
    """
    loaded = load_config()
    if fix:
        from eemtcleanupd.cleanup.session import prepare_database
        from eemtcleanupd.plugins import Plugins

        prepare_database(loaded.config, partial(write_audit, Plugins(loaded.config), "database_prepared"))
    from eemtcleanupd.doctor.examine import examine
    from eemtcleanupd.doctor.findings import FindingLevel

    marks = {
        FindingLevel.OK: click.style("OK  ", fg="green"),
        FindingLevel.WARNING: click.style("WARN", fg="yellow"),
        FindingLevel.PROBLEM: click.style("FAIL", fg="red"),
    }
    findings = []
    for finding in examine(loaded, system_clock()):
        findings.append(finding)
        if as_json or (quiet and finding.level is FindingLevel.OK):
            continue
        echo_line(f"{marks[finding.level]}  {finding.check}: {finding.message}", indent=6)
        if finding.advice:
            echo_line(f"      -> {finding.advice}", indent=9)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    return 1 if any(finding.level is FindingLevel.PROBLEM for finding in findings) else 0
