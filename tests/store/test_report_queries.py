"""Report queries on valid and invalid rows."""

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


def count(store: JobStore) -> JobUsage:
    database = SqliteDatabase(store.path / "jobs.db", busy_timeout_seconds=1)
    try:
        jobs = JobTable(database, Policy.from_config(store.config().retention), None)
        return count_jobs(database, jobs, "2026-06-14T12:00:00", "2026-05-16T12:00:00")
    finally:
        database.close()


def test_more_groups_than_the_limit_are_counted_together(store: JobStore) -> None:
    store.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO jobs"
        " (id, status, workflow_type) SELECT 'job-' || i, 'status-' || i, 'workflow-' || i FROM n",
        MOST_GROUPS + 50,
    )
    usage = count(store)
    for groups in (usage.by_status, usage.by_workflow_type):
        assert len(groups) == MOST_GROUPS + 1
        assert groups[OTHERS].held.jobs == 50
    assert usage.total.held.jobs == MOST_GROUPS + 50


def test_a_cleaned_job_counts_in_each_period_that_contains_it(store: JobStore) -> None:
    store.sql("ALTER TABLE jobs ADD COLUMN data_cleaned_at TIMESTAMP")
    store.sql("ALTER TABLE jobs ADD COLUMN data_size_mb REAL DEFAULT 0")
    today = ("2026-06-14T12:00:00.000001", "2026-06-14 12:00:01")
    earlier = ("2026-06-14T12:00:00", "2026-05-17T00:00:00")
    for cleaned_at in (*today, *earlier, "2026-05-16T11:59:59.9", None):
        job_id = str(cleaned_at)
        store.job(job_id, files=0)
        store.sql("UPDATE jobs SET data_cleaned_at = ?, data_size_mb = 2 WHERE id = ?", cleaned_at, job_id)
    mb = 2 * 2**20
    assert count(store).by_status == {
        "completed": UsageGroup(Usage(1, mb), 1, cleaned_24h=Usage(2, 2 * mb), cleaned_30d=Usage(4, 4 * mb))
    }


@pytest.mark.parametrize("invalid", ["'much'", "NULL", "9e999", "-9e999", "1e308", "x'ff'", "-5"])
def test_an_invalid_size_counts_as_zero(store: JobStore, invalid: str) -> None:
    store.sql("ALTER TABLE jobs ADD COLUMN data_size_mb")
    store.job("a", files=0)
    store.job("b", files=0, workflow="other")
    store.sql(f"UPDATE jobs SET data_size_mb = {invalid} WHERE id = 'a'")
    store.sql("UPDATE jobs SET data_size_mb = 1 WHERE id = 'b'")
    usage = count(store)
    assert usage.by_workflow_type["sol"].held == Usage(1, 0)
    assert usage.by_workflow_type["other"].held == Usage(1, 2**20)


def test_a_table_without_workflow_types_has_one_group_without_a_name(store: JobStore) -> None:
    store.job("a", files=0)
    store.sql("ALTER TABLE jobs DROP COLUMN workflow_type")
    assert set(count(store).by_workflow_type) == {""}


def test_names_whose_bytes_are_not_utf_8_are_counted(store: JobStore) -> None:
    store.job("a", files=0)
    store.sql("UPDATE jobs SET status = CAST(x'ff41' AS TEXT)")
    assert set(count(store).by_status) == {"\udcffA"}
