"""``eemtcleanupd report``: report cleaned data, storage usage and the disk-full forecast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eemtcleanupd.cli.common import echo_line, examples, load_config, store_options
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import ConfigError, ReportError
from eemtcleanupd.files import write_output
from eemtcleanupd.installation import add_extra

if TYPE_CHECKING:
    from eemtcleanupd.config import Config
    from eemtcleanupd.report.collect import Report


@click.command(
    epilog=examples("report", "report --format html --output report.html", "report --plot storage.png")
)
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also draw the storage trend to this file (.png or .svg).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON (same as --format json).")
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", "json", "html", "csv")),
    help="Format of the report (default text).",
)
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the report to this file instead of printing it.",
)
@click.option(
    "--biggest",
    type=click.IntRange(0, 1000),
    default=10,
    show_default=True,
    help="Number of the largest jobs to list.",
)
@click.option(
    "--what-if",
    is_flag=True,
    help="Compare retention periods instead: what each keeps and frees, and when the disk is full.",
)
@store_options
def report(  # noqa: PLR0917  (the options)
    plot: Path | None, as_json: bool, form: str | None, output: Path | None, biggest: int, what_if: bool
) -> None:
    """Report cleaned data, storage usage and the disk-full forecast.  Changes nothing."""
    if as_json and form not in {None, "json"}:
        raise click.UsageError(f"--json and --format {form} contradict each other. Give only one of them.")
    if what_if and form not in {None, "text", "json"}:
        raise click.UsageError(f"--what-if has no format {form}. Use text or json.")
    plot_format = None if plot is None else _plot_format(plot)
    config = load_config().config
    if what_if:
        _report_what_if(config, plot, plot_format, output, as_json=as_json or form == "json")
        return
    from eemtcleanupd.report.collect import gather

    document = gather(config, system_clock, biggest=biggest)
    _require_not_database(document.database, plot, output)
    text = _render(document, "json" if as_json else form or "text")
    _print(text, output, is_table=form in {None, "text"} and not as_json)
    if plot is not None and plot_format is not None:
        from eemtcleanupd.report.plots import picture

        history = document.history
        budget = None if document.budget is None else document.budget.max_bytes
        trend, disk_full = ((), None) if history is None else (history.trend, history.disk_full)
        _write(plot, picture(trend, plot_format, forecast=disk_full, budget=budget))


def _report_what_if(
    config: Config, plot: Path | None, plot_format: str | None, output: Path | None, *, as_json: bool
) -> None:
    from eemtcleanupd.plugins import Plugins
    from eemtcleanupd.report.what_if import as_document, as_text, compare_retention

    comparison = compare_retention(config, system_clock, Plugins(config))
    _require_not_database(comparison.database, plot, output)
    text = json.dumps(as_document(comparison), indent=2) + "\n" if as_json else as_text(comparison)
    _print(text, output, is_table=not as_json)
    if plot is not None and plot_format is not None:
        from eemtcleanupd.report.plots import what_if_picture

        _write(plot, what_if_picture(comparison.curves, plot_format))


def _require_not_database(database: str, *targets: Path | None) -> None:
    for target in targets:
        if target is not None and target.exists() and target.samefile(database):
            raise ConfigError(f"{target} is the job database. Choose another file.")


def _print(text: str, output: Path | None, *, is_table: bool) -> None:
    """Print or write a report; wrap a text report to the terminal width."""
    if output is not None:
        _write(output, text.encode())
    elif is_table:
        for line in text.splitlines():
            echo_line(line, indent=11)
    else:
        click.echo(text, nl=False)


def _plot_format(plot: Path) -> str:
    """Return the image format given by a file name's suffix, if it can be drawn."""
    from eemtcleanupd.report.plots import FORMS, can_draw

    suffix = plot.suffix.removeprefix(".").lower()
    if suffix not in FORMS:
        raise click.UsageError(
            f"--plot {plot}: the suffix must be {' or '.join(f'.{form}' for form in FORMS)}."
        )
    if not can_draw():
        raise ConfigError(f"--plot needs matplotlib, which is missing. {add_extra('plots')}")
    return suffix


def _render(report: Report, form: str) -> str:
    from eemtcleanupd.report import formats

    if form == "json":
        return json.dumps(formats.as_document(report), indent=2) + "\n"
    if form == "html":
        from eemtcleanupd.report.html import as_html

        return as_html(report)
    return formats.as_csv(report) if form == "csv" else formats.as_text(report)


def _write(path: Path, content: bytes) -> None:
    """Write a regular file atomically; write directly to a link, pipe or device such as ``/dev/stdout``."""
    try:
        write_output(path, content)
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error.strerror}.") from error
