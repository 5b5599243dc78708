"""``eemtcleanupd clean``: run one cleanup in the foreground."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import click

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cli.common import (
    DATABASE,
    Duration,
    caller,
    config_option,
    emitter,
    examples,
    load_config,
    log_file,
    quiet_option,
    setting_option,
)
from eemtcleanupd.cli.stdio import SafeStdout
from eemtcleanupd.errors import ReportError
from eemtcleanupd.formatting import parse_size

if TYPE_CHECKING:
    from eemtcleanupd.events import Emit, Event, RunReport

_DEFAULT_THRESHOLD = "10G"


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(
    epilog=examples(
        "clean --dry-run",
        "clean --success-retention 3d --failed-retention 6h",
        "clean --skip-large --size-threshold 50G",
        "--config /srv/eemt/cleanup_config.yaml clean --quiet",
    )
)
@config_option
@setting_option(DATABASE, "--db-path", "FILE", "Path of the job database (default ./jobs.db).")
@setting_option("paths.uploads", "--uploads-dir", "DIR", "Folder of uploaded DEMs (default ./uploads).")
@setting_option("paths.results", "--results-dir", "DIR", "Folder of job outputs (default ./results).")
@setting_option("paths.temp", "--temp-dir", "DIR", "Folder of working files (default ./temp).")
@setting_option(
    "retention.successful_jobs.hours",
    "--success-retention",
    "DURATION",
    "How long to keep the data of successful jobs, such as 7d; a number means hours (default 168).",
    type=Duration(),
)
@setting_option(
    "retention.failed_jobs.hours",
    "--failed-retention",
    "DURATION",
    "How long to keep the data of failed jobs, such as 12h; a number means hours (default 12).",
    type=Duration(),
)
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be deleted without changing anything.")
@quiet_option
@click.option("-v", "--verbose", is_flag=True, help="Print every job, including kept jobs.")
@click.option("--debug", is_flag=True, help="Print every SQL statement and file operation with its duration.")
@setting_option(
    "performance.parallel_delete",
    "--parallel",
    None,
    "Delete in parallel (default).",
    is_flag=True,
    default=None,
)
@setting_option(
    "performance.max_workers", "--workers", "N", "Number of parallel workers (default 4).", type=int
)
@setting_option(
    "performance.batch_size", "--batch-size", "N", "Number of jobs planned at a time (default 100).", type=int
)
@click.option(
    "--skip-large",
    is_flag=True,
    help="Clean only small jobs now, and leave jobs above the size threshold for another run.",
)
@click.option(
    "--size-threshold", type=_Size(), metavar="SIZE", help="Size threshold for --skip-large (default 10G)."
)
@click.option(
    "--force", is_flag=True, help="Override the clock and job-fraction breakers; all other rules still apply."
)
@click.option(
    "--allow-orphans",
    is_flag=True,
    help="Delete orphans even if they are more than safety.max_orphan_fraction of a folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the run as one JSON document.")
def clean(  # noqa: PLR0917  (click passes them by name)
    dry_run: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
    skip_large: bool,
    size_threshold: int | None,
    force: bool,
    allow_orphans: bool,
    as_json: bool,
) -> int:
    """Delete the data of expired jobs now.  All job metadata is kept."""
    if size_threshold is not None and not skip_large:
        raise click.UsageError("--size-threshold has no effect without --skip-large. Give both options.")
    if quiet and (verbose or debug):
        raise click.UsageError("--quiet contradicts --verbose and --debug. Give only one of them.")
    loaded = load_config()
    from eemtcleanupd.cleanup import Progress, RunRequest, clean as run_clean
    from eemtcleanupd.daemon.status import published_progress
    from eemtcleanupd.deletion.ballast import release_initial_ballast
    from eemtcleanupd.events import Warned
    from eemtcleanupd.logs import log_memory, write_event
    from eemtcleanupd.plugins import Plugins
    from eemtcleanupd.store.address import StoreAddress

    config = loaded.config
    threshold = parse_size(_DEFAULT_THRESHOLD) if size_threshold is None else size_threshold
    request = RunRequest(
        user=caller(),
        dry_run=dry_run or config.dry_run,
        force=force,
        allow_orphans=allow_orphans,
        skip_larger_than_bytes=threshold if skip_large else None,
    )
    with ExitStack() as stack:
        if debug:
            _debug_to_stderr()
        listener, finish = _output(as_json=as_json, quiet=quiet, verbose=verbose or debug)
        listeners, warnings = [listener], list(loaded.warnings)
        if request.dry_run:  # writes nothing at all, so it has no log
            listeners.append(log_memory)
        else:
            if (warning := release_initial_ballast(config)) is not None:
                warnings.append(warning)
            handler = stack.enter_context(log_file(config))
            # If a crontab redirects stdout to the log file, write each line once, in the log's format.
            is_redirected = not as_json and _stdout_is_log_file(handler)
            listeners = [write_event] if is_redirected else [*listeners, write_event]
        plugins = Plugins(config)
        durable = not request.dry_run
        emit = stack.enter_context(emitter(config, plugins, listeners, durable=durable))
        for warning in warnings:
            emit(Warned(warning))
        stop = StopFlag()
        received_signal = stack.enter_context(_stop_on_signals(stop))
        if request.dry_run:
            listeners.append(_stop_on_closed_stdout(stop))
        progress = Progress()
        if not (as_json or quiet or debug) and sys.stderr.isatty():
            from eemtcleanupd.cli.progress import bar

            stack.enter_context(bar(progress))
        gc.freeze()
        gc.enable()
        if not request.dry_run:
            stack.enter_context(published_progress(StoreAddress.of(config), request.trigger, progress))
        report = run_clean(config, request, emit=emit, stop=stop, progress=progress, hooks=plugins)
    finish()
    return _exit_code(report, received_signal())


def _exit_code(report: RunReport, signal_number: int | None) -> int:
    """Return 0 (done), 1 (done with errors), or 128 + the signal that interrupted the run (signal(7))."""
    from eemtcleanupd.model import Outcome

    if report.outcome is Outcome.INTERRUPTED and signal_number is not None:
        return 128 + signal_number
    return 1 if report.errors else 0


def _output(*, as_json: bool, quiet: bool, verbose: bool) -> tuple[Emit, Callable[[], None]]:
    """Return the function that receives events for stdout, and the function to call at the end."""
    from eemtcleanupd.cli.console import ConsoleReporter
    from eemtcleanupd.report.run_document import RunDocument

    if as_json:
        document = RunDocument()

        def finish() -> None:
            try:
                document.write(sys.stdout)
            except OSError as error:
                raise ReportError(
                    f"The run finished and was recorded, but its JSON output was lost: {error.strerror}. "
                    "See `eemtcleanupd history`."
                ) from error
            finally:
                document.close()

        return document, finish
    return ConsoleReporter(quiet=quiet, verbose=verbose), lambda: None


def _stdout_is_log_file(handler: logging.FileHandler) -> bool:
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), os.stat(handler.baseFilename))  # noqa: PTH116
    except (OSError, ValueError):
        return False


def _stop_on_closed_stdout(stop: StopFlag) -> Emit:
    """Return a listener that stops a dry run once its output is lost (``clean --dry-run | head``)."""
    stdout = click.get_current_context().find_object(SafeStdout)

    def emit(_: Event) -> None:
        if stdout is not None and stdout.error is not None:
            stop.set()

    return emit


def _debug_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    # The console prints the run's events itself; this handler adds only the debug records.
    handler.addFilter(lambda record: record.levelno <= logging.DEBUG)
    logger = logging.getLogger("eemtcleanupd")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)


@contextmanager
def _stop_on_signals(stop: StopFlag) -> Iterator[Callable[[], int | None]]:
    """Make SIGINT and SIGTERM stop the run gracefully; a second signal ends the process at once."""
    received: list[int] = []

    def request_stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        stop.set()
        for stop_signal in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop_signal, signal.SIG_DFL)

    before = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
