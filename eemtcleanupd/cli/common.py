"""Share options, configuration loading, ledger access and JSON output among the commands."""

from __future__ import annotations

import getpass
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from eemtcleanupd.abbreviations import complete
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import ConfigError, IdError, StoreError
from eemtcleanupd.formatting import parse_hours

if TYPE_CHECKING:
    from eemtcleanupd.config import Config, Loaded
    from eemtcleanupd.events import Emit, Event
    from eemtcleanupd.plugins import Plugins
    from eemtcleanupd.privileges import User
    from eemtcleanupd.store.address import StoreAddress
    from eemtcleanupd.store.ledger import Ledger

Command = TypeVar("Command", bound=Callable[..., Any])
Audit = Callable[..., None]
"""Writes an action and its details to the audit log."""

CONFIG_FILE: Final = "--config"
DATABASE: Final = "paths.database"
_DRAIN_SECONDS = 30.0
_GIVEN = f"{__name__}.given"


def setting_option(
    key: str, name: str, metavar: str | None, text: str, **attributes: Any
) -> Callable[[Command], Command]:
    """Return an option whose value :func:`load_config` uses for a key of the configuration."""

    def keep(context: click.Context, _: click.Parameter, value: object) -> None:
        if value is not None:
            context.meta.setdefault(_GIVEN, {})[key] = (value, name)

    return click.option(name, callback=keep, expose_value=False, metavar=metavar, help=text, **attributes)


def given(key: str) -> Any:
    """Return the value of an option of :func:`setting_option`, None if it was not given."""
    return _given().get(key, (None, ""))[0]


def _given() -> dict[str, tuple[Any, str]]:
    options: dict[str, tuple[Any, str]] = click.get_current_context().meta.get(_GIVEN, {})
    return options


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print only warnings and errors.")


yes_option = click.option(
    "--yes", is_flag=True, help="Skip the confirmation prompt. Required without a terminal."
)


class Duration(click.ParamType[float]):
    """A duration such as ``7d``, in hours; a plain number is a number of hours."""

    name = "duration"
    _MOST_HOURS = 1_000_000

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the hours, which can be negative."""
        try:
            hours = parse_hours(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if hours > self._MOST_HOURS:
            self.fail(f"{value} is too long. Use at most {self._MOST_HOURS:,} hours.", param, ctx)
        return hours


def config_option(command: Command) -> Command:
    """Add ``--config FILE`` and ``--run-as USER`` to a command that reads the configuration."""
    add_run_as = setting_option(
        "run_as", "--run-as", "USER", "User that a process of root becomes (default: the store's owner)."
    )
    add_file = setting_option(
        CONFIG_FILE,
        "--config",
        "FILE",
        "Configuration file (default: EEMT_CLEANUP_CONFIG, ./cleanup_config.yaml, "
        "/etc/eemtcleanupd/cleanup_config.yaml or built-in defaults).",
        type=click.Path(path_type=Path),
    )
    return add_file(add_run_as(command))


def store_options(command: Command) -> Command:
    """Add ``--config FILE`` and ``--db-path FILE`` to a command that needs only the database."""
    return config_option(setting_option(DATABASE, "--db-path", "FILE", "Path of the job database.")(command))


def print_json(document: object) -> None:
    """Print a document as indented JSON, with times in ISO 8601."""
    click.echo(json.dumps(document, indent=2, default=datetime.isoformat))


def examples(*commands: str) -> str:
    """Return the end of a command's ``--help``: example command lines, as they are."""
    return "\n".join(["\b", "Examples:", *(f"  eemtcleanupd {command}" for command in commands)])


def echo_line(text: str, *, indent: int = 0) -> None:
    """Print a line; on a terminal that is narrower, wrap it and indent what follows."""
    if sys.stdout.isatty():
        import shutil
        import textwrap

        width = max(shutil.get_terminal_size().columns, indent + 20)
        text = textwrap.fill(
            text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        )
    click.echo(text)


def load_config() -> Loaded:
    """Load the effective configuration, with the options of the command; then give up the rights of root.

    Whatever follows works as the owner of the job store.
    """
    loaded = config_reader()()
    give_up_root(loaded.config)
    return loaded


def config_reader() -> Callable[[], Loaded]:
    """Return a function that loads the effective configuration, with the options of the command.

    It reads another user's file with that user's rights, because the file can name any path for secrets and
    plugins.
    """
    from eemtcleanupd.config import find_file
    from eemtcleanupd.plugins import load

    cwd, named = working_folder(), given(CONFIG_FILE)
    file = config_file()
    if file is not None:
        become_owner_of(file)
    options = {key: value for key, value in _given().items() if key != CONFIG_FILE}
    return lambda: load(
        find_file(named, os.environ, cwd, earlier=file), environ=os.environ, options=options, cwd=cwd
    )


def config_file() -> Path | None:
    """Return the configuration file that the command reads, or None if there is none."""
    from eemtcleanupd.config import find_file

    return find_file(given(CONFIG_FILE), os.environ, working_folder())


def give_up_root(config: Config) -> None:
    """Become the owner of the job store if this process runs as root; see ``run_as``.

    Raises:
        ConfigError: ``run_as`` is impossible, or the new user cannot read this program.
    """
    from eemtcleanupd import privileges
    from eemtcleanupd.store.owner import risk_of_root, user_to_become

    user = user_to_become(config)
    if user is None:
        privileges.set_aside()
        if (risk := risk_of_root(config)) is not None:
            click.echo(f"[WARNING] {risk}", err=True)
        return
    _become(user)


def load_config_or_daemon() -> tuple[Config | ConfigError, StoreAddress]:
    """Load the configuration as :func:`load_config` does; return it with the address of its job store.

    A daemon continues when its configuration file becomes invalid.  If there is such a daemon, return why the
    file is invalid, and an address that is good only for the daemon's lock and status.

    Raises:
        ConfigError: the configuration is invalid, and no daemon on this host uses its file.
    """
    from eemtcleanupd.store.address import StoreAddress
    from eemtcleanupd.store.lock import open_daemon_locks

    # Root gives up its rights while it loads, and then does not see every process.
    locks = open_daemon_locks() if os.geteuid() == 0 else None
    try:
        config = load_config().config
    except ConfigError as error:
        return error, _find_daemon_of(error, open_daemon_locks() if locks is None else locks)
    return config, StoreAddress.of(config)


def _find_daemon_of(error: ConfigError, locks: list[Path]) -> StoreAddress:
    from eemtcleanupd.daemon.status import read_status
    from eemtcleanupd.store.address import StoreAddress
    from eemtcleanupd.store.lock import DAEMON_LOCK, find_daemon

    file = config_file()
    if file is None or not locks:
        raise error
    if len({path.lstat().st_uid for path in locks if os.path.lexists(path)}) == 1:
        become_owner_of(locks[0])
    found = []
    for path in locks:
        address = StoreAddress.of_own_file(path, DAEMON_LOCK)
        with suppress(StoreError):  # a file of another user
            status = None if find_daemon(address) is None else read_status(address)
            used = None if status is None else status.config_file
            if used is not None and os.path.realpath(used) == os.path.realpath(file):
                found.append(address)
    if len(found) != 1:
        raise error
    return found[0]


def become_owner_of(path: Path) -> None:
    """Become the user who can replace a path, or its nearest existing parent, unless ``--run-as`` is given.

    Nothing happens if this process does not run as root.
    """
    if os.geteuid() != 0 or given("run_as") is not None:
        return
    from eemtcleanupd.store.owner import owner_of

    place = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    owner = owner_of(place)
    if owner is not None and owner.uid != 0:
        _become(owner)


def _become(user: User) -> None:
    from eemtcleanupd import privileges

    try:
        privileges.become(user)
    except OSError as error:  # such as in a container without CAP_SETUID and CAP_SETGID
        raise ConfigError(
            f"Cannot switch from root to user {user}, the owner of the job store: {error.strerror}. "
            f"Run the command as {user}, or, if you trust {user}, with --run-as root."
        ) from error
    unreadable = next((path for path in {*sys.path, sys.executable} if _is_hidden(Path(path))), None)
    if unreadable is not None:
        raise ConfigError(
            f"This command works as user {user}, who cannot read {unreadable}. "
            "Install eemtcleanupd where every user can read it, or, if you trust that user, "
            "use --run-as root."
        )


def _is_hidden(path: Path) -> bool:
    """Return whether this process cannot read a part of the program, such as one below root's home."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(path, os.R_OK)


def working_folder() -> Path:
    """Return the folder that relative paths start from."""
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"The current folder cannot be read: {error.strerror}. Change to an existing folder."
        ) from error


@contextmanager
def open_ledger(config: Config) -> Iterator[Ledger]:
    """Open the ledger of the configured job store."""
    from eemtcleanupd.store.address import StoreAddress
    from eemtcleanupd.store.ledger import Ledger

    with closing(StoreAddress.of(config).open()) as database:
        yield Ledger(database)


def full_id(config: Config, given: str) -> str:
    """Complete an abbreviated job id for output; return it unchanged if it is unknown or ambiguous."""
    from eemtcleanupd.cleanup.session import find_job_id

    try:
        return find_job_id(config, given) or given
    except (IdError, StoreError):  # the answer is the same without it
        return given


def complete_among(config: Config, given: str, known: Mapping[str, str], noun: str) -> str | None:
    """Return the id among some jobs, such as the held ones, that a person means; see ``complete``.

    If ``given`` is the complete id of another job, return None, even if a known id starts with it.
    """
    from eemtcleanupd.cleanup.session import find_row

    if given not in known:
        with suppress(StoreError):
            if find_row(config, given) is not None:
                return None
    return complete(given, known, noun)


@contextmanager
def log_file(config: Config) -> Iterator[logging.FileHandler]:
    """Write this process's log to the configured file during the ``with`` block."""
    from eemtcleanupd.logs import log_to_file

    handler = log_to_file(
        config.logging.file,
        form=config.logging.format,
        level=config.logging.level,
        on_error=lambda message: click.echo(f"[WARNING] {message}", err=True),
    )
    with closing(handler):
        yield handler


@contextmanager
def emitter(
    config: Config, plugins: Plugins, listeners: Iterable[Callable[[Event], object]], *, durable: bool
) -> Iterator[Emit]:
    """Yield a function that sends events to the listeners, then to the notifiers.

    At the end, wait for pending notifications for a limited time.
    """
    from eemtcleanupd.daemon.status import next_run_of_daemon
    from eemtcleanupd.delivery import Dispatcher
    from eemtcleanupd.events import RunFailed, RunFinished
    from eemtcleanupd.store.address import StoreAddress

    address = StoreAddress.of(config)
    dispatcher = Dispatcher(address, system_clock)
    dispatcher.configure(plugins, durable=durable)

    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)
        if isinstance(event, RunFinished):
            event = RunFinished(replace(event.report, next_run_at=next_run_of_daemon(address)))
        elif isinstance(event, RunFailed):
            event = replace(event, next_run_at=next_run_of_daemon(address))
        dispatcher.publish(event)

    try:
        yield emit
    finally:
        if not dispatcher.drain(_DRAIN_SECONDS):
            click.echo(
                "[WARNING] Some notifications are still pending. The daemon or the next run sends them.",
                err=True,
            )
        for name, result in dispatcher.last_results().items():
            if result.error is not None:
                click.echo(f"[WARNING] Notifier {name}: {result.error}", err=True)
        dispatcher.close()


def confirm_destruction(what: str, question: str, *, yes: bool) -> None:
    """Let a person confirm what cannot be undone: with ``--yes``, or at a prompt on a terminal.

    Args:
        what: what happens, as a sentence.
        question: the question of the prompt.
        yes: whether ``--yes`` was given.

    Raises:
        UsageError: there is no terminal to ask on.
        Abort: the person declined.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what} Confirm it with --yes.")
    click.confirm(f"{what} {question}", abort=True, err=True)  # stdout can be JSON


def write_audit(plugins: Plugins, action: str, **details: object) -> None:
    """Write an action of the calling user to the audit log, or raise an AuditError."""
    from eemtcleanupd.events import AuditEntry

    plugins.audit([AuditEntry(system_clock(), caller(), action, details)])


@contextmanager
def open_audited(config: Config) -> Iterator[tuple[Ledger, Audit]]:
    """Open the ledger for a change by a person, with a function that writes the audit log beforehand.

    Afterwards, update the ledger's anchor to the last line written.
    """
    from eemtcleanupd.plugins import Plugins

    plugins = Plugins(config)
    with open_ledger(config) as ledger:
        plugins.expect_audit(ledger)
        yield ledger, partial(write_audit, plugins)
        ledger.move_audit_anchor(partial(plugins.anchor_audit, ledger))


def caller() -> str:
    """Return the login name of the user who runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a numeric user without an entry in passwd, as in many containers
        return str(os.getuid())
