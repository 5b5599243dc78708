"""Rows and tables that refuse what a run would record: nothing of them moves, and nothing is claimed."""

from __future__ import annotations

import pytest

from eemtcleanupd.errors import StoreError
from eemtcleanupd.events import JobFailed
from tests.cleanup.conftest import JobStore

_SQLITE = "CREATE TRIGGER refuse BEFORE UPDATE ON jobs WHEN old.id = 'bad' BEGIN SELECT RAISE({}); END"
_FUNCTION = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " IF old.id = 'bad' THEN {} END IF; RETURN new; END $$"
)
_TRIGGER = "CREATE TRIGGER refuse BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION refuse()"


def refuse(store: JobStore, how: str) -> None:
    """Let the database refuse each update of job ``bad``: by an error, or by doing nothing."""
    if store.url is None:
        raised = {"ignore": "IGNORE", "abort": "ABORT, 'no'", "rollback": "ROLLBACK, 'no'"}
        store.sql(_SQLITE.format(raised[how]))
    else:
        done = {"ignore": "RETURN NULL;", "abort": "RAISE 'no';", "rollback": "RAISE 'no';"}
        store.sql(_FUNCTION.format(done[how]))
        store.sql(_TRIGGER)


def failed(store: JobStore) -> list[str]:
    return [event.job_id for event in store.events if isinstance(event, JobFailed)]


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("how", ["ignore", "abort", "rollback"])
def test_a_row_that_cannot_be_updated_keeps_its_files_and_stops_no_other(store: JobStore, how: str) -> None:
    for job in ("bad", "good", "other"):
        store.job(job)
    refuse(store, how)
    for _ in range(2):
        report = store.run()
        assert (report.outcome, report.errors, failed(store)) == ("errors", 1, ["bad"])
        assert (store.results("bad") / "global/day_0.tif").exists()
    assert store.cleaned() == {"good", "other"}
    store.sql("DROP TRIGGER refuse" + ("" if store.url is None else " ON jobs"))
    assert store.run().successful.jobs == 1


def test_a_row_that_is_refused_only_when_it_is_recorded_is_an_error_and_stops_no_other(
    store: JobStore,
) -> None:
    store.job("bad")
    store.job("good")
    store.run(retention__successful_jobs__hours=100_000)
    if store.url is None:
        store.sql(
            "CREATE TRIGGER refuse BEFORE UPDATE ON jobs WHEN old.id = 'bad' AND new.cleanup_summary LIKE"
            " 'deleted%' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    else:
        store.sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF old.id = 'bad'"
            " AND left(new.cleanup_summary, 7) = 'deleted' THEN RAISE 'no'; END IF; RETURN new; END $$"
        )
        store.sql(_TRIGGER)
    report = store.run()
    assert (report.successful.jobs, report.errors, failed(store)) == (1, 1, ["bad"])
    assert store.cleaned() == {"good"}


@pytest.mark.sqlite
def test_a_constraint_on_the_size_is_that_jobs_error(store: JobStore) -> None:
    store.sql("DROP TABLE jobs")
    store.sql(
        store.schema.replace("progress INTEGER DEFAULT 0", "data_size_mb REAL CHECK (data_size_mb < 0.02)")
    )
    store.job("small", files=1)
    store.job("large", files=9)
    store.job("waits", days=1, files=9)
    for _ in range(2):  # the size was not known before, so only the record shows that it is refused
        assert store.run().errors == 1
        assert store.cleaned() == {"small"}
        assert not store.results("large").exists()


@pytest.mark.parametrize("table", ["cleanup_log", "cleanup_audit"])
def test_a_log_that_refuses_entries_stops_the_run_before_anything_moves(store: JobStore, table: str) -> None:
    store.job("done")
    store.run()
    store.job("a")
    if store.url is None:
        store.sql(f"DROP TABLE {table}")
        columns = "id INTEGER PRIMARY KEY, timestamp, run_id, job_id, status, action, bytes_freed, message"
        store.sql(f"CREATE TABLE {table} ({columns}, space_freed_mb, user, more TEXT NOT NULL)")
    else:
        store.sql(f"ALTER TABLE {table} ADD COLUMN more TEXT NOT NULL DEFAULT 'x'")
        store.sql(f"ALTER TABLE {table} ALTER COLUMN more DROP DEFAULT")
    before = store.snapshot()
    with pytest.raises(StoreError, match="more"):
        store.run()
    assert store.snapshot() == before
