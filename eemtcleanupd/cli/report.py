"""``eemtcleanupd report``: what was cleaned, what is held, and how long the disk will do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eemtcleanupd.cli.common import load_config, store_options
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import ConfigError, ReportError
from eemtcleanupd.files import write_atomic

if TYPE_CHECKING:
    from eemtcleanupd.report.collect import Report


@click.command()
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Draw the storage trend too (.png or .svg).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; the same as --format json.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", "json", "html", "csv")),
    help="The form of the report (text).",
)
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the report there instead of printing it.",
)
@click.option(
    "--biggest",
    type=click.IntRange(0, 1000),
    default=10,
    show_default=True,
    help="How many of the biggest jobs to name.",
)
@store_options
def report(  # noqa: PLR0917  (click passes them by name)
    plot: Path | None,
    as_json: bool,
    form: str | None,
    output: Path | None,
    biggest: int,
    config_file: Path | None,
    db_path: str | None,
) -> None:
    """Report what was cleaned, what is held, and when the disk is full.  Changes nothing."""
    if as_json and form not in {None, "json"}:
        raise click.UsageError(f"--json and --format {form} contradict each other: give one of them")
    drawn_as = None if plot is None else _form_of(plot)
    config = load_config(config_file, {"paths.database": (db_path, "--db-path")}).config
    from eemtcleanupd.report.collect import gather

    found = gather(config, system_clock, biggest=biggest)
    for target in (plot, output):
        if target is not None and target.exists() and target.samefile(found.database):
            raise ConfigError(f"{target} is the job database: name another file")
    text = _written(found, "json" if as_json else form or "text")
    if output is None:
        click.echo(text, nl=False)
    else:
        _write(output, text.encode())
    if plot is not None and drawn_as is not None:
        from eemtcleanupd.report.plots import picture

        history = found.history
        budget = None if found.budget is None else found.budget.max_bytes
        trend, full = ((), None) if history is None else (history.trend, history.full)
        _write(plot, picture(trend, drawn_as, forecast=full, budget=budget))


def _form_of(plot: Path) -> str:
    """Return the form of a picture by its file's ending, when there is what draws it."""
    from eemtcleanupd.report.plots import FORMS, can_draw

    form = plot.suffix.removeprefix(".").lower()
    if form not in FORMS:
        endings = " or ".join(f".{each}" for each in FORMS)
        raise click.UsageError(f"--plot {plot}: the ending says the form of the picture, {endings}")
    if not can_draw():
        raise ConfigError("--plot needs matplotlib: pip install 'eemtcleanupd[plots]'")
    return form


def _written(found: Report, form: str) -> str:
    from eemtcleanupd.report import formats

    match form:
        case "json":
            return json.dumps(formats.as_document(found), indent=2) + "\n"
        case "csv":
            return formats.as_csv(found)
        case "html":
            from eemtcleanupd.report.html import as_html

            return as_html(found)
        case _:
            return formats.as_text(found)


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; what is no regular file (a pipe, /dev/stdout) is written into.

    Raises:
        ReportError: it cannot be written.
    """
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_bytes(content)
            return
        write_atomic(path, content, mode=None)
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error.strerror}") from error
