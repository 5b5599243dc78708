"""A job database on PostgreSQL: its types, its locks, and connections that are cut at any moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import Connection

from eemtcleanupd.config import RetentionConfig
from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.errors import LockHeldError, StoreError
from eemtcleanupd.policy.retention import Policy, decide
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.intents import Intent, IntentKind
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.lock import Holder, run_lock
from tests.postgres import PASSWORD, Server

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
POLICY = Policy.from_config(RetentionConfig())


class Opener:
    """Opens databases, each as a program of its own would, and closes them at the end of the test."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.server = server
        self.url = server.create()
        self._stack = stack

    def __call__(
        self, url: str | None = None, busy_timeout_seconds: float = 10, lease_seconds: float = 20
    ) -> Database:
        location = StoreAddress(DatabaseAddress(url or self.url), Path("/nowhere"), busy_timeout_seconds)
        database = replace(location, lease_seconds=lease_seconds).open()
        self._stack.callback(database.close)
        return database

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def cut(self) -> None:
        assert self.server.disconnect(self.url)


@pytest.fixture
def opener(postgres: Server) -> Iterator[Opener]:
    with ExitStack() as stack:
        yield Opener(postgres, stack)


# -- types -----------------------------------------------------------------------------------------

IDS = {
    "TEXT": ["a", "b"],
    "VARCHAR(40)": ["a", "ü"],
    "CHAR(36)": ["0b6c7c2e-3f4c-4e1a-9c57-0a3d8f7c9e10", "0b6c7c2e-3f4c-4e1a-9c57-0a3d8f7c9e11"],
    "UUID": ["0b6c7c2e-3f4c-4e1a-9c57-0a3d8f7c9e10", "0b6c7c2e-3f4c-4e1a-9c57-0a3d8f7c9e11"],
    "BIGINT": ["1", "20"],
    "INTEGER": ["1", "20"],
}
FOREIGN_IDS = ["", "x", "01", "9" * 30, "nul\0", "\udcff", "0B6C7C2E-3F4C-4E1A-9C57-0A3D8F7C9E10", "\\xff"]


@pytest.mark.parametrize("id_type", IDS)
@pytest.mark.parametrize("time_type", ["TEXT", "TIMESTAMP", "TIMESTAMPTZ", "TIMESTAMP(3)"])
@pytest.mark.parametrize("other_type", ["TEXT", "JSONB"])
def test_rows_of_every_type_are_found_decided_and_marked(
    opener: Opener, id_type: str, time_type: str, other_type: str
) -> None:
    opener.sql("CREATE TYPE state AS ENUM ('completed', 'running')")
    status = "state" if other_type == "JSONB" else "TEXT"
    opener.sql(
        f"CREATE TABLE jobs (id {id_type} PRIMARY KEY, status {status}, completed_at {time_type},"
        f" parameters {other_type})"
    )
    due, young = IDS[id_type]
    for job_id, days in ((due, 8), (young, 6)):
        ended = (NOW - timedelta(days=days)).isoformat()
        opener.sql("INSERT INTO jobs VALUES (%s, 'completed', %s, '{}')", job_id, ended)
    database = opener()
    catalog = JobTable(database, POLICY, UTC)
    catalog.add_columns()
    catalog.gather_candidates(NOW)
    found = [job for page in catalog.candidates(1) for job in page]
    assert [job.id for job in found if decide(job, POLICY, NOW).clean] == [due]
    with database.read() as connection:
        assert set(catalog.rows(connection, [due, young, *FOREIGN_IDS])) == {due, young}
    database.write(lambda connection: catalog.mark_cleaned(connection, [(due, 2**20, "gone")], NOW))
    database.write(lambda connection: catalog.mark_cleaned(connection, [("x", 2**20, "gone")], NOW))
    rows = opener.sql(
        "SELECT id::TEXT, data_size_mb, data_cleaned_at FROM jobs WHERE data_cleaned_at IS NOT NULL"
    )
    moment = NOW.replace(tzinfo=None)
    written = {"TEXT": moment.isoformat(), "TIMESTAMPTZ": NOW}.get(time_type, moment)
    assert rows == [(due, 1.0, written)]


@pytest.mark.parametrize("ended", ["infinity", "-infinity", "0044-03-15 12:00:00 BC", None])
def test_times_that_are_no_dates_need_a_decision_and_are_kept(opener: Opener, ended: str | None) -> None:
    opener.sql("CREATE TABLE jobs (id TEXT PRIMARY KEY, status TEXT, completed_at TIMESTAMP)")
    opener.sql("INSERT INTO jobs VALUES ('odd', 'completed', %s)", ended)
    catalog = JobTable(opener(), POLICY, UTC)
    catalog.gather_candidates(NOW)
    (job,) = [job for page in catalog.candidates(10) for job in page]
    decision = decide(job, POLICY, NOW)
    assert (decision.clean, decision.notable) == (False, True)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("127.0.0.1", "localhost.invalid"), "check the host"),
        ((":{port}/", ":1/"), "is the server running"),
        (("p%40ss%2Fw%3Ard", "another"), "check user and password"),
        (("eemt:", "nobody:"), "pg_hba.conf"),
        (("/test_", "/absent_"), "does not exist"),
        (("postgresql://", "mysql://"), "mysql is not supported: name the path of a SQLite file"),
        (("postgresql://", "postgresql+asyncpg://"), "asyncpg is not supported"),
        ((":{port}/", ":port/"), "no URL that can be read"),
    ],
)
def test_what_is_wrong_with_the_address_is_said_and_no_password(
    opener: Opener, change: tuple[str, str], words: str
) -> None:
    old, new = change[0].format(port=opener.server.port), change[1]
    assert old in opener.url
    with pytest.raises(StoreError, match=words) as caught:
        opener(opener.url.replace(old, new, 1))
    for secret in (PASSWORD, "p%40ss", "another"):
        assert secret not in str(caught.value)


def test_another_encoding_is_refused(opener: Opener) -> None:
    url = opener.server.create(TEMPLATE="template0", ENCODING="'LATIN1'", LOCALE="'C'")
    with pytest.raises(StoreError, match="encoded in LATIN1"):
        opener(url)


def test_who_does_not_own_the_table_is_told_what_its_owner_can_do(opener: Opener) -> None:
    opener.sql("CREATE TABLE jobs (id TEXT, status TEXT, completed_at TEXT)")
    name = opener.url.rpartition("/")[2]
    opener.server.admin("ALTER TABLE jobs OWNER TO owner", name)
    opener.server.admin("GRANT SELECT ON jobs TO eemt", name)
    with pytest.raises(StoreError, match="its owner can append the columns"):
        JobTable(opener(), POLICY, UTC).add_columns()
    opener.server.admin(
        "ALTER TABLE jobs ADD data_cleaned_at TEXT, ADD data_size_mb FLOAT, ADD cleanup_summary TEXT", name
    )
    opener.server.admin("GRANT UPDATE (data_cleaned_at, data_size_mb, cleanup_summary) ON jobs TO eemt", name)
    opener.sql("CREATE TABLE ours (a INTEGER)")
    catalog = JobTable(opener(), POLICY, UTC)
    catalog.add_columns()
    opener.server.admin("INSERT INTO jobs VALUES ('a', 'completed', '2026-01-01T00:00:00')", name)
    opener().write(lambda connection: catalog.mark_cleaned(connection, [("a", 0, "")], NOW))
    assert opener.sql("SELECT data_cleaned_at FROM jobs") == [("2026-06-15T12:00:00",)]


def test_a_row_that_stays_locked_is_a_clear_error(opener: Opener) -> None:
    opener.sql("CREATE TABLE t (a INTEGER)")
    opener.sql("INSERT INTO t VALUES (1)")
    with psycopg.connect(opener.url) as other:
        other.execute("UPDATE t SET a = 2")
        with pytest.raises(StoreError, match="kept a row or table locked"):
            opener(busy_timeout_seconds=0.1).write(lambda c: c.exec_driver_sql("UPDATE t SET a = 3"))
        other.rollback()
    assert opener.sql("SELECT a FROM t") == [(1,)]


# -- locks -----------------------------------------------------------------------------------------


def test_a_second_run_is_told_who_holds_the_lock_and_a_dead_one_holds_none(opener: Opener) -> None:
    first, second = opener(), opener()
    with run_lock(first, "run-1", NOW):
        told = second.holder("run")
        assert isinstance(told, Holder)
        assert told.run == "run-1"
        with pytest.raises(
            LockHeldError, match=r"run run-1, process \d+ on .*, since 2026-06-15 12:00:00 UTC"
        ):
            run_lock(second, "run-2", NOW).__enter__()
        assert second.holder("daemon") is None
    assert second.holder("run") is None
    with run_lock(second, "run-2", NOW):
        pass


def test_stores_in_two_schemas_have_two_locks(opener: Opener) -> None:
    opener.sql("CREATE SCHEMA other")
    other = opener(f"{opener.url}?options=-csearch_path%3Dother")
    with run_lock(opener(), "one", NOW), run_lock(other, "two", NOW):
        assert opener().holder("run") != other.holder("run")


def test_a_lock_survives_a_cut_connection_when_nobody_had_it_meanwhile(opener: Opener) -> None:
    database, other = opener(), opener()
    opener.sql("CREATE TABLE t (a INTEGER)")
    with run_lock(database, "run-1", NOW):
        opener.cut()
        database.write(lambda connection: connection.exec_driver_sql("INSERT INTO t VALUES (1)"))
        with pytest.raises(LockHeldError, match="run-1"):
            run_lock(other, "run-2", NOW).__enter__()
    assert opener.sql("SELECT a FROM t") == [(1,)]


def test_a_lock_whose_connection_is_cut_as_it_is_taken_is_held_all_the_same(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of the lock was committed, and the session that had the lock itself was gone."""
    from sqlalchemy.engine.default import DefaultDialect

    database, other = opener(), opener()
    with run_lock(database, "run-0", NOW):
        pass
    commit: Callable[..., None] = DefaultDialect.do_commit
    cuts = iter([opener.cut])

    def committing(self: DefaultDialect, connection: Any) -> None:
        commit(self, connection)
        if (cut := next(cuts, None)) is not None:
            cut()
            connection.cursor().execute("SELECT 1")  # its answer was lost: the driver sees that

    monkeypatch.setattr(DefaultDialect, "do_commit", committing)
    with run_lock(database, "run-1", NOW):
        monkeypatch.undo()
        with pytest.raises(LockHeldError, match="run-1"):
            run_lock(other, "run-2", NOW).__enter__()


@pytest.mark.parametrize("is_over", [False, True])
def test_who_lost_the_lock_to_another_writes_nothing_more(opener: Opener, is_over: bool) -> None:
    """Though the other one may be done with it already."""
    frozen, other = opener(), opener()
    opener.sql("CREATE TABLE t (a INTEGER)")
    with run_lock(frozen, "run-1", NOW), ExitStack() as meanwhile:
        opener.cut()
        meanwhile.enter_context(run_lock(other, "run-2", NOW))
        if is_over:
            meanwhile.close()
        for _ in range(2):  # it does not become possible by trying again
            with pytest.raises(LockHeldError, match="another has it, or had it meanwhile"):
                frozen.write(lambda connection: connection.exec_driver_sql("INSERT INTO t VALUES (1)"))
    assert opener.sql("SELECT a FROM t") == []


def test_the_server_ends_the_session_of_a_frozen_holder(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eemtcleanupd.store.postgres import PostgresDatabase

    monkeypatch.setattr(PostgresDatabase, "_beat", lambda _, stop: stop.wait())  # frozen
    frozen, other = opener(lease_seconds=1), opener()
    with run_lock(frozen, "run-1", NOW):
        waiting = threading.Event()
        while other.holder("run") is not None:
            waiting.wait(0.05)
        with run_lock(other, "run-2", NOW), pytest.raises(LockHeldError), frozen.read() as connection:
            connection.exec_driver_sql("SELECT 1")


@pytest.mark.parametrize("own", ['"Eemt"', '"my store"', '"123"'])
def test_our_tables_are_found_wherever_the_search_path_leads(opener: Opener, own: str) -> None:
    opener.sql(f"CREATE SCHEMA {own}")
    name = quote(own)
    first = opener(f"{opener.url}?options=-csearch_path%3D{name}".replace("%20", "%5C%20"))
    Ledger(first).create_tables()
    assert Ledger(first).is_current()
    opener.sql("CREATE SCHEMA later")
    both = opener(f"{opener.url}?options=-csearch_path%3Dlater,{name}".replace("%20", "%5C%20"))
    assert Ledger(both).is_current()
    Ledger(both).create_tables()


# -- connections that are cut ------------------------------------------------------------------------

MOMENTS = ("before", "amid", "at the commit", "after the commit")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_write_whose_connection_is_cut_is_done_exactly_once(
    opener: Opener, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    from sqlalchemy.engine.default import DefaultDialect

    opener.sql("CREATE TABLE t (a INTEGER)")
    database = opener()
    cuts = iter([opener.cut])
    commit: Callable[..., None] = DefaultDialect.do_commit

    def cut_once(at: str) -> None:
        if at == moment and (cut := next(cuts, None)) is not None:
            cut()

    def committing(self: DefaultDialect, connection: Any) -> None:
        cut_once("at the commit")
        commit(self, connection)
        if moment == "after the commit":
            cut_once("after the commit")
            commit(self, connection)  # its answer was lost: the driver sees a closed connection
            connection.cursor().execute("SELECT 1")

    def work(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        cut_once("amid")

    cut_once("before")
    monkeypatch.setattr(DefaultDialect, "do_commit", committing)
    database.write(work)
    monkeypatch.undo()
    assert opener.sql("SELECT a FROM t") == [(1,)]
    assert next(cuts, None) is None


def test_a_read_whose_connection_is_cut_is_asked_again(opener: Opener) -> None:
    database = opener()
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
        opener.cut()
        assert connection.exec_driver_sql("SELECT 2").scalar() == 2


@pytest.mark.parametrize("failed_first", [False, True])
def test_candidates_go_on_where_they_were_when_the_connection_is_cut(
    opener: Opener, failed_first: bool
) -> None:
    opener.sql("CREATE TABLE jobs (id TEXT PRIMARY KEY, status TEXT, completed_at TIMESTAMP)")
    opener.sql(
        "INSERT INTO jobs SELECT 'job-' || i, CASE WHEN i % 3 = 0 THEN 'failed' ELSE 'completed' END,"
        " timestamp '2026-01-01' + (i / 4) * interval '1 hour' FROM generate_series(1, 40) AS i"
    )
    database = opener()
    catalog = JobTable(database, POLICY, UTC)
    catalog.gather_candidates(NOW, failed_first=failed_first)
    expected = [job.id for page in catalog.candidates(7) for job in page]
    assert len(expected) == 40
    for _ in range(2):  # they may be read again from the start
        found = []
        for page in catalog.candidates(7):
            found += [job.id for job in page]
            opener.cut()
        assert found == expected


def test_an_intent_is_recorded_once(opener: Opener) -> None:
    database = opener()
    ledger = Ledger(database)
    ledger.create_tables()
    intent = Intent("1", "run", IntentKind.JOB, "a", "completed", ())
    database.write(lambda connection: ledger.add_intents(connection, [intent], NOW))
    database.write(lambda connection: ledger.close_intents(connection, ["1"]))
    with pytest.raises(StoreError, match="nothing was recorded twice"):
        database.write(lambda connection: ledger.close_intents(connection, ["1"]))


def test_two_programs_may_make_the_ledger_at_once(opener: Opener) -> None:
    databases = [opener() for _ in range(4)]
    threads = [threading.Thread(target=Ledger(each).create_tables) for each in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Ledger(opener()).is_current()
