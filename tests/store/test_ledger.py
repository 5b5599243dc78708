"""The ledger handles any number of jobs at once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC
from pathlib import Path

import pytest

from eemtcleanupd.config import RetentionConfig
from eemtcleanupd.errors import StoreError
from eemtcleanupd.model import Hold
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.sqlite import SqliteDatabase
from eemtcleanupd.store.tables import METADATA
from tests.cleanup.conftest import NOW, JobStore

MANY = [f"job{number}" for number in range(2000)]
BINDS = 999  # the lowest limit of bound variables in any SQLite version in use


def test_more_jobs_than_a_statement_can_bind_are_read_and_deleted(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    with closing(SqliteDatabase(store.path / "jobs.db", busy_timeout_seconds=1)) as database:
        ledger = Ledger(database)
        ledger.create_tables()
        ledger.hold(Hold(MANY[-1], "thesis", "ann", None), NOW)
        with database.read() as connection:
            raw = connection.connection.dbapi_connection
            assert isinstance(raw, sqlite3.Connection)
            raw.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, BINDS)
        with database.read() as connection:
            assert list(ledger.holds(connection, MANY)) == [MANY[-1]]
            assert ledger.measured(connection, MANY) == {}
        store.sql(
            "INSERT INTO cleanup_intents (id, run_id, kind, state, artifacts, created_at)"
            " VALUES (?, 'x', 'job', 'open', '[]', '2026-01-01 00:00:00')",
            MANY[-1],
        )
        database.write(lambda connection: ledger.delete_intents(connection, MANY))
    assert store.sql("SELECT * FROM cleanup_intents") == []


def test_tables_are_created_in_the_order_of_their_definitions(tmp_path: Path) -> None:
    """Two programs that create them in two orders wait for each other on PostgreSQL."""
    store = JobStore(tmp_path / "store")
    with closing(SqliteDatabase(store.path / "jobs.db", busy_timeout_seconds=1)) as database:
        Ledger(database).create_tables()
    created = store.sql("SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB 'cleanup_*'")
    assert [name for (name,) in created] == list(METADATA.tables)


def test_columns_that_could_not_be_committed_are_still_missing(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    for number in range(2000):
        store.sql("INSERT INTO jobs (id, workflow_type, status) VALUES (?, 'sol', 'running')", f"job{number}")
    with closing(SqliteDatabase(store.path / "jobs.db", busy_timeout_seconds=0.2)) as database:
        ledger, jobs = Ledger(database), JobTable(database, Policy.from_config(RetentionConfig()), UTC)
        with closing(sqlite3.connect(store.path / "jobs.db")) as reader:
            reading = reader.execute("SELECT id FROM jobs")
            reading.fetchone()
            with pytest.raises(StoreError):
                ledger.create_tables(jobs)
            reading.close()
        assert set(jobs.missing_columns) == {"data_cleaned_at", "data_size_mb", "cleanup_summary"}
        ledger.create_tables(jobs)
        assert jobs.missing_columns == ()
    assert "data_cleaned_at" in store.columns()
