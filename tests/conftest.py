"""What many tests share: a real job store to work on, its jobs made old, the command line as a process."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest
from hypothesis import settings
from sqlalchemy import Connection, Dialect, Engine, Table, event
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.compiler import DDLCompiler

from eemtcleanupd.hookspecs import PROJECT
from tests.commands import Commands
from tests.postgres import Server, running_server

# On a busy machine, any example can take long.
settings.register_profile("without a deadline", settings(), deadline=None)
settings.load_profile("without a deadline")

MEMORY = Path("/dev/shm")
MEMORY_BYTES = 4 << 30
"""What a run of all tests needs at most, with room to spare."""
EXAMPLE = Path(__file__).parents[1] / "examples" / "eemtcleanupd-ntfy"
SAMPLE = Path(__file__).parent / "data" / "eemt-sample"


class Aged(Protocol):
    """Makes the jobs of a fresh sample old and returns the store."""

    def __call__(self, store: Path, days: float, zone: tzinfo | None = None) -> Path: ...


class RunCli(Protocol):
    """Runs ``python -m eemtcleanupd ARGS`` to its end."""

    def __call__(
        self, *args: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]: ...


def settle(place: Path, moment: datetime) -> None:
    """Make all folders and zips at and below a place look as if nothing wrote there since a moment."""
    for path in (place, *place.rglob("*")):
        if path.is_dir() or path.suffix == ".zip":
            os.utime(path, (moment.timestamp(), moment.timestamp()))


@contextmanager
def immutable(*paths: Path, root: Path) -> Iterator[None]:
    """Let not even root remove, change or rename some paths, which are below ``root`` now and at the end."""
    if shutil.which("chattr") is None:
        pytest.skip("needs chattr")
    if subprocess.run(["chattr", "+i", *paths], capture_output=True, check=False).returncode:
        pytest.skip("this filesystem has no immutable files, or this user cannot make them")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-R", "-i", root], check=False, stderr=subprocess.DEVNULL)


def disk_bytes(place: Path) -> int:
    """Return what a file or folder takes on its disk."""
    return sum(path.lstat().st_blocks * 512 for path in (place, *place.rglob("*")))


def data_of(store: Path) -> int:
    """Return what the data of all jobs takes; the filesystem decides what a folder or small file takes."""
    return sum(disk_bytes(path) for root in ("uploads", "results") for path in (store / root).glob("[!.]*"))


def in_kb(size: int) -> str:
    return f"{size / 1024:g} KB"


def pytest_configure(config: pytest.Config) -> None:
    """Put the tests' folders into memory where there is enough, because most tests wait for the disk."""
    config.addinivalue_line("markers", "fast_parameters(number): all but the first parameters are slow")
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK):
        state = os.statvfs(MEMORY)
        free = min(state.f_bavail * state.f_frsize, psutil.virtual_memory().available)
        if free >= MEMORY_BYTES and not state.f_flag & os.ST_NOEXEC:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Start one worker more than there are cores, which has one when the test of another waits."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.fixture(scope="session")
def httpserver_listen_address() -> tuple[str, int]:
    """Where test servers listen; the default is ``localhost``, which not every machine knows."""
    return "127.0.0.1", 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.geteuid() != 0 and item.get_closest_marker("root") is not None:
        pytest.skip("needs root")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start slow tests first, so that no worker has one left when the others are done."""
    fast: Counter[object] = Counter()
    for item in items:
        if (marker := item.get_closest_marker("fast_parameters")) is not None:
            function = item.location[0], item.location[2].partition("[")[0]
            fast[function] += 1
            if fast[function] > marker.args[0]:
                item.add_marker(pytest.mark.slow)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # groups are started before


@pytest.fixture(scope="module", autouse=True)
def _quick_garbage_collections() -> None:
    """Leave out what the tests so far have imported, and look rarely; a daemon looks after each run."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(scope="session", autouse=True)
def _unchanged_packages_are_read_once() -> Iterator[None]:
    """Keep what each folder of packages has: each loading of a configuration reads hundreds of files."""
    search = importlib.metadata.entry_points

    @cache
    def packages(folder: str, _modified: int) -> list[tuple[str, list[importlib.metadata.EntryPoint]]]:
        found = importlib.metadata.distributions(path=[folder])
        return [(each.name.lower(), list(each.entry_points.select(group=PROJECT))) for each in found]

    def entry_points(**options: str) -> Any:
        if options != {"group": PROJECT}:
            return search(**options)
        found: dict[str, list[importlib.metadata.EntryPoint]] = {}
        for folder in filter(os.path.isdir, sys.path):
            for name, entries in packages(folder, os.stat(folder).st_mtime_ns):
                found.setdefault(name, entries)
        return importlib.metadata.EntryPoints(chain.from_iterable(found.values()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "entry_points", entry_points)
        yield


@pytest.fixture(scope="session", autouse=True)
def _tables_are_compiled_once() -> None:
    tables: dict[tuple[type, Table], str] = {}

    @compiles(CreateTable)
    def create(element: CreateTable, compiler: DDLCompiler, **options: Any) -> str:
        key = type(compiler), element.element
        if key not in tables:
            tables[key] = compiler.visit_create_table(element, **options)  # type: ignore[no-untyped-call]
        return tables[key]


@pytest.fixture(scope="session", autouse=True)
def shared_statements() -> Iterator[Callable[[Connection], None]]:
    """Keep compiled statements for all databases of a kind; a program has a single one."""
    dialects: dict[type, Dialect] = {}
    compiled: dict[Any, Any] = {}

    def share(connection: Connection) -> None:
        connection.dialect = dialects.setdefault(type(connection.dialect), connection.dialect)
        connection.execution_options(compiled_cache=compiled)

    event.listen(Engine, "engine_connect", share)
    yield share
    event.remove(Engine, "engine_connect", share)


@pytest.fixture
def own_statements(shared_statements: Callable[[Connection], None]) -> Iterator[None]:
    """Let each database compile its statements itself, as in a program."""
    event.remove(Engine, "engine_connect", shared_statements)
    yield
    event.listen(Engine, "engine_connect", shared_statements)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server, one for each process of the tests that needs one."""
    with running_server() as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Server) -> Iterator[Server]:
    """A PostgreSQL server, whose databases are empty after the test."""
    server = replace(postgres_server, used=[])
    yield server
    server.empty()


@pytest.fixture
def sample_store(tmp_path: Path) -> Path:
    """A writable copy of the sample job store; its jobs are as old as they are (see ``aged``)."""
    store = tmp_path / "store"
    shutil.copytree(SAMPLE, store)
    for path in (store, *store.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    settle(store, datetime.now(UTC) - timedelta(days=1))
    return store


@pytest.fixture
def aged() -> Aged:
    """Shift the sample's times so that its last job ended ``days`` before now, each in its own form.

    ``created_at`` stays UTC with a space; the others stay local (``zone``, default the machine's) with a
    ``T``.  The sample was written where local time was UTC.
    """

    def age(store: Path, days: float, zone: tzinfo | None = None) -> Path:
        with closing(sqlite3.connect(store / "jobs.db")) as connection, connection:
            (last,) = connection.execute("SELECT max(completed_at) FROM jobs").fetchone()
            elapsed = datetime.now(UTC) - datetime.fromisoformat(last).replace(tzinfo=UTC)
            # Whole seconds, so that the microseconds stay what they are.
            shift = timedelta(seconds=int((elapsed - timedelta(days=days)).total_seconds()))

            def utc(value: str | None) -> str | None:
                return value and str(datetime.fromisoformat(value) + shift)

            def local(value: str | None) -> str | None:
                if value is None:
                    return None
                moment = datetime.fromisoformat(value).replace(tzinfo=UTC) + shift
                return moment.astimezone(zone).replace(tzinfo=None).isoformat()

            connection.create_function("utc", 1, utc)
            connection.create_function("local", 1, local)
            connection.execute(
                "UPDATE jobs SET created_at = utc(created_at),"
                " started_at = local(started_at), completed_at = local(completed_at)"
            )
        return store

    return age


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    commands = Commands()
    yield commands
    commands.close()


@pytest.fixture
def run_cli(tmp_path: Path, commands: Commands) -> RunCli:
    """Run a command in a process of its own, which sees of our environment only PATH and TZ."""

    def run(
        *args: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return commands.run(
            list(map(str, args)), env={"HOME": str(tmp_path), **(env or {})}, cwd=cwd or tmp_path
        )

    return run


@pytest.fixture(scope="session")
def example_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed from a copy of its own folder."""
    source = tmp_path_factory.mktemp("source") / "eemtcleanupd-ntfy"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", site, source], check=True, capture_output=True, timeout=100)
    return site
