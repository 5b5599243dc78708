"""Table jobs: the scan finds whatever could be due, and reads odd tables."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings, strategies as st

from eemtcleanupd.config import RetentionConfig
from eemtcleanupd.errors import StoreError
from eemtcleanupd.policy.retention import Policy, decide
from eemtcleanupd.store.catalog import Catalog
from eemtcleanupd.store.sqlite import SqliteDatabase

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)  # amid Europe's clock change
POLICY = Policy.from_config(RetentionConfig())


def table(path: Path, rows: list[tuple[object, ...]]) -> Path:
    file = path / "jobs.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("DROP TABLE IF EXISTS jobs")
        connection.execute("CREATE TABLE jobs (id TEXT PRIMARY KEY, status TEXT, completed_at TIMESTAMP)")
        connection.executemany("INSERT INTO jobs VALUES (?, ?, ?)", rows)
    return file


def candidates(file: Path, zone: str, page_size: int = 7) -> list[str]:
    database = SqliteDatabase(file, busy_timeout_seconds=5)
    try:
        catalog = Catalog(database, POLICY, ZoneInfo(zone))
        backlog = catalog.backlog(NOW)
        catalog.gather_candidates(NOW)
        found = [job.id for page in catalog.candidates(page_size) for job in page]
        assert backlog.candidates == len(found)
        return found
    finally:
        database.close()


def written(moment: datetime, zone: str, form: str) -> str:
    local = moment.astimezone(ZoneInfo(zone))
    if form == "zone":
        return local.isoformat()
    naive = local.replace(tzinfo=None)
    return naive.isoformat(sep=" ") if form == "space" else naive.isoformat()


@settings(max_examples=60, deadline=None)
@given(
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Kiritimati", "Pacific/Pago_Pago"]
    ),
    foreign=st.sampled_from(["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"]),
    ages=st.lists(
        st.tuples(
            st.sampled_from(["completed", "failed", "running", "odd"]),
            st.floats(0, 400),
            st.sampled_from(["T", "space", "zone"]),
            st.booleans(),
        ),
        max_size=40,
    ),
)
def test_the_scan_misses_nothing_that_is_due(
    tmp_path_factory: pytest.TempPathFactory,
    zone: str,
    foreign: str,
    ages: list[tuple[str, float, str, bool]],
) -> None:
    rows: list[tuple[object, ...]] = []
    for number, (status, hours, form, whole) in enumerate(ages):
        moment = NOW - timedelta(hours=hours)
        moment = moment.replace(microsecond=0) if whole else moment
        rows.append((f"job-{number}", status, written(moment, foreign if form == "zone" else zone, form)))
    file = table(tmp_path_factory.mktemp("scan"), rows)
    found = set(candidates(file, zone))
    database = SqliteDatabase(file, busy_timeout_seconds=5)
    catalog = Catalog(database, POLICY, ZoneInfo(zone))
    with database.read() as connection:
        every = catalog.rows(connection, [str(row[0]) for row in rows])
    database.close()
    due = {job_id for job_id, row in every.items() if decide(row.job, POLICY, NOW).clean}
    assert due <= found
    odd = {str(row[0]) for row in rows if row[1] == "odd"}
    assert odd <= found
    assert not {str(row[0]) for row in rows if row[1] == "running"} & found


@pytest.mark.parametrize(
    "value", [None, "", "yesterday", "20 Nov 2026", "23/11/2026", 1769000000, b"\x00\xff"]
)
def test_what_is_no_time_needs_a_decision(tmp_path: Path, value: object) -> None:
    assert candidates(table(tmp_path, [("odd", "completed", value)]), "UTC") == ["odd"]


def test_fresh_jobs_need_no_decision(tmp_path: Path) -> None:
    fresh = [
        (f"job-{status}-{form}", status, written(NOW - timedelta(hours=1), "Europe/Berlin", form))
        for status in ("completed", "failed")
        for form in ("T", "space")
    ]
    found = candidates(table(tmp_path, list(fresh)), "Europe/Berlin")
    assert "job-completed-T" not in found
    assert "job-completed-space" not in found
    assert "job-failed-T" not in found


def test_candidates_come_oldest_first_in_pages(tmp_path: Path) -> None:
    days = [30, 10, 20, 40, 15]
    rows = [(f"job-{day}", "completed", written(NOW - timedelta(days=day), "UTC", "T")) for day in days]
    assert candidates(table(tmp_path, list(rows)), "UTC", page_size=2) == [
        "job-40",
        "job-30",
        "job-20",
        "job-15",
        "job-10",
    ]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("CREATE TABLE other (id TEXT)", "has no table jobs"),
        ("CREATE TABLE jobs (name TEXT)", r"lacks id \(or job_id\), status, completed_at"),
        ("CREATE TABLE jobs (id TEXT, status TEXT)", "lacks completed_at"),
    ],
)
def test_a_database_of_something_else_is_refused(tmp_path: Path, schema: str, words: str) -> None:
    file = tmp_path / "jobs.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(schema)
    database = SqliteDatabase(file, busy_timeout_seconds=5)
    with pytest.raises(StoreError, match=words):
        Catalog(database, POLICY, None)
    database.close()
