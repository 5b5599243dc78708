"""``eemtcleanupd demo``: create a job store for trying out a cleanup."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from eemtcleanupd.cli.common import become_owner_of, examples, json_option, print_json
from eemtcleanupd.clock import system_clock
from eemtcleanupd.demo import MIN_JOBS, build
from eemtcleanupd.formatting import human_size, plural


@click.command(epilog=examples("demo demo-store", "demo demo-store --jobs 40"))
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--jobs", type=click.IntRange(min=MIN_JOBS), default=400, show_default=True, help="Number of jobs."
)
@click.option(
    "--seed", type=int, default=1, show_default=True, help="Random seed; the same seed makes the same store."
)
@json_option
def demo(directory: Path, jobs: int, seed: int, as_json: bool) -> None:
    """Create a demo job store in DIR, which must be new or empty."""
    become_owner_of(directory)
    summary = build(directory, jobs=jobs, seed=seed, now=system_clock())
    config = shlex.quote(str(directory / "cleanup_config.yaml"))
    commands = [f"eemtcleanupd clean --config {config} --dry-run", f"eemtcleanupd clean --config {config}"]
    if as_json:
        print_json(
            {
                "directory": str(directory),
                "jobs": dict(summary.jobs),
                "files": summary.files,
                "size_bytes": summary.size_bytes,
                "next": commands,
            }
        )
        return
    by_status = ", ".join(f"{count:,} {status}" for status, count in sorted(summary.jobs.items()))
    total = plural(sum(summary.jobs.values()), "job")
    click.echo(f"Created a demo job store in {directory}: {total} ({by_status}),")
    click.echo(f"{plural(summary.files, 'file')}, {human_size(summary.size_bytes)}.  Next:")
    for command in commands:
        click.echo(f"  {command}")
