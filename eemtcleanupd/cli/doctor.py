"""``eemtcleanupd doctor``: why does it not clean?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from eemtcleanupd.cli.common import load_config, store_options
from eemtcleanupd.clock import system_clock


@click.command()
@store_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(config_file: Path | None, db_path: str | None, as_json: bool) -> int:
    """Look at all that cleaning needs, and say what is wrong and what to do; changes nothing."""
    loaded = load_config(config_file, {"paths.database": (db_path, "--db-path")})
    from eemtcleanupd.doctor import FindingLevel, examine

    marks = {
        FindingLevel.OK: ("ok", "green"),
        FindingLevel.WARNING: ("look", "yellow"),
        FindingLevel.PROBLEM: ("WRONG", "red"),
    }
    findings = []
    for finding in examine(loaded, system_clock()):
        findings.append(finding)
        if as_json:
            continue
        mark, color = marks[finding.level]
        click.echo(f"{click.style(f'{mark:5}', fg=color)}  {finding.check}: {finding.message}")
        if finding.advice:
            click.echo(f"       -> {finding.advice}")
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    return 1 if any(finding.level is FindingLevel.PROBLEM for finding in findings) else 0
