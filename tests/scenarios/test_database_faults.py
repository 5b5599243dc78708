"""Whatever happens to the database: one clear error, nothing lost, and the next run goes on."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from eemtcleanupd.errors import StoreError
from eemtcleanupd.events import Event, JobCleaned, RunStarted
from eemtcleanupd.store.sqlite import SqliteDatabase
from tests.cleanup.conftest import JobStore
from tests.requirements import needs

LOCKED_SECONDS = float(os.environ.get("STRESS_LOCKED_SECONDS", "0.5"))


@pytest.fixture
def filled(store: JobStore) -> JobStore:
    store.job("old")
    store.run()
    for number in range(5):
        store.job(f"due{number}")
    store.job("live", "running", days=None)
    return store


def data(store: JobStore) -> dict[str, bytes | None]:
    """Return what lies in the store, in its place or in the trash, by the last parts of its path."""
    return {"/".join(path.split("/")[-3:]): content for path, content in store.snapshot().items() if content}


@pytest.mark.slow
def test_a_lock_that_goes_away_in_time_is_waited_for(filled: JobStore) -> None:
    locked, release = threading.Event(), threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(filled.path / "jobs.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            locked.set()
            release.wait(LOCKED_SECONDS + 20)
            other.execute("COMMIT")

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait(20)
    timer = threading.Timer(LOCKED_SECONDS, release.set)
    timer.start()
    assert filled.run().outcome == "success"
    thread.join()
    assert len(filled.cleaned()) == 6


def test_a_lock_that_stays_is_an_error_and_nothing_is_touched(filled: JobStore) -> None:
    before = data(filled)
    with closing(sqlite3.connect(filled.path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="busy_timeout_seconds"):
            filled.run(database__busy_timeout_seconds=0.2)
    assert data(filled) == before
    assert filled.run().outcome == "success"


@pytest.mark.root
def test_a_database_that_cannot_be_written_is_an_error_and_nothing_is_touched(filled: JobStore) -> None:
    """A real one, since root may write a file whatever its mode: mounted read-only in a namespace."""
    before = data(filled)
    script = f"""
        set -e; cd '{filled.path}'; mkdir db; cp jobs.db db/; mount -t tmpfs none db -o size=1m,mode=755
        cp jobs.db db/; mount -o remount,ro db
        '{sys.executable}' -m eemtcleanupd clean --db-path db/jobs.db
    """
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
    assert data(filled) == before


def on_first(kind: type[Event], act: Callable[[], object]) -> Callable[[Event], None]:
    done: list[bool] = []

    def hear(event: Event) -> None:
        if isinstance(event, kind) and not done:
            done.append(True)
            act()

    return hear


@pytest.mark.parametrize("kind", [RunStarted, JobCleaned])
def test_a_database_that_is_replaced_in_mid_run_ends_it_and_loses_nothing(
    filled: JobStore, kind: type[Event]
) -> None:
    live = filled.results("live") / "global/day_0.tif"
    copy = filled.path / "copy.db"
    shutil.copy(filled.path / "jobs.db", copy)

    def replace() -> None:
        copy.replace(filled.path / "jobs.db")

    with pytest.raises(StoreError, match=r"jobs\.db"):
        filled.run(performance__batch_size=1, performance__max_workers=1, on_event=on_first(kind, replace))
    assert live.exists()
    # The copy knows nothing of that run: what is out of its place is in the trash, or was gone already.
    report = filled.run()
    assert report.outcome == "success"
    assert filled.cleaned() == {"old", *(f"due{number}" for number in range(5))}
    assert live.exists()


def test_a_database_that_is_truncated_in_mid_run_ends_it(filled: JobStore) -> None:
    copy = (filled.path / "jobs.db").read_bytes()

    def truncate() -> None:
        with (filled.path / "jobs.db").open("r+b") as file:
            file.truncate(len(copy) // 2)

    with pytest.raises(StoreError):
        filled.run(
            performance__batch_size=1, performance__max_workers=1, on_event=on_first(RunStarted, truncate)
        )
    assert (filled.results("live") / "global/day_0.tif").exists()
    (filled.path / "jobs.db").write_bytes(copy)
    assert filled.run().outcome == "success"
    assert len(filled.cleaned()) == 6


@pytest.mark.parametrize("fault", ["truncated", "empty", "page"])
def test_a_database_that_is_damaged_is_refused_and_nothing_is_touched(filled: JobStore, fault: str) -> None:
    file = filled.path / "jobs.db"
    whole = file.read_bytes()
    before = data(filled)
    if fault == "page":
        file.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    else:
        file.write_bytes(whole[:5000] if fault == "truncated" else b"")
    with pytest.raises(StoreError, match=r"jobs\.db"):
        filled.run()
    assert data(filled) == before
    file.write_bytes(whole)
    assert filled.run().outcome == "success"


@pytest.mark.slow
@needs("sqlite3")
@pytest.mark.root
def test_a_full_disk_under_the_database_is_an_error_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """A real one: the database lies on a small filesystem, mounted in a namespace of the test's own."""
    store = JobStore(tmp_path / "store")
    for number in range(3):
        store.job(f"due{number}")
    (store.path / "db").mkdir()
    clean = (
        f"code=0; '{sys.executable}' -m eemtcleanupd clean --db-path db/jobs.db >out 2>err || code=$?;"
        " cat out err | tr '\\n' ' '; echo code=$code"
    )
    script = f"""
        set -e; cd '{store.path}'
        mount -t tmpfs -o size=256k,mode=755 none db
        cp jobs.db db/
        dd if=/dev/zero of=db/fill bs=4k 2>/dev/null || true
        ls results; {clean}
        ls results; rm db/fill; {clean}
        ls results; sqlite3 db/jobs.db 'SELECT count(*) FROM jobs WHERE data_cleaned_at IS NOT NULL'
    """
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("code=3")
    assert "disk is full" in first or "No space left" in first
    assert "Traceback" not in done.stdout
    assert second.split()[:3] == ["due0", "due1", "due2"]  # nothing was touched
    assert "code=0" in second
    assert done.stdout.split()[-1] == "3"


@pytest.mark.parametrize(
    ("schema", "works"),
    [
        ('id TEXT PRIMARY KEY, status TEXT, completed_at TEXT, colour TEXT, "a b" BLOB', True),
        ("job_id TEXT, status TEXT, completed_at TEXT", True),
        ("id TEXT, completed_at TEXT", False),
        ("id TEXT, status TEXT", False),
        ("status TEXT, completed_at TEXT", False),
    ],
)
def test_a_schema_with_extra_columns_works_and_one_without_a_needed_one_is_named(
    tmp_path: Path, schema: str, *, works: bool
) -> None:
    store = JobStore(tmp_path / "store")
    store.sql("DROP TABLE jobs")
    store.sql(f"CREATE TABLE jobs ({schema})")
    names = [each.split()[0] for each in schema.split(",")]
    values = {"id": "a", "job_id": "a", "status": "completed", "completed_at": "2026-01-01T00:00:00"}
    row = [values.get(name) for name in names]
    store.sql(f"INSERT INTO jobs VALUES ({', '.join('?' * len(row))})", *row)
    (store.results("a")).mkdir()
    if works:
        store.run()
        assert not store.results("a").exists()
        return
    with pytest.raises(StoreError, match="jobs"):
        store.run()
    assert store.results("a").exists()


@pytest.mark.usefixtures("own_statements")
def test_what_a_run_asks_of_a_file_is_remembered_for_the_next_run(tmp_path: Path) -> None:
    """Otherwise each run compiles its SQL again, which costs more than its execution, and memory grows."""
    store = JobStore(tmp_path / "store")
    database = store.open()
    assert isinstance(database, SqliteDatabase)
    engine = database._connection.engine
    remembered = []
    for number in range(4):
        store.job(f"due{number}", dem="a.tif")
        store.run(database__busy_timeout_seconds=5)
        remembered.append(set(engine._compiled_cache or ()))
    assert len(remembered[1]) > 10
    assert remembered[1] == remembered[2] == remembered[3]


@pytest.mark.parametrize("state", ["open", "trashed"])
@pytest.mark.parametrize(("kind", "job_id"), [("orphan", None), ("orphan", "a"), ("job", None)])
def test_an_intent_that_names_nothing_is_refused(
    store: JobStore, state: str, kind: str, job_id: str | None
) -> None:
    store.run()
    store.sql(
        "INSERT INTO cleanup_intents (id, run_id, kind, state, job_id, artifacts, purge_after, created_at)"
        " VALUES ('x.1', 'x', ?, ?, ?, '[]', '2026-01-01 00:00:00', '2026-01-01 00:00:00')",
        *(kind, state, job_id),
    )
    with pytest.raises(StoreError):
        store.run()
