"""The ledger handles any number of jobs at once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from eemtcleanupd.model import Hold
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.sqlite import SqliteDatabase
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
