"""Nonsense in the job table, the ledger and the trash: no traceback, and what must stay stays."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from eemtcleanupd.errors import CleanupError
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.sqlite import SqliteDatabase
from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLES = int(os.environ.get("STRESS_EXAMPLES", "60"))
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
PATHS = [
    "",
    ".",
    "..",
    "/",
    "../canary",
    "a/../../canary",
    "/etc/passwd",
    ".eemtcleanupd-trash",
    "live",
    "\0",
    "~",
]
VALUES = st.one_of(
    st.none(),
    st.integers(min_value=-(2**63), max_value=2**63 - 1),
    st.floats(),
    st.binary(max_size=30),
    st.text(max_size=30),
    st.sampled_from(
        [
            *PATHS,
            "due",
            "completed",
            "failed",
            "running",
            "2026-01-01T00:00:00",
            "9999-12-31T23:59:59",
            "0000-00-00",
            "1795010112345",
            "0001-01-01 00:00:00",
            "now",
        ]
    ),
)
ROWS = st.lists(st.tuples(*[VALUES] * 7), min_size=1, max_size=6)


@contextmanager
def guarded_store() -> Iterator[JobStore]:
    """Give a store with a live job, a due one, and a canary beside the folders; all must outlive it."""
    with tempfile.TemporaryDirectory() as folder:
        store = JobStore(Path(folder) / "store")
        store.job("live", "running", days=None, dem="live.tif")
        store.upload("live.tif")
        store.job("due")
        canary = store.path / "canary"
        canary.mkdir()
        (canary / "alive").write_text("tweet")
        yield store
        assert (canary / "alive").read_text() == "tweet"
        assert (store.results("live") / "global/day_1.tif").exists()
        assert (store.path / "uploads/live.tif").exists()
        with closing(sqlite3.connect(store.path / "jobs.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def runs(store: JobStore) -> None:
    """Clean, which may refuse in words, but not by any other exception."""
    with suppress(CleanupError):
        store.run(safety__max_fraction=1, orphans__delete_after_hours=None)


@FUZZ
@given(ROWS)
def test_any_rows_in_the_job_table(rows: list[tuple[object, ...]]) -> None:
    with guarded_store() as store, closing(sqlite3.connect(store.path / "jobs.db")) as connection:
        before = connection.execute("SELECT count(*) FROM jobs").fetchone()[0]
        with connection:
            for row in rows:
                connection.execute(
                    "INSERT OR IGNORE INTO jobs"
                    " (id, workflow_type, status, completed_at, dem_filename, created_at, started_at)"
                    " VALUES (?, ifnull(?, ''), ifnull(?, ''), ?, ?, ?, ?)",
                    row,
                )
        assert connection.execute("SELECT count(*) FROM jobs").fetchone()[0] >= before
        runs(store)
        assert not store.results("due").exists()


@FUZZ
@given(
    st.sampled_from(
        [
            "cleanup_intents",
            "cleanup_runs",
            "cleanup_holds",
            "cleanup_roots",
            "cleanup_outbox",
            "cleanup_sizes",
            "cleanup_acknowledgements",
        ]
    ),
    ROWS,
    st.sampled_from(["insert", "update"]),
)
def test_any_rows_in_the_ledger(table: str, rows: list[tuple[object, ...]], how: str) -> None:
    with guarded_store() as store:
        store.run(retention__successful_jobs__hours=100_000)
        columns = [str(row[1]) for row in store.sql(f"PRAGMA table_info({table})")]
        with closing(sqlite3.connect(store.path / "jobs.db")) as connection:
            for row in rows:
                values = [row[at % len(row)] for at in range(len(columns))]
                marks = ", ".join("?" * len(columns))
                assigned = ", ".join(f'"{column}" = ?' for column in columns[1:])
                try:
                    with connection:
                        if how == "insert":
                            connection.execute(f"INSERT INTO {table} VALUES ({marks})", values)
                        else:
                            connection.execute(f"UPDATE {table} SET {assigned}", values[1:])
                except sqlite3.Error:  # the schema itself refuses it
                    continue
        runs(store)


@pytest.mark.parametrize("kind", ["link", "file", "fifo"])
@pytest.mark.parametrize("state", ["open", "trashed"])
def test_what_is_no_folder_in_place_of_an_item_stops_no_run(
    tmp_path: Path, run_cli: RunCli, state: str, kind: str
) -> None:
    store = JobStore(tmp_path / "store")
    store.job("due")
    store.run(trash__grace_hours=24)
    store.sql("UPDATE cleanup_intents SET state = ?", state)
    (item,) = (store.path / "results/.eemtcleanupd-trash").glob("*.g*")
    item.rename(store.path / "moved")
    if kind == "link":
        item.symlink_to(store.path / "moved")
    elif kind == "file":
        item.touch()
    else:
        os.mkfifo(item)
    done = run_cli("trash", "restore", "due", cwd=store.path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert not store.results("due").exists()
    assert store.sql("SELECT state FROM cleanup_intents") == [(state,)]
    store.job("next")
    store.run()
    assert not store.results("next").exists()
    assert (store.path / "moved/due").is_dir()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("cleanup_runs.successful", None),
        ("cleanup_runs.failed", "x"),
        ("cleanup_runs.bytes_freed", 1e308),
        ("cleanup_runs.trigger", None),
        ("cleanup_runs.error", b"\xff"),
        ("cleanup_log.action", None),
        ("cleanup_log.job_id", None),
        ("cleanup_intents.job_id", b"\xff"),
        ("cleanup_intents.size_bytes", 1e308),
        ("cleanup_holds.job_id", b"\xff"),
        ("cleanup_roots.inode", "x"),
        ("cleanup_roots.job_rows", "x"),
    ],
)
def test_commands_read_any_value_of_the_ledger(
    tmp_path: Path, run_cli: RunCli, place: str, value: object
) -> None:
    store = JobStore(tmp_path / "store")
    store.job("due")
    store.run(trash__grace_hours=24)
    store.sql("INSERT INTO cleanup_holds (job_id) VALUES ('due')")
    table, _, column = place.partition(".")
    store.sql(f"UPDATE {table} SET {column} = ?", value)
    (run_id,) = store.sql("SELECT id FROM cleanup_runs")[0]
    for command in (
        ["status"],
        ["history"],
        ["history", run_id],
        ["trash", "list"],
        ["roots"],
        ["doctor"],
        ["holds"],
    ):
        done = run_cli(*command, cwd=store.path)
        assert done.returncode in {0, 1, 3}
        assert "Traceback" not in done.stderr


def test_no_text_of_the_ledger_acts_on_a_terminal(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    store.job("due")
    store.run()
    for column in ("trigger", "user", "host", "policy", "error"):
        store.sql(f"UPDATE cleanup_runs SET {column} = ?", "a\n\x1b[2J")
    with closing(SqliteDatabase(store.path / "jobs.db", busy_timeout_seconds=1)) as database:
        (run,) = Ledger(database).runs(1)
    assert {run.policy, run.error} == {"a\n\\x1b[2J"}
    assert {run.trigger, run.user, run.host} == {r"a\x0a\x1b[2J"}  # another line could look like one of ours


def test_no_name_and_no_place_of_the_ledger_acts_on_a_terminal(
    tmp_path: Path, run_cli: RunCli, caplog: pytest.LogCaptureFixture
) -> None:
    store = JobStore(tmp_path / "store")
    store.job("due\x1b[2J")
    store.job("kept", days=0.1)
    with caplog.at_level(logging.DEBUG, "eemtcleanupd"):
        store.run(trash__grace_hours=24)
        store.job("now\x1b[2J")
        store.run()
    assert "renameat" in caplog.text
    assert "Emptied" in caplog.text
    assert "\x1b" not in caplog.text
    for place in ("cleanup_intents.status", "cleanup_roots.path", "cleanup_sizes.status_class"):
        table, _, column = place.partition(".")
        store.sql(f"UPDATE {table} SET {column} = ?", "a\n\x1b[2J")
    for command in (["status"], ["trash", "list"], ["roots"]):
        done = run_cli(*command, cwd=store.path)
        assert "\x1b" not in done.stdout + done.stderr
        assert r"a\x0a\x1b[2J" in done.stdout


@FUZZ
@given(
    st.sampled_from(["open", "trashed"]),
    st.sampled_from(["job", "orphan"]),
    st.sampled_from(["results", "uploads", "etc"]),
    st.sampled_from(PATHS),
    st.sampled_from([*PATHS, "../../canary", "../..", "../live"]),
    st.booleans(),
)
def test_an_intent_that_points_out_of_the_trash(
    state: str, kind: str, root: str, name: str, item: str, folder: bool
) -> None:
    with guarded_store() as store:
        store.run(retention__successful_jobs__hours=100_000)
        store.sql(
            "INSERT INTO cleanup_intents"
            " (id, run_id, kind, state, job_id, artifacts, purge_after, created_at)"
            " VALUES ('x.1', 'x', ?, ?, 'live', ?, '2026-01-01 00:00:00', '2026-01-01 00:00:00')",
            kind,
            state,
            json.dumps([[root, name, folder, item]]),
        )
        runs(store)


NAMES = st.one_of(
    st.sampled_from(
        ["20260101T000000-abcd.1.1", "20260101T000000-abcd.1.1.deleting", ".root-id", "..x", "x.deleting"]
    ),
    st.binary(min_size=1, max_size=20).map(
        lambda raw: os.fsdecode(raw.replace(b"/", b"_").replace(b"\0", b"_"))
    ),
).filter(lambda name: name not in {".", ".."})


@FUZZ
@given(st.dictionaries(NAMES, st.sampled_from(["file", "folder", "link", "fifo"]), min_size=1, max_size=5))
def test_anything_in_the_trash(entries: dict[str, str]) -> None:
    with guarded_store() as store:
        store.run(retention__successful_jobs__hours=100_000)
        trash = store.path / "results" / ".eemtcleanupd-trash"
        for name, kind in entries.items():
            path = os.path.join(trash, name)
            if os.path.lexists(path):
                os.unlink(path)
            if kind == "folder":
                os.mkdir(path)
            elif kind == "link":
                os.symlink(store.path / "canary", path)
            elif kind == "fifo":
                os.mkfifo(path)
            else:
                Path(path).write_text("?")
        runs(store)
        if ".root-id" not in entries:  # what is not a file there is refused
            assert not store.results("due").exists()
