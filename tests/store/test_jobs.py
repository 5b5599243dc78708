"""Table jobs: the scan finds every job that might be expired, also in unusual tables."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import given, settings, strategies as st

from eemtcleanupd.config import RetentionConfig
from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.errors import StoreError
from eemtcleanupd.policy.retention import Policy, decide
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.sqlite import SqliteDatabase
from tests.postgres import Server

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)  # during Europe's clock change
POLICY = Policy.from_config(RetentionConfig())


class Jobs:
    """Table jobs in one of the databases.  The test chooses the zone of times without one."""

    def __init__(self, kind: str, folder: Path, server: Server | None) -> None:
        self._kind = kind
        self._file = folder / "jobs.db"
        self._url = None if server is None else server.create()
        self.forms = {"TIMESTAMP": ["T"], "TIMESTAMPTZ": ["zone"]}.get(kind, ["T", "space", "zone"])

    def fill(self, rows: list[tuple[object, ...]]) -> None:
        if self._url is not None:
            with psycopg.connect(self._url) as server:
                server.execute("DROP TABLE IF EXISTS jobs")
                form = f"(id TEXT PRIMARY KEY, status TEXT, completed_at {self._kind})"
                server.execute(f"CREATE TABLE jobs {form}")
                server.cursor().executemany("INSERT INTO jobs VALUES (%s, %s, %s)", rows)
            return
        with closing(sqlite3.connect(self._file)) as connection, connection:
            connection.execute("DROP TABLE IF EXISTS jobs")
            connection.execute("CREATE TABLE jobs (id TEXT PRIMARY KEY, status TEXT, completed_at TIMESTAMP)")
            connection.executemany("INSERT INTO jobs VALUES (?, ?, ?)", rows)

    def open(self) -> Database:
        if self._url is None:
            return SqliteDatabase(self._file, busy_timeout_seconds=5)
        return StoreAddress(DatabaseAddress(self._url), self._file.parent, 5).open()

    def candidates(self, zone: str, page_size: int = 7) -> list[str]:
        database = self.open()
        try:
            table = JobTable(database, POLICY, ZoneInfo(zone))
            backlog = table.backlog(NOW)
            table.gather_candidates(NOW)
            ids = [job.id for page in table.candidates(page_size) for job in page]
            assert backlog.candidates == len(ids)
            return ids
        finally:
            database.close()


@pytest.fixture(scope="module", params=["sqlite", "TEXT", "TIMESTAMP", "TIMESTAMPTZ"])
def jobs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    server = None if request.param == "sqlite" else request.getfixturevalue("postgres")
    return Jobs(request.param, tmp_path_factory.mktemp("jobs"), server)


@pytest.fixture
def sqlite_jobs(tmp_path: Path) -> Jobs:
    return Jobs("sqlite", tmp_path, None)


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
            st.integers(0, 2),
            st.booleans(),
        ),
        max_size=40,
    ),
)
@pytest.mark.slow
def test_the_scan_misses_no_expired_job(
    jobs: Jobs,
    zone: str,
    foreign: str,
    ages: list[tuple[str, float, int, bool]],
) -> None:
    rows: list[tuple[object, ...]] = []
    for number, (status, hours, form_index, whole_seconds) in enumerate(ages):
        form = jobs.forms[form_index % len(jobs.forms)]
        moment = NOW - timedelta(hours=hours)
        moment = moment.replace(microsecond=0) if whole_seconds else moment
        rows.append((f"job-{number}", status, written(moment, foreign if form == "zone" else zone, form)))
    jobs.fill(rows)
    candidates = set(jobs.candidates(zone))
    database = jobs.open()
    table = JobTable(database, POLICY, ZoneInfo(zone))
    with database.read() as connection:
        every = table.rows(connection, [str(row[0]) for row in rows])
    database.close()
    expired = {job_id for job_id, row in every.items() if decide(row.job, POLICY, NOW).clean}
    assert expired <= candidates
    odd = {str(row[0]) for row in rows if row[1] == "odd"}
    assert odd <= candidates
    assert not {str(row[0]) for row in rows if row[1] == "running"} & candidates


@pytest.mark.parametrize(
    "value", [None, "", "yesterday", "20 Nov 2026", "23/11/2026", 1769000000, b"\x00\xff"]
)
def test_a_job_with_an_invalid_end_needs_a_decision(sqlite_jobs: Jobs, value: object) -> None:
    sqlite_jobs.fill([("odd", "completed", value)])
    assert sqlite_jobs.candidates("UTC") == ["odd"]


def test_fresh_jobs_need_no_decision(sqlite_jobs: Jobs) -> None:
    fresh = [
        (f"job-{status}-{form}", status, written(NOW - timedelta(hours=1), "Europe/Berlin", form))
        for status in ("completed", "failed")
        for form in ("T", "space")
    ]
    sqlite_jobs.fill(list(fresh))
    candidates = sqlite_jobs.candidates("Europe/Berlin")
    assert "job-completed-T" not in candidates
    assert "job-completed-space" not in candidates
    assert "job-failed-T" not in candidates


def test_candidates_come_oldest_first_in_pages(jobs: Jobs) -> None:
    days = [30, 10, 20, 40, 15]
    form = jobs.forms[0]
    jobs.fill([(f"job-{day}", "completed", written(NOW - timedelta(days=day), "UTC", form)) for day in days])
    assert jobs.candidates("UTC", page_size=2) == [
        "job-40",
        "job-30",
        "job-20",
        "job-15",
        "job-10",
    ]


@pytest.mark.parametrize(
    ("schema", "missing"),
    [
        ("CREATE TABLE other (id TEXT)", "jobs"),
        ("CREATE TABLE jobs (name TEXT)", r"id \(or job_id\), status, completed_at"),
        ("CREATE TABLE jobs (id TEXT, status TEXT)", "completed_at"),
    ],
)
def test_a_database_of_another_program_is_refused(tmp_path: Path, schema: str, missing: str) -> None:
    file = tmp_path / "jobs.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(schema)
    database = SqliteDatabase(file, busy_timeout_seconds=5)
    with pytest.raises(StoreError, match=missing):
        JobTable(database, POLICY, None)
    database.close()
