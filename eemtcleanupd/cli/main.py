"""The command group: loads a command's module only when it is used, and turns errors into exit codes."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
import threading
from typing import Final, NoReturn

import click

from eemtcleanupd import __version__
from eemtcleanupd.cli import stdio as output
from eemtcleanupd.errors import CleanupError

COMMANDS: Final = {
    "audit": ("eemtcleanupd.cli.audit", "Look after the audit log."),
    "backup": ("eemtcleanupd.cli.backup", "List, verify or restore the backups of jobs."),
    "check": (
        "eemtcleanupd.cli.check",
        "Explain the effective configuration and where each value came from.",
    ),
    "clean": ("eemtcleanupd.cli.clean", "Delete the data of expired jobs, once, now."),
    "demo": ("eemtcleanupd.cli.demo", "Build a demo job store in a folder."),
    "doctor": ("eemtcleanupd.cli.doctor", "Say what keeps it from cleaning, and what to do."),
    "history": ("eemtcleanupd.cli.history", "List past runs, or show one."),
    "hold": ("eemtcleanupd.cli.hold", "Never clean a job, until a time or for ever."),
    "notify-test": ("eemtcleanupd.cli.notify_test", "Send a test to the notifiers and show their answers."),
    "reload": ("eemtcleanupd.cli.daemon_control", "Let the daemon read its configuration again."),
    "report": ("eemtcleanupd.cli.report", "Report what was cleaned, what is held, when the disk is full."),
    "rerun": ("eemtcleanupd.cli.rerun", "Submit a job again, from its preserved configuration."),
    "reset": ("eemtcleanupd.cli.reset", "Forget which jobs were cleaned, after a copy of the database."),
    "roots": ("eemtcleanupd.cli.roots", "Show the folders of the last run, or accept new ones."),
    "release": ("eemtcleanupd.cli.hold", "Take a hold off a job."),
    "run": ("eemtcleanupd.cli.run", "Run the daemon: clean on schedule until SIGTERM."),
    "status": ("eemtcleanupd.cli.status", "Show how the daemon and the job store are."),
    "token": ("eemtcleanupd.cli.token", "Add, list or revoke the tokens of the HTTP interface."),
    "trash": ("eemtcleanupd.cli.trash", "List, restore or purge what waits in the trash."),
    "holds": ("eemtcleanupd.cli.hold", "List the jobs that are held."),
    "stop": ("eemtcleanupd.cli.daemon_control", "Stop the daemon in order."),
}
"""Command name to the module that defines a click command of that name, and its line in ``--help``."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called (``--help`` needs none of them)."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names of all commands, in order."""
        return sorted(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, None when there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="eemtcleanupd")
def cli() -> None:
    """Free disk space in an EEMT job store: delete what expired, keep all metadata, tell what was done."""


def main() -> None:
    """Run the command line; every error of ours ends as one message and its exit code."""
    gc.disable()  # collecting while libraries load is a tenth of the start-up; long commands enable it
    # Of pydantic, not ours: they would see every value of the configuration, and looking for them takes time.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if os.environ.get("NO_COLOR"):  # https://no-color.org
        cli.context_settings["color"] = False
    stdout = output.install()
    _leave(stdout.end(_code(stdout)))


def _code(stdout: output.SafeStdout) -> int:
    """Run the command and return its exit code."""
    try:
        code = cli.main(prog_name="eemtcleanupd", standalone_mode=False, obj=stdout)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except CleanupError as error:
        if "--debug" in sys.argv:
            raise
        click.echo(f"eemtcleanupd: error: {error}", err=True)
        return error.exit_code
    return code if isinstance(code, int) else 0


def _leave(code: int) -> NoReturn:
    """End the process without taking its memory apart piece by piece, which takes longer than a small job."""
    if threading.active_count() == 1:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()  # noqa: SLF001
        os._exit(code)
    sys.exit(code)
