"""Check what cleanup needs, and report problems with their fixes.  Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from eemtcleanupd import remedies
from eemtcleanupd.cleanup.other_databases import OtherDatabase, other_databases
from eemtcleanupd.cleanup.session import open_database
from eemtcleanupd.config import Config, Loaded
from eemtcleanupd.deletion.dask_executor import missing_package
from eemtcleanupd.doctor import findings
from eemtcleanupd.doctor.findings import Finding, Result
from eemtcleanupd.doctor.service_checks import ServiceChecks
from eemtcleanupd.doctor.store_checks import StoreChecks
from eemtcleanupd.errors import CleanupError, ConfigError, NoDatabaseError
from eemtcleanupd.formatting import printable, quoted
from eemtcleanupd.plugins import Plugins
from eemtcleanupd.privileges import User
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.owner import risk_of_root, user_of_run
from eemtcleanupd.web.supervisor import require_usable


def examine(loaded: Loaded, now: datetime) -> Iterator[Finding]:
    """Yield the findings of all checks, as soon as each is known; ``now`` is aware."""
    for result in _check_configuration(loaded):
        yield Finding("configuration", *result)
    yield Finding("user", *_check_user(loaded))
    if (user := _other_user_of_service(loaded.config)) is not None:
        yield Finding("user", *_check_as(user, loaded))
        return
    with ExitStack() as stack:
        try:
            database = open_database(loaded.config, stack, 1)
        except NoDatabaseError as error:
            yield Finding("database", *findings.problem(str(error), _use_other(loaded)))
            return
        except CleanupError as error:
            yield Finding("database", *findings.problem(str(error)))
            return
        store = StoreChecks(loaded, database, now, stack)
        service = ServiceChecks(loaded, database, now)
        for name, check in (*store.all(), *service.all()):
            try:
                for result in check():
                    yield Finding(name, *result)
            except NoDatabaseError as error:
                yield Finding(name, *findings.problem(str(error)))
                return
            except CleanupError as error:
                yield Finding(name, *findings.problem(str(error)))


def _check_configuration(loaded: Loaded) -> Iterator[Result]:
    missing = missing_package(loaded.config.performance.executor)
    for warning in (*loaded.warnings, *filter(None, [missing])):
        yield findings.warning(warning)
    if not loaded.warnings:
        yield findings.ok(
            f"Using {loaded.file}." if loaded.file else "There is no configuration file. Using defaults."
        )
    try:
        Plugins(loaded.config)
        require_usable(loaded.config)
    except ConfigError as error:
        yield findings.problem(str(error))
    if loaded.config.dry_run:
        yield findings.warning(
            "dry_run is true, so runs delete nothing.",
            remedies.set_key(loaded, "dry_run", "false"),
        )


def _use_other(loaded: Loaded) -> str:
    """Return how to use the most likely other job database of which this process can see the file."""
    found = [other for other in other_databases(loaded.config) if Path(other.path).is_file()]
    if not found:
        return ""
    store = loaded.config.paths.results.parent

    def likelihood(other: OtherDatabase) -> tuple[bool, bool, datetime]:
        return other.is_of_store, Path(other.path).is_relative_to(store), other.changed_at

    likely = max(found, key=likelihood)
    return f"If {printable(likely.path)} is right: {_set_database(loaded, likely.path)}"


def _set_database(loaded: Loaded, path: str) -> str:
    return remedies.set_key(loaded, "paths.database", printable(path))


def _check_user(loaded: Loaded) -> Result:
    if (risk := risk_of_root(loaded.config)) is not None:
        return findings.warning(risk, remedies.set_key(loaded, "run_as", "owner"))
    return findings.ok(user_of_run())


def _other_user_of_service(config: Config) -> User | None:
    """Return who owns the lock of the store's daemon, None if that is this user or no daemon ever ran."""
    try:
        owner = StoreAddress.of(config).own_file("daemon.lock").lstat().st_uid
    except OSError:
        return None
    return None if owner == os.geteuid() else User.of(owner)


def _check_as(service: User, loaded: Loaded) -> Result:
    return findings.problem(
        f"The daemon works as user {service}, and this command as user {User.of(os.geteuid())}. The other "
        "checks depend on the user, so they were skipped.",
        remedies.run(remedies.program(loaded, f"doctor --run-as {quoted(service.name)}")),
    )
