"""Tables that the web interface would not create: partitions, triggers, rights and computed columns."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from eemtcleanupd.cleanup.session import job_table
from eemtcleanupd.errors import CleanupError, RowError
from tests.cleanup.conftest import SCHEMA, JobStore
from tests.postgres import Server


@pytest.fixture
def server_store(tmp_path: Path, postgres: Server) -> JobStore:
    return JobStore(tmp_path / "server", url=postgres.create())


def recreate(store: JobStore, schema: str, *more: str) -> None:
    for statement in ("DROP TABLE jobs", schema, *more):
        store.sql(statement)


@pytest.mark.parametrize("by", ["LIST (status)", pytest.param("HASH (id)", marks=pytest.mark.slow)])
def test_a_partitioned_table_is_cleaned(server_store: JobStore, by: str) -> None:
    column = "status" if "status" in by else "id"
    schema = SCHEMA.replace("id TEXT PRIMARY KEY", "id TEXT").rstrip().removesuffix(")")
    schema += f", PRIMARY KEY ({', '.join(sorted({'id', column}))})) PARTITION BY {by}"
    partitions = {
        "status": [
            "CREATE TABLE ended PARTITION OF jobs FOR VALUES IN ('completed', 'failed')",
            "CREATE TABLE others PARTITION OF jobs DEFAULT",
        ],
        "id": [
            f"CREATE TABLE part{n} PARTITION OF jobs FOR VALUES WITH (MODULUS 2, REMAINDER {n})"
            for n in range(2)
        ],
    }[column]
    recreate(server_store, schema, *partitions)
    for number in range(4):
        server_store.job(f"due-{number}", dem="shared.tif")
    server_store.job("live", "running", days=None, dem="shared.tif")
    upload = server_store.upload("shared.tif")
    server_store.run(trash__grace_hours=24)
    assert server_store.cleaned() == {f"due-{number}" for number in range(4)}
    assert upload.exists()
    assert server_store.results("live").exists()


def test_the_rows_of_one_partition_alone_are_not_the_table(server_store: JobStore) -> None:
    """A policy on one partition hides a running job as one on the table does."""
    schema = SCHEMA.replace("id TEXT PRIMARY KEY", "id TEXT").rstrip() + " PARTITION BY LIST (status)"
    recreate(
        server_store,
        schema,
        "CREATE TABLE running PARTITION OF jobs FOR VALUES IN ('running')",
        "CREATE TABLE others PARTITION OF jobs DEFAULT",
        "ALTER TABLE running ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE running FORCE ROW LEVEL SECURITY",
    )
    server_store.job("due", dem="shared.tif")
    server_store.job("live", "running", days=None, dem="shared.tif")
    upload = server_store.upload("shared.tif")
    server_store.run()
    assert upload.exists()
    assert server_store.results("live").exists()


@pytest.mark.parametrize(
    "how",
    ["revoked", *(pytest.param(how, marks=pytest.mark.slow) for how in ("no policy", "revoked column"))],
)
def test_a_right_that_is_missing_stops_the_run_before_anything_moves(
    server_store: JobStore, how: str
) -> None:
    server_store.job("first")
    server_store.run()
    server_store.job("a")
    if how == "revoked":
        server_store.sql("REVOKE UPDATE ON jobs FROM CURRENT_USER")
    elif how == "revoked column":
        server_store.sql("REVOKE UPDATE ON jobs FROM CURRENT_USER")
        server_store.sql("GRANT UPDATE (data_size_mb) ON jobs TO CURRENT_USER")
    else:
        server_store.sql("ALTER TABLE jobs ENABLE ROW LEVEL SECURITY")
        server_store.sql("ALTER TABLE jobs FORCE ROW LEVEL SECURITY")
        server_store.sql("CREATE POLICY readable ON jobs FOR SELECT USING (true)")
    for _ in range(2):
        before = server_store.results("a").stat().st_ctime_ns
        with contextlib.suppress(CleanupError):
            assert server_store.run().errors == 1
        assert server_store.results("a").stat().st_ctime_ns == before
        assert server_store.cleaned() == {"first"}


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_computed_end_is_read_like_any_other(
    store: JobStore, request: pytest.FixtureRequest, kind: str
) -> None:
    if kind == "postgres":
        store = request.getfixturevalue("server_store")
    recreate(
        store,
        "CREATE TABLE jobs (id TEXT PRIMARY KEY, status TEXT, ended TEXT, dem_filename TEXT,"
        " completed_at TEXT GENERATED ALWAYS AS (ended || 'T00:00:00') STORED)",
    )
    for job, ended in (("due", "2026-06-01"), ("young", "2026-06-14"), ("undated", "n/a")):
        store.sql("INSERT INTO jobs (id, status, ended) VALUES (?, 'completed', ?)", job, ended)
        store.results(job).mkdir()
    report = store.run()
    assert store.cleaned() == {"due"}
    assert report.skipped == 1


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_trigger_that_undoes_the_mark_keeps_the_files(
    store: JobStore, request: pytest.FixtureRequest, kind: str
) -> None:
    """The update succeeds and counts a row, and the row is as before."""
    if kind == "postgres":
        store = request.getfixturevalue("server_store")
    store.job("first")
    store.run()
    if kind == "postgres":
        store.sql(
            "CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " new.data_cleaned_at := old.data_cleaned_at; RETURN new; END $$"
        )
        store.sql("CREATE TRIGGER undo BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION undo()")
    else:
        store.sql(
            "CREATE TRIGGER undo AFTER UPDATE OF data_cleaned_at ON jobs BEGIN"
            " UPDATE jobs SET data_cleaned_at = old.data_cleaned_at WHERE id = new.id; END"
        )
    store.job("a")
    for _ in range(2):
        assert store.run().errors == 1
        assert store.results("a").exists()
    database = store.open()
    jobs = job_table(database, store.config())
    with pytest.raises(RowError):  # as a restore does it, and a reset
        database.write(lambda connection: jobs.mark_uncleaned(connection, "first"))
    with pytest.raises(RowError):
        database.write(jobs.mark_all_uncleaned)


def test_a_constraint_that_is_checked_at_the_commit_keeps_the_files(
    server_store: JobStore,
) -> None:
    store = server_store
    store.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF new.id = 'bad' THEN RAISE 'no'; END IF; RETURN NULL; END $$"
    )
    store.sql(
        "CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON jobs DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    for job in ("bad", "good"):
        store.job(job)
    for _ in range(2):
        assert store.run().errors == 1
        assert store.cleaned() == {"good"}
        assert store.results("bad").exists()


def as_blob(store: JobStore, column: str, job_id: str) -> None:
    """Let SQLite have a value as bytes, as Python's sqlite3 writes them: they are equal to no text."""
    store.sql(f"UPDATE jobs SET {column} = CAST({column} AS BLOB) WHERE id = ?", job_id)


def test_an_upload_that_a_running_job_names_in_bytes_stays(store: JobStore) -> None:
    store.job("live", "running", days=None, dem="shared.tif")
    store.job("due", dem="shared.tif")
    store.job("free", dem="free.tif")
    upload, free = store.upload("shared.tif"), store.upload("free.tif")
    as_blob(store, "dem_filename", "live")
    store.run()
    assert store.cleaned() == {"due", "free"}
    assert upload.exists()
    assert not free.exists()
    store.wait(days=3)
    store.run(force=True, orphans__delete_after_hours=24)
    assert upload.exists()


def test_jobs_whose_ids_are_bytes_keep_their_data(store: JobStore) -> None:
    store.job("live", "running", days=None, dem="live.tif")
    store.job("due")
    upload = store.upload("live.tif")
    for job in ("live", "due"):
        as_blob(store, "id", job)
    assert store.run().errors == 1, "the row of the expired one cannot be updated"
    store.wait(days=3)
    report = store.run(force=True, orphans__delete_after_hours=24)
    assert (report.errors, report.orphans_found) == (1, 0)
    assert upload.exists()
    assert store.results("live").exists()
    assert store.results("due").exists()


def test_a_status_that_is_bytes_is_an_unknown_one(store: JobStore) -> None:
    """The database counts it neither as ended nor among the newest."""
    store.job("newest", days=9)
    store.job("older", days=10)
    as_blob(store, "status", "newest")
    assert store.run(retention__successful_jobs__keep_last=1).skipped == 1
    assert store.cleaned() == set()
