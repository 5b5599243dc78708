"""A job database on PostgreSQL: column types, locks, and connections that are lost at any time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
from eemtcleanupd.store.advisory_lock import AdvisoryLock
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.intents import Intent, IntentKind
from eemtcleanupd.store.inventory import InventoryTables
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.lock import Holder, run_lock
from tests.ports import free_port
from tests.postgres import PASSWORD, ROLE, Server, session
from tests.requirements import find_program, needs

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
POLICY = Policy.from_config(RetentionConfig())


class Opener:
    """Opens databases as separate programs would, and closes them at the end of the test."""

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
        cursor = session(self.url).execute(statement, values or None)
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


@pytest.mark.fast_parameters(8)
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
    jobs = JobTable(database, POLICY, UTC)
    database.write(jobs.add_columns)
    jobs.reflect()
    jobs.gather_candidates(NOW)
    candidates = [job for page in jobs.candidates(1) for job in page]
    assert [job.id for job in candidates if decide(job, POLICY, NOW).clean] == [due]
    with database.read() as connection:
        assert set(jobs.rows(connection, [due, young, *FOREIGN_IDS])) == {due, young}
    database.write(lambda connection: jobs.mark_cleaned(connection, [(due, 2**20, "gone")], NOW))
    database.write(lambda connection: jobs.mark_cleaned(connection, [("x", 2**20, "gone")], NOW))
    rows = opener.sql(
        "SELECT id::TEXT, data_size_mb, data_cleaned_at FROM jobs WHERE data_cleaned_at IS NOT NULL"
    )
    moment = NOW.replace(tzinfo=None)
    written = {"TEXT": moment.isoformat(), "TIMESTAMPTZ": NOW}.get(time_type, moment)
    assert rows == [(due, 1.0, written)]


@pytest.mark.slow
def test_an_inventory_of_many_jobs_does_not_compare_each_with_all(opener: Opener) -> None:
    count = 50_000
    opener.sql("CREATE TABLE jobs (id TEXT PRIMARY KEY, status TEXT, completed_at TEXT, dem_filename TEXT)")
    Ledger(opener()).create_tables()
    opener.sql(f"INSERT INTO cleanup_sizes (job_id) SELECT i::TEXT FROM generate_series(0, {count}) AS i")
    opener.sql(f"INSERT INTO jobs (id, dem_filename) SELECT i, i FROM generate_series(1, {count}) AS i")
    name = opener.url.rpartition("/")[2]
    opener.sql(f"ALTER DATABASE {name} SET work_mem = '64kB'")
    opener.sql(f"ALTER DATABASE {name} SET statement_timeout = '20s'")
    database = opener()
    tables = InventoryTables(database, JobTable(database, POLICY, UTC))
    tables.add_uploads(list(map(str, range(count + 2))))
    assert sum(1 for _ in tables.referenced_uploads()) == count
    assert [sorted(page) for page in tables.unreferenced_uploads()] == [["0", str(count + 1)]]
    assert list(tables.measured_unseen()) == [["0"]]


@pytest.mark.parametrize("ended", ["infinity", "-infinity", "0044-03-15 12:00:00 BC", None])
def test_a_job_with_an_invalid_end_needs_a_decision_and_is_kept(opener: Opener, ended: str | None) -> None:
    opener.sql("CREATE TABLE jobs (id TEXT PRIMARY KEY, status TEXT, completed_at TIMESTAMP)")
    opener.sql("INSERT INTO jobs VALUES ('odd', 'completed', %s)", ended)
    jobs = JobTable(opener(), POLICY, UTC)
    jobs.gather_candidates(NOW)
    (job,) = [job for page in jobs.candidates(10) for job in page]
    decision = decide(job, POLICY, NOW)
    assert (decision.clean, decision.notable) == (False, True)


@pytest.mark.parametrize("time_type", ["BIGINT", "DATE", "DOUBLE PRECISION"])
def test_a_job_is_undated_if_its_end_is_no_time_and_the_columns_can_be_added(
    opener: Opener, time_type: str
) -> None:
    opener.sql(f"CREATE TABLE jobs (id TEXT PRIMARY KEY, status TEXT, completed_at {time_type})")
    value = "2026-01-01" if time_type == "DATE" else 1_767_225_600_000
    opener.sql("INSERT INTO jobs VALUES ('odd', 'completed', %s)", value)
    database = opener()
    jobs = JobTable(database, POLICY, UTC)
    database.write(jobs.add_columns)
    jobs.reflect()
    jobs.gather_candidates(NOW)
    (job,) = [job for page in jobs.candidates(10) for job in page]
    decision = decide(job, POLICY, NOW)
    assert (decision.clean, decision.notable) == (False, True)
    assert jobs.newest_successful(5, NOW) == set()
    database.write(lambda connection: jobs.mark_cleaned(connection, [("odd", 0, "")], NOW))
    assert opener.sql("SELECT data_cleaned_at FROM jobs") == [("2026-06-15T12:00:00",)]


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (("127.0.0.1", "localhost.invalid"), "localhost.invalid"),
        ((":{port}/", ":1/"), "Connection refused"),
        (("p%40ss%2Fw%3Ard", "another"), "password"),
        (("eemt:", "nobody:"), "pg_hba.conf"),
        (("/test_", "/absent_"), "does not exist"),
        (("postgresql://", "mysql://"), "mysql"),
        (("postgresql://", "postgresql+asyncpg://"), "asyncpg"),
        ((":{port}/", ":port/"), "URL"),
    ],
)
def test_a_wrong_address_raises_an_error_without_the_password(
    opener: Opener, change: tuple[str, str], part: str
) -> None:
    old, new = change[0].format(port=opener.server.port), change[1]
    assert old in opener.url
    with pytest.raises(StoreError, match=part) as caught:
        opener(opener.url.replace(old, new, 1))
    for secret in (PASSWORD, "p%40ss", "another"):
        assert secret not in str(caught.value)


def test_another_encoding_is_refused(opener: Opener) -> None:
    url = opener.server.create(TEMPLATE="template0", ENCODING="'LATIN1'", LOCALE="'C'")
    with pytest.raises(StoreError, match="LATIN1"):
        opener(url)


@pytest.mark.parametrize("path", ["public", "public, pg_catalog"])
def test_no_code_of_the_owner_of_the_tables_works_as_superuser(opener: Opener, path: str) -> None:
    opener.sql("CREATE TABLE jobs (id TEXT, status TEXT, completed_at TEXT)")
    opener.sql("CREATE TABLE seen (name TEXT)")
    opener.sql("GRANT INSERT ON seen TO PUBLIC")
    opener.sql(
        "CREATE FUNCTION public.pg_backend_pid() RETURNS integer LANGUAGE sql AS"
        " $$INSERT INTO seen VALUES (session_user); SELECT pg_catalog.pg_backend_pid()$$"
    )
    name = opener.url.rpartition("/")[2]
    opener.sql(f"ALTER DATABASE {name} SET search_path = {path}")
    with pytest.raises(StoreError, match="role eemt"):
        opener(opener.server.url(name, "postgres"))
    assert opener.sql("SELECT name FROM seen WHERE name = 'postgres'") == []


@pytest.mark.parametrize(
    "right",
    [
        "GRANT ALL ON jobs TO eemt",
        "GRANT ALL ON cleanup_runs TO eemt",
        "ALTER SCHEMA public OWNER TO eemt",
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        "ALTER DATABASE {name} OWNER TO eemt",
        "GRANT CREATE ON DATABASE {name} TO eemt",
    ],
)
def test_no_code_of_a_role_that_can_add_it_works_as_superuser(opener: Opener, right: str) -> None:
    name = opener.url.rpartition("/")[2]
    for statement in (
        "ALTER DATABASE {name} OWNER TO postgres",
        "REVOKE CREATE ON DATABASE {name} FROM eemt",
        "ALTER SCHEMA public OWNER TO postgres",
        "CREATE TABLE jobs (id TEXT, status TEXT, completed_at TEXT)",
        "CREATE TABLE cleanup_runs (id TEXT)",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON jobs TO eemt",
    ):
        opener.server.admin(statement.format(name=name), name)
    opener(opener.server.url(name, "postgres")).close()
    opener.server.admin(right.format(name=name), name)
    with pytest.raises(StoreError, match="superuser"):
        opener(opener.server.url(name, "postgres"))


def test_a_column_of_a_type_of_others_gives_no_warning(opener: Opener) -> None:
    """Its name would reach the terminal as it is."""
    opener.sql('CREATE TYPE "\x1b[2J" AS (a INTEGER)')
    opener.sql('CREATE TABLE jobs (id TEXT, status TEXT, completed_at TEXT, place "\x1b[2J")')
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        JobTable(opener(), POLICY, UTC)
    assert found == []


def test_a_user_who_does_not_own_the_table_can_use_columns_added_by_the_owner(opener: Opener) -> None:
    opener.sql("CREATE TABLE jobs (id TEXT, status TEXT, completed_at TEXT)")
    name = opener.url.rpartition("/")[2]
    opener.server.admin("ALTER TABLE jobs OWNER TO owner", name)
    opener.server.admin("GRANT SELECT ON jobs TO eemt", name)
    database = opener()
    with pytest.raises(StoreError, match=r"docs/how-to/postgresql\.md"):
        database.write(JobTable(database, POLICY, UTC).add_columns)
    opener.server.admin(
        "ALTER TABLE jobs ADD data_cleaned_at TEXT, ADD data_size_mb FLOAT, ADD cleanup_summary TEXT", name
    )
    opener.server.admin("GRANT UPDATE (data_cleaned_at, data_size_mb, cleanup_summary) ON jobs TO eemt", name)
    opener.sql("CREATE TABLE ours (a INTEGER)")
    database = opener()
    jobs = JobTable(database, POLICY, UTC)
    database.write(jobs.add_columns)
    jobs.reflect()
    opener.server.admin("INSERT INTO jobs VALUES ('a', 'completed', '2026-01-01T00:00:00')", name)
    opener().write(lambda connection: jobs.mark_cleaned(connection, [("a", 0, "")], NOW))
    assert opener.sql("SELECT data_cleaned_at FROM jobs") == [("2026-06-15T12:00:00",)]


@pytest.mark.slow
def test_a_row_that_stays_locked_raises_an_error(opener: Opener) -> None:
    opener.sql("CREATE TABLE t (a INTEGER)")
    opener.sql("INSERT INTO t VALUES (1)")
    with psycopg.connect(opener.url) as other:
        other.execute("UPDATE t SET a = 2")
        with pytest.raises(StoreError, match="busy_timeout_seconds"):
            opener(busy_timeout_seconds=0.1).write(lambda c: c.exec_driver_sql("UPDATE t SET a = 3"))
        other.rollback()
    assert opener.sql("SELECT a FROM t") == [(1,)]


# -- locks -----------------------------------------------------------------------------------------


def test_a_lock_names_its_holder_and_is_free_after_its_end(opener: Opener) -> None:
    first, second = opener(), opener()
    with run_lock(first, "run-1", NOW):
        holder = second.holder("run")
        assert isinstance(holder, Holder)
        assert holder.run == "run-1"
        with pytest.raises(LockHeldError, match=r"run-1.*\d+.*2026-06-15 12:00:00"):
            run_lock(second, "run-2", NOW).__enter__()
        assert second.holder("daemon") is None
        opener.sql("UPDATE cleanup_locks SET host = %s", "a\n\x1b[2J")
        with pytest.raises(LockHeldError, match=r"a\\x0a\\x1b\[2J"):
            run_lock(second, "run-2", NOW).__enter__()
    assert second.holder("run") is None
    with run_lock(second, "run-2", NOW):
        pass


def test_a_session_that_holds_a_lock_does_not_acquire_it_for_another_program(opener: Opener) -> None:
    """A pooler can give one session to two programs in turn."""
    first = opener()
    with run_lock(first, "run-1", NOW):
        lock = AdvisoryLock("run", "public", "jobs")
        with pytest.raises(LockHeldError, match="run-1"):
            first.write(lambda c: lock.acquire(c.exec_driver_sql, Holder(1, "other", "now", "run-2")))
        assert (holder := opener().holder("run")) is not None
        assert holder.run == "run-1"


@contextmanager
def pooler(opener: Opener, mode: str, folder: Path) -> Iterator[str]:
    """Run PgBouncer in front of the server, and yield the URL of the database through it."""
    port = free_port()
    folder.chmod(0o755)
    (folder / "users").write_text(f'"{ROLE}" "{PASSWORD}"\n')
    (folder / "ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={opener.server.port}\n[pgbouncer]\nunix_socket_dir =\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\npool_mode = {mode}\n"
        f"auth_type = plain\nauth_file = {folder}/users\n"
    )
    user = "nobody" if os.geteuid() == 0 else None
    program = str(find_program("pgbouncer"))
    with subprocess.Popen(
        [program, "ini"], cwd=folder, stderr=subprocess.PIPE, text=True, user=user
    ) as process:
        try:
            assert process.stderr is not None
            assert any("process up" in line for line in process.stderr)
            yield opener.url.replace(f":{opener.server.port}/", f":{port}/")
        finally:
            process.kill()


@needs("pgbouncer")
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler_works_only_in_session_mode(opener: Opener, mode: str) -> None:
    with tempfile.TemporaryDirectory() as folder, pooler(opener, mode, Path(folder)) as url:
        if mode == "transaction":
            with pytest.raises(StoreError, match="pooler"):
                opener(url)
            settings = "current_setting('lock_timeout'), current_setting('row_security')"
            with psycopg.connect(url, prepare_threshold=None) as other:  # has nothing of ours
                assert other.execute(f"SELECT {settings}").fetchone() == ("0", "on")
            return
        with run_lock(opener(url), "run-1", NOW), pytest.raises(LockHeldError, match="run-1"):
            run_lock(opener(url), "run-2", NOW).__enter__()


def test_stores_in_two_schemas_have_two_locks(opener: Opener) -> None:
    opener.sql("CREATE SCHEMA other")
    other = opener(f"{opener.url}?options=-csearch_path%3Dother")
    with run_lock(opener(), "one", NOW), run_lock(other, "two", NOW):
        assert opener().holder("run") != other.holder("run")


def test_a_lock_survives_a_lost_connection_if_no_other_process_acquired_it(opener: Opener) -> None:
    database, other = opener(), opener()
    opener.sql("CREATE TABLE t (a INTEGER)")
    with run_lock(database, "run-1", NOW):
        opener.cut()
        database.write(lambda connection: connection.exec_driver_sql("INSERT INTO t VALUES (1)"))
        with pytest.raises(LockHeldError, match="run-1"):
            run_lock(other, "run-2", NOW).__enter__()
    assert opener.sql("SELECT a FROM t") == [(1,)]


def test_a_lock_is_held_although_its_connection_is_lost_during_acquisition(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of the lock was committed, but the session that held the lock has ended."""
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
            connection.cursor().execute("SELECT 1")  # the driver notices the lost connection

    monkeypatch.setattr(DefaultDialect, "do_commit", committing)
    with run_lock(database, "run-1", NOW):
        monkeypatch.undo()
        with pytest.raises(LockHeldError, match="run-1"):
            run_lock(other, "run-2", NOW).__enter__()


@pytest.mark.parametrize("is_released", [False, True])
def test_a_process_that_lost_the_lock_to_another_cannot_write(opener: Opener, is_released: bool) -> None:
    """Also if the other process has already released the lock."""
    frozen, other = opener(), opener()
    opener.sql("CREATE TABLE t (a INTEGER)")
    with run_lock(frozen, "run-1", NOW), ExitStack() as meanwhile:
        opener.cut()
        meanwhile.enter_context(run_lock(other, "run-2", NOW))
        if is_released:
            meanwhile.close()
        for _ in range(2):  # a retry does not help
            with pytest.raises(LockHeldError):
                frozen.write(lambda connection: connection.exec_driver_sql("INSERT INTO t VALUES (1)"))
    assert opener.sql("SELECT a FROM t") == []


_HOLDER = """
import sys
from datetime import UTC, datetime
from pathlib import Path

from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.errors import LockHeldError
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.lock import run_lock

database = StoreAddress(DatabaseAddress(sys.argv[1]), Path("/nowhere"), 10, lease_seconds=1).open()
with run_lock(database, "run-1", datetime.now(UTC)):
    print("locked", flush=True)
    sys.stdin.readline()
    try:
        database.verify_lock()
    except LockHeldError:
        print("lost", flush=True)
"""


@pytest.mark.slow
def test_the_server_ends_the_session_of_a_frozen_holder(opener: Opener) -> None:
    other = opener()
    command = [sys.executable, "-c", _HOLDER, opener.url]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as frozen:
        assert frozen.stdout is not None
        try:
            assert frozen.stdout.readline() == "locked\n"
            frozen.send_signal(signal.SIGSTOP)
            waiting = threading.Event()
            while other.holder("run") is not None:
                waiting.wait(0.05)
            with run_lock(other, "run-2", NOW):
                frozen.send_signal(signal.SIGCONT)
                assert frozen.communicate("\n", timeout=60)[0] == "lost\n"
        finally:
            frozen.kill()


@pytest.mark.parametrize("own", ['"Eemt"', '"my store"', '"123"'])
def test_the_ledger_is_found_in_any_schema_of_the_search_path(opener: Opener, own: str) -> None:
    opener.sql(f"CREATE SCHEMA {own}")
    name = quote(own)
    first = opener(f"{opener.url}?options=-csearch_path%3D{name}".replace("%20", "%5C%20"))
    Ledger(first).create_tables()
    assert Ledger(first).is_current()
    opener.sql("CREATE SCHEMA later")
    both = opener(f"{opener.url}?options=-csearch_path%3Dlater,{name}".replace("%20", "%5C%20"))
    assert Ledger(both).is_current()
    Ledger(both).create_tables()


# -- lost connections -------------------------------------------------------------------------------

MOMENTS = ("before", "during", "at the commit", "after the commit")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_write_with_a_lost_connection_is_done_exactly_once(
    opener: Opener, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    from sqlalchemy.engine.default import DefaultDialect

    opener.sql("CREATE TABLE t (a INTEGER)")
    database = opener()
    cuts = iter([opener.cut])
    commit: Callable[..., None] = DefaultDialect.do_commit

    def cut_once(current: str) -> None:
        if current == moment and (cut := next(cuts, None)) is not None:
            cut()

    def committing(self: DefaultDialect, connection: Any) -> None:
        cut_once("at the commit")
        commit(self, connection)
        if moment == "after the commit":
            cut_once("after the commit")
            commit(self, connection)  # the driver notices the closed connection
            connection.cursor().execute("SELECT 1")

    def work(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        cut_once("during")

    cut_once("before")
    monkeypatch.setattr(DefaultDialect, "do_commit", committing)
    database.write(work)
    monkeypatch.undo()
    assert opener.sql("SELECT a FROM t") == [(1,)]
    assert next(cuts, None) is None


def test_a_read_with_a_lost_connection_is_repeated(opener: Opener) -> None:
    database = opener()
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
        opener.cut()
        assert connection.exec_driver_sql("SELECT 2").scalar() == 2


@pytest.mark.parametrize("failed_first", [False, True])
def test_candidates_continue_after_a_lost_connection(opener: Opener, failed_first: bool) -> None:
    opener.sql("CREATE TABLE jobs (id TEXT PRIMARY KEY, status TEXT, completed_at TIMESTAMP)")
    opener.sql(
        "INSERT INTO jobs SELECT 'job-' || i, CASE WHEN i % 3 = 0 THEN 'failed' ELSE 'completed' END,"
        " timestamp '2026-01-01' + (i / 4) * interval '1 hour' FROM generate_series(1, 40) AS i"
    )
    database = opener()
    jobs = JobTable(database, POLICY, UTC)
    jobs.gather_candidates(NOW, failed_first=failed_first)
    expected = [job.id for page in jobs.candidates(7) for job in page]
    assert len(expected) == 40
    for _ in range(2):  # they can be read again from the start
        ids = []
        for page in jobs.candidates(7):
            ids += [job.id for job in page]
            opener.cut()
        assert ids == expected


def test_an_intent_is_recorded_once(opener: Opener) -> None:
    database = opener()
    ledger = Ledger(database)
    ledger.create_tables()
    intent = Intent("1", "run", IntentKind.JOB, "a", "completed", ())
    database.write(lambda connection: ledger.add_intents(connection, [intent], NOW))
    database.write(lambda connection: ledger.close_intents(connection, ["1"]))
    with pytest.raises(StoreError):
        database.write(lambda connection: ledger.close_intents(connection, ["1"]))


def test_several_programs_can_create_the_ledger_at_once(opener: Opener) -> None:
    databases = [opener() for _ in range(4)]
    threads = [threading.Thread(target=Ledger(database).create_tables) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Ledger(opener()).is_current()
