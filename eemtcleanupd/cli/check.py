"""``eemtcleanupd check``: show the effective configuration and where each value comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eemtcleanupd.cli.common import (
    config_option,
    echo_line,
    examples,
    json_option,
    load_config,
    print_json,
    working_folder,
)
from eemtcleanupd.errors import BreakerError, CleanupError, NoDatabaseError
from eemtcleanupd.formatting import printable

if TYPE_CHECKING:
    from eemtcleanupd.config import Config, Loaded, Setting
    from eemtcleanupd.events import DatabaseSummary

_MAX_VALUE_WIDTH = 44
_BUSY_SECONDS = 1.0


@click.command(epilog=examples("check", "check --changed", "--config new.yaml check"))
@config_option
@json_option
@click.option(
    "--schema", is_flag=True, help="Print the JSON Schema of configuration files (for editors) and exit."
)
@click.option("--changed", is_flag=True, help="Show only keys whose value differs from the default.")
def check(as_json: bool, schema: bool, changed: bool) -> int:
    """Show every configuration key, its value and the origin of the value, and the job database in use.

    Makes the checks that the daemon makes at start, and changes nothing.  Lists every problem of an invalid
    configuration with file and line.  Exits with 2 if the configuration is invalid or a requirement is
    missing.  Exits with 3 if the job database, a folder or the audit log is unusable.  Exits with 5 if the
    job database is probably not the one of the web interface.
    """
    if schema:
        from eemtcleanupd.plugins import schema as all_keys

        click.echo(json.dumps(all_keys().json_schema(), indent=2, ensure_ascii=False))
        return 0
    loaded = load_config()
    from eemtcleanupd.policy.retention import Policy
    from eemtcleanupd.privileges import User
    from eemtcleanupd.store.address import StoreAddress

    settings = _changed_settings(loaded) if changed else list(loaded.settings())
    policy = str(Policy.from_config(loaded.config.retention))
    warnings = list(_warnings(loaded))
    unusable = _configuration_problem(loaded.config)
    database, problem = _examine_database(loaded.config)
    file = StoreAddress.of(loaded.config).file
    # The web interface might create its database after this check.
    is_missing = isinstance(problem, NoDatabaseError) and file is not None and not file.exists()
    missing = problem if is_missing else None
    problems = [each for each in (unusable, problem) if each is not None and each is not missing]
    if as_json:
        print_json(
            {
                "file": None if loaded.file is None else str(loaded.file),
                "policy": policy,
                "user": User.of(os.geteuid()).name,
                "database": {
                    **(database.document() if database else {"path": str(StoreAddress.of(loaded.config))}),
                    "error": None if problem is None else str(problem),
                },
                "settings": [
                    {"key": setting.key, "value": setting.value, "from": setting.origin}
                    for setting in settings
                ],
                "warnings": warnings,
                "problems": [str(each) for each in problems],
            }
        )
    else:
        _print_table(loaded, settings, policy)
        for warning in [*warnings, *([] if missing is None else [missing])]:
            echo_line(click.style("[WARNING]", fg="yellow") + f" {warning}")
        if database is not None:
            echo_line(str(database))
        for each in problems:
            echo_line(click.style("[ERROR]", fg="red") + f" {each}")
        click.echo(
            "The configuration is valid."
            if unusable is None
            else "The daemon would refuse this configuration."
        )
    return problems[0].exit_code if problems else 0


def _warnings(loaded: Loaded) -> Iterator[str]:
    from eemtcleanupd.deletion.dask_executor import missing_package

    yield from loaded.warnings
    if (warning := missing_package(loaded.config.performance.executor)) is not None:
        yield warning


def _configuration_problem(config: Config) -> CleanupError | None:
    """Return why a daemon would refuse a configuration although it is valid."""
    from eemtcleanupd.logs import require_writable
    from eemtcleanupd.notifiers import audit_log
    from eemtcleanupd.plugins import Plugins
    from eemtcleanupd.web.supervisor import require_usable

    try:
        Plugins(config)
        require_usable(config)
        require_writable(config.logging.file)
        if config.notifications.audit_log.enabled:
            audit_log.require_writable(config.notifications.audit_log.path)
    except CleanupError as error:
        return error
    return None


def _changed_settings(loaded: Loaded) -> list[Setting]:
    """Return the keys that a source sets to another value than the default."""
    from eemtcleanupd.config.loading import DEFAULT

    folder = working_folder() if loaded.file is None else loaded.file.parent
    return [
        setting
        for setting in loaded.settings()
        if setting.origin != DEFAULT and not _has_default(loaded.config, setting.key, folder)
    ]


def _has_default(config: Config, key: str, folder: Path) -> bool:
    from eemtcleanupd.config.types import DatabaseAddress

    *blocks, name = key.split(".")
    block: Any = config
    for part in blocks:
        block = getattr(block, part)
    value, default = (
        getattr(block, name),
        type(block).model_fields[name].get_default(call_default_factory=True),
    )
    if isinstance(value, Path | DatabaseAddress) and default is not None:
        return str(value) == str(folder / default)
    return bool(value == default)


def _examine_database(config: Config) -> tuple[DatabaseSummary | None, CleanupError | None]:
    """Return what the job database contains if it can be read, and why a run would refuse it."""
    from eemtcleanupd.cleanup.session import (
        check_store,
        job_table,
        job_table_problem,
        open_database,
        open_session,
    )
    from eemtcleanupd.policy.retention import Policy

    summary = None
    policy = Policy.from_config(config.retention)
    with ExitStack() as stack:
        try:
            database = open_database(config, stack, _BUSY_SECONDS)
            jobs = job_table(database, config, policy)
            summary = jobs.summary()
            check_store(config, _BUSY_SECONDS)
            problem = job_table_problem(open_session(config, database, jobs, policy, stack), summary.jobs)
        except CleanupError as error:
            return summary, error
    return summary, None if problem is None else BreakerError(f"Runs are refused: {problem}")


def _print_table(loaded: Loaded, settings: list[Setting], policy: str) -> None:
    from eemtcleanupd.store.owner import user_of_run

    file = "none, defaults are used" if loaded.file is None else printable(str(loaded.file))
    echo_line(f"Configuration file: {file}", indent=2)
    click.echo()
    if not settings:
        click.echo("All keys have their default values.")
    rows = [("key", "value", "from")]
    rows += [(setting.key, _text(setting.value), setting.origin) for setting in settings]
    key_width = max(len(key) for key, _, _ in rows)
    value_width = min(_MAX_VALUE_WIDTH, max(len(value) for _, value, _ in rows))
    for key, value, origin in rows if settings else ():
        echo_line(f"{key:<{key_width}}  {value:<{value_width}}  {origin}", indent=4)
    click.echo()
    echo_line(printable(policy))
    echo_line(user_of_run())


def _text(value: object) -> str:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return printable(", ".join(value)) or "none"
    return "none" if value is None or value == [] else json.dumps(value)
