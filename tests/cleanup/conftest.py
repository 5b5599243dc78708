"""A small job store that tests fill as they need, and a run of it inside the test's process."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.config import Config
from eemtcleanupd.events import Event, RunReport
from eemtcleanupd.model import Trigger
from eemtcleanupd.plugins import load
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.database import Database
from tests.conftest import settle
from tests.postgres import session

FAST_ON_POSTGRES = 8
"""So many tests of a module are not slow; the first ones test its basic behaviour."""
NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    workflow_type TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    started_at TIMESTAMP,
    completed_at TIMESTAMP,
    parameters TEXT,
    dem_filename TEXT,
    error_message TEXT,
    progress INTEGER DEFAULT 0
)
"""


@dataclass
class JobStore:
    """A job store in a folder; the database's zone is UTC, the present is NOW unless a test moves it.

    The database is a SQLite file in the folder unless ``url`` names one on a server.
    """

    path: Path
    now: datetime = NOW
    events: list[Event] = field(default_factory=list)
    url: str | None = None
    opened: list[Database] = field(default_factory=list)
    schema: str = SCHEMA
    config_file: Path | None = None

    def __post_init__(self) -> None:
        for name in ("results", "uploads", "temp"):
            (self.path / name).mkdir(parents=True)
        self.sql(self.schema)

    def sql(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        if self.url is not None:
            cursor = session(self.url).execute(statement.replace("?", "%s"), values or None)
            found = cursor.fetchall() if cursor.description else []
            # As the web interface, and so SQLite, writes a time.
            return [tuple(v.isoformat() if isinstance(v, datetime) else v for v in row) for row in found]
        connection = sqlite3.connect(self.path / "jobs.db")
        try:
            connection.execute("PRAGMA synchronous = OFF")  # only for what the test writes
            rows = connection.execute(statement, values).fetchall()
            connection.commit()
            return rows
        finally:
            connection.close()

    def job(
        self,
        job_id: object,
        status: str = "completed",
        *,
        days: float | None = 10,
        dem: object = None,
        files: int = 2,
        workflow: str = "sol",
    ) -> None:
        """Add a job that ended some days ago (and took an hour), with so many files in its results."""
        ended = None if days is None else (self.now - timedelta(days=days)).replace(tzinfo=None).isoformat()
        created = self.now - timedelta(days=days or 0, hours=1)
        self.sql(
            "INSERT INTO jobs (id, workflow_type, status, created_at, completed_at, dem_filename)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            job_id,
            workflow,
            status,
            f"{created:%Y-%m-%d %H:%M:%S}",
            ended,
            dem,
        )
        if files:
            folder = self.path / "results" / str(job_id) / "global"
            folder.mkdir(parents=True)
            for number in range(files):
                (folder / f"day_{number}.tif").write_bytes(b"x" * 5000)
            settle(self.results(str(job_id)), self.now - timedelta(days=days or 0, minutes=1))

    def wait(self, **span: float) -> None:
        """Move the clock on, from the time at which the filesystem noted the latest changes."""
        self.now = datetime.now(UTC) + timedelta(**span)

    def upload(self, name: str) -> Path:
        file = self.path / "uploads" / name
        file.write_bytes(b"dem" * 1000)
        return file

    def results(self, job_id: str) -> Path:
        return self.path / "results" / job_id

    def config(self, **options: object) -> Config:
        given = {key.replace("__", "."): (value, key) for key, value in options.items()}
        given.setdefault("database.timezone", ("UTC", "test"))
        given.setdefault("safety.min_idle_minutes", (0, "test"))  # the tests' clock is not the filesystem's
        given.setdefault("safety.ballast", ("64 KB", "test"))  # filling it takes the time of some queries
        if self.url is not None:
            given.setdefault("paths.database", (self.url, "test"))
        return load(self.config_file, environ={}, options=given, cwd=self.path).config

    def run(
        self,
        *,
        dry_run: bool = False,
        force: bool = False,
        trigger: Trigger = Trigger.MANUAL,
        skip_larger_than_bytes: int | None = None,
        stop: StopFlag | None = None,
        on_event: Callable[[Event], None] | None = None,
        **options: object,
    ) -> RunReport:
        """Clean the store; ``options`` are configuration keys with ``__`` for the dot."""
        self.events = []

        def emit(event: Event) -> None:
            self.events.append(event)
            if on_event is not None:
                on_event(event)

        request = RunRequest(
            user="tester",
            trigger=trigger,
            dry_run=dry_run,
            force=force,
            skip_larger_than_bytes=skip_larger_than_bytes,
        )
        return clean(self.config(**options), request, emit=emit, stop=stop, clock=lambda: self.now)

    def request(
        self,
        trigger: Trigger = Trigger.MANUAL,
        *,
        allow_orphans: bool = False,
        forget_missing: bool = False,
        **options: object,
    ) -> RunReport:
        """Clean the store on a special request."""
        request = RunRequest("tester", trigger, allow_orphans=allow_orphans, forget_missing=forget_missing)
        return clean(self.config(**options), request, emit=self.events.append, clock=lambda: self.now)

    def open(self) -> Database:
        """Open the database, until the test is over."""
        self.opened.append(StoreAddress.of(self.config()).open(5))
        return self.opened[-1]

    def content(self) -> object:
        """Return all that the database holds, for comparing; whose turn it was last is not in it."""
        if self.url is None:
            return (self.path / "jobs.db").read_bytes()
        return {name: sorted(map(str, self.sql(f"SELECT * FROM {name}"))) for name in self.tables()}

    def tables(self) -> list[object]:
        """Return the names of all tables of a database on a server but that of the locks."""
        named = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'cleanup_locks'"
        return [name for (name,) in self.sql(named)]

    def columns(self) -> list[object]:
        """Return the names of the columns of table jobs, in order."""
        if self.url is None:
            return [row[1] for row in self.sql("PRAGMA table_info(jobs)")]
        named = "SELECT column_name FROM information_schema.columns WHERE table_name = 'jobs'"
        return [row[0] for row in self.sql(f"{named} ORDER BY ordinal_position")]

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def cleaned(self) -> set[object]:
        return {row[0] for row in self.sql("SELECT id FROM jobs WHERE data_cleaned_at IS NOT NULL")}

    def trash(self) -> list[str]:
        """Return what lies in the trash of all roots, without the marker."""
        return [
            name
            for root in ("results", "uploads", "temp")
            for name in os.listdir(self.path / root / ".eemtcleanupd-trash")
            if not name.startswith(".")
        ]

    def snapshot(self) -> dict[str, bytes | None]:
        """Return every path of the roots with its content, for comparing before and after."""
        return {
            str(path.relative_to(self.path)): path.read_bytes() if path.is_file() else None
            for root in ("results", "uploads", "temp")
            for path in sorted((self.path / root).rglob("*"))
        }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of some modules on both databases, unless they are about SQLite."""
    of_both = metafunc.module.__name__.rpartition(".")[2] in {
        "test_run",
        "test_reset_rows",
        "test_left_behind",
        "test_recovery",
        "test_inventory",
        "test_restore",
        "test_orphans",
        "test_refused_records",
        "test_job_state",
    }
    if of_both and "backend" in metafunc.fixturenames:
        is_sqlite = metafunc.definition.get_closest_marker("sqlite") is not None
        metafunc.parametrize("backend", ["sqlite"] if is_sqlite else ["sqlite", "postgres"], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of each module, try only the first tests fast on PostgreSQL, each with the first of its parameters."""
    tried: dict[object, set[object]] = {}
    for item in items:
        if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            continue
        if item.callspec.params.get("backend") == "postgres":
            functions = tried.setdefault(item.module, set())
            if item.function in functions or len(functions) == FAST_ON_POSTGRES:
                item.add_marker(pytest.mark.slow)
            else:
                functions.add(item.function)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """Where the job database of ``store`` is."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture
def store(tmp_path: Path, backend: str, request: pytest.FixtureRequest) -> Iterator[JobStore]:
    url = request.getfixturevalue("postgres").create() if backend == "postgres" else None
    store = JobStore(tmp_path / "store", url=url)
    yield store
    for database in store.opened:
        database.close()
