"""What a report counts, whatever stands in the rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.report_queries import MOST_GROUPS, OTHERS, JobUsage, Usage, UsageGroup, count_jobs
from eemtcleanupd.store.sqlite import SqliteDatabase
from tests.cleanup.conftest import JobStore


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "store")


def counted(store: JobStore) -> JobUsage:
    database = SqliteDatabase(store.path / "jobs.db", busy_timeout_seconds=1)
    try:
        catalog = JobTable(database, Policy.from_config(store.config().retention), None)
        return count_jobs(database, catalog, "2026-06-14T12:00:00", "2026-05-16T12:00:00")
    finally:
        database.close()


def test_many_statuses_and_workflows_come_together_and_none_is_lost(store: JobStore) -> None:
    store.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO jobs"
        " (id, status, workflow_type) SELECT 'job-' || i, 'status-' || i, 'workflow-' || i FROM n",
        MOST_GROUPS + 50,
    )
    found = counted(store)
    for groups in (found.by_status, found.by_workflow_type):
        assert len(groups) == MOST_GROUPS + 1
        assert groups[OTHERS].held.jobs == 50
    assert found.total.held.jobs == MOST_GROUPS + 50


def test_a_job_that_was_cleaned_counts_in_each_span_that_it_is_in(store: JobStore) -> None:
    store.sql("ALTER TABLE jobs ADD COLUMN data_cleaned_at TIMESTAMP")
    store.sql("ALTER TABLE jobs ADD COLUMN data_size_mb REAL DEFAULT 0")
    today = ("2026-06-14T12:00:00.000001", "2026-06-14 12:00:01")
    earlier = ("2026-06-14T12:00:00", "2026-05-17T00:00:00")
    for at in (*today, *earlier, "2026-05-16T11:59:59.9", None):
        store.job(str(at), files=0)
        store.sql("UPDATE jobs SET data_cleaned_at = ?, data_size_mb = 2 WHERE id = ?", at, str(at))
    mb = 2 * 2**20
    assert counted(store).by_status == {
        "completed": UsageGroup(Usage(1, mb), 1, cleaned_24h=Usage(2, 2 * mb), cleaned_30d=Usage(4, 4 * mb))
    }


@pytest.mark.parametrize("nonsense", ["'much'", "NULL", "9e999", "-9e999", "x'ff'", "-5"])
def test_a_size_that_is_none_counts_as_none(store: JobStore, nonsense: str) -> None:
    store.sql("ALTER TABLE jobs ADD COLUMN data_size_mb")
    store.job("a", files=0)
    store.job("b", files=0, workflow="other")
    store.sql(f"UPDATE jobs SET data_size_mb = {nonsense} WHERE id = 'a'")
    store.sql("UPDATE jobs SET data_size_mb = 1 WHERE id = 'b'")
    found = counted(store)
    assert found.by_workflow_type["sol"].held == Usage(1, 0)
    assert found.by_workflow_type["other"].held == Usage(1, 2**20)


def test_a_table_without_workflow_types_has_one_group_without_a_name(store: JobStore) -> None:
    store.job("a", files=0)
    store.sql("ALTER TABLE jobs DROP COLUMN workflow_type")
    assert set(counted(store).by_workflow_type) == {""}


def test_names_whose_bytes_are_not_utf_8_are_counted(store: JobStore) -> None:
    store.job("a", files=0)
    store.sql("UPDATE jobs SET status = CAST(x'ff41' AS TEXT)")
    assert set(counted(store).by_status) == {"\udcffA"}
