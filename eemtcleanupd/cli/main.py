"""Run the command line: import commands on demand and turn errors into exit codes."""

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
from eemtcleanupd.cli import stdio
from eemtcleanupd.cli.groups import CommandGroup
from eemtcleanupd.errors import CleanupError, StoreError
from eemtcleanupd.privileges import became

COMMANDS: Final = {
    "acknowledge": ("eemtcleanupd.cli.acknowledge", "Silence the warning that runs print about a kept job."),
    "audit": ("eemtcleanupd.cli.audit", "Verify the audit log."),
    "backup": ("eemtcleanupd.cli.backup", "List, verify or restore backups of jobs."),
    "check": ("eemtcleanupd.cli.check", "Show the effective configuration and the origin of each value."),
    "clean": ("eemtcleanupd.cli.clean", "Delete the data of expired jobs now."),
    "demo": ("eemtcleanupd.cli.demo", "Create a demo job store in a folder."),
    "doctor": ("eemtcleanupd.cli.doctor", "Find what prevents cleanup and how to fix it."),
    "history": ("eemtcleanupd.cli.history", "List past runs, or show one run."),
    "hold": ("eemtcleanupd.cli.hold", "Protect a job from cleanup, permanently or until a time."),
    "holds": ("eemtcleanupd.cli.hold", "List held jobs."),
    "notify-test": ("eemtcleanupd.cli.notify_test", "Send a test notification and show the responses."),
    "release": ("eemtcleanupd.cli.hold", "Remove the hold from a job."),
    "reload": ("eemtcleanupd.cli.daemon_control", "Make the daemon reload its configuration."),
    "report": ("eemtcleanupd.cli.report", "Report cleaned data, storage usage and the disk-full forecast."),
    "rerun": ("eemtcleanupd.cli.rerun", "Submit a job again with its stored parameters."),
    "reset": ("eemtcleanupd.cli.reset", "Copy the database, then mark all jobs as not cleaned."),
    "roots": ("eemtcleanupd.cli.roots", "Show the folders of the last run, or accept new ones."),
    "run": ("eemtcleanupd.cli.run", "Run the daemon: clean on schedule until SIGTERM."),
    "status": ("eemtcleanupd.cli.status", "Show the status of the daemon and the job store."),
    "stop": ("eemtcleanupd.cli.daemon_control", "Stop the daemon and wait until it has exited."),
    "token": ("eemtcleanupd.cli.token", "Add, list or revoke tokens of the HTTP interface."),
    "trash": ("eemtcleanupd.cli.trash", "List, restore or purge the trash."),
    "why": ("eemtcleanupd.cli.why", "Show whether a job's data is kept or deleted, why, and until when."),
}
"""Each command name with the module that defines its click command, and its line in ``--help``."""


class LazyGroup(CommandGroup):
    """A command group that imports a command's module only when the command is called."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names of all commands, sorted."""
        return sorted(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None if there is no command of that name."""
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
@click.version_option(__version__, "-V", "--version", prog_name="eemtcleanupd")
def cli() -> None:
    """Free disk space in an EEMT job store: delete expired job data, keep all metadata, report every step."""


def main() -> None:
    """Run the command line; print each :class:`CleanupError` as one message and exit with its code."""
    gc.disable()  # collecting during imports takes a tenth of the start-up time; long commands enable it
    # pydantic's own plugins would see every configuration value, and searching for them takes time.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if os.environ.get("NO_COLOR"):  # https://no-color.org
        cli.context_settings["color"] = False
    stdout = stdio.install()
    _exit(stdout.end(_run_command(stdout)))


def _run_command(stdout: stdio.SafeStdout) -> int:
    try:
        code = _run(stdout)
    except click.exceptions.Abort:
        _print_json_error("The command was interrupted.", 130)
        return 130
    except click.ClickException as error:
        _print_json_error(error.format_message(), error.exit_code)
        error.show()
        return error.exit_code
    except CleanupError as error:
        _print_json_error(str(error), error.exit_code)
        if "--debug" in sys.argv:
            raise
        click.echo(f"eemtcleanupd: error: {error}", err=True)
        if "ermission denied" in str(error) and (user := became()) is not None:
            click.echo(
                f"This command works as user {user}, the owner of the job store. Earlier runs might have "
                "left files owned by root. List them with `eemtcleanupd doctor`.",
                err=True,
            )
        return error.exit_code
    return code if isinstance(code, int) else 0


def _run(stdout: stdio.SafeStdout) -> object:
    try:
        return cli.main(prog_name="eemtcleanupd", standalone_mode=False, obj=stdout)
    except RuntimeError as error:
        if str(error) != "can't start new thread":
            raise
        raise StoreError(
            "The process cannot start another thread. Raise its limit of processes (ulimit -u, or TasksMax "
            "of its service), or end other processes of the user."
        ) from error


def _print_json_error(message: str, exit_code: int) -> None:
    """Print an error as JSON too if the command line asks for JSON, even if it cannot be parsed."""
    if "--json" in sys.argv[1:]:
        from eemtcleanupd.cli.common import print_json

        print_json({"success": False, "error": message, "exit_code": exit_code})


def _exit(code: int) -> NoReturn:
    """Exit without freeing memory object by object, which takes longer than cleaning a small job."""
    if all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()  # noqa: SLF001
        os._exit(code)
    sys.exit(code)
