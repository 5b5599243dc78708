"""Table jobs: the scan finds every job that might be expired, also in unusual tables."""

from __future__ import annotations

import re
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
from eemtcleanupd.model import Decision, Job
from eemtcleanupd.policy.retention import Policy, decide, end_problem
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.sqlite import SqliteDatabase
from eemtcleanupd.store.values import JobFilter
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

    def fill(self, rows: list[tuple[object, ...]], key: str = "id TEXT PRIMARY KEY") -> None:
        if self._url is not None:
            with psycopg.connect(self._url) as server:
                server.execute("DROP TABLE IF EXISTS jobs")
                form = f"({key}, status TEXT, completed_at {self._kind})"
                server.execute(f"CREATE TABLE jobs {form}")
                server.cursor().executemany("INSERT INTO jobs VALUES (%s, %s, %s)", rows)
            return
        with closing(sqlite3.connect(self._file)) as connection, connection:
            connection.execute("DROP TABLE IF EXISTS jobs")
            connection.execute(f"CREATE TABLE jobs ({key}, status TEXT, completed_at TIMESTAMP)")
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

    def decisions(self, zone: str, policy: Policy) -> list[Decision]:
        with closing(self.open()) as database:
            table = JobTable(database, policy, ZoneInfo(zone))
            table.gather_candidates(NOW)
            return [decide(job, policy, NOW) for page in table.candidates(7) for job in page]

    def read(self, zone: str, ids: list[str]) -> list[Job]:
        with closing(self.open()) as database, database.read() as connection:
            rows = JobTable(database, POLICY, ZoneInfo(zone)).rows(connection, ids)
        return [row.job for row in rows.values()]

    def newest(self, zone: str, count: int, page_size: int) -> frozenset[str]:
        with closing(self.open()) as database:
            return JobTable(database, POLICY, ZoneInfo(zone)).newest_successful(count, NOW, page_size)


@pytest.fixture(scope="module", params=["sqlite", "TEXT", "TIMESTAMP", "TIMESTAMPTZ"])
def jobs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    server = None if request.param == "sqlite" else request.getfixturevalue("postgres_server")
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


IMPOSSIBLE = {
    "future": NOW + timedelta(hours=3),
    "far-future": NOW + timedelta(days=365 * 60),
    "before-2000": datetime(1999, 12, 31, 12, tzinfo=UTC),
    "epoch": datetime(1970, 1, 1, tzinfo=UTC),
    "windows": datetime(1601, 1, 1, tzinfo=UTC),
}


@pytest.mark.fast_parameters(8)
@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
@pytest.mark.parametrize("hours", [0, 168, 24 * 365 * 40])
def test_every_job_with_an_impossible_end_gets_a_decision_that_reports_it(
    jobs: Jobs, zone: str, hours: float
) -> None:
    """Whatever the retention: a long one does not make such an end young."""
    rows = [
        (f"{name}-{form}-{foreign}", "completed", written(moment, foreign if form == "zone" else zone, form))
        for name, moment in IMPOSSIBLE.items()
        for form in jobs.forms
        for foreign in ("Pacific/Kiritimati", "Pacific/Pago_Pago")
    ]
    jobs.fill(list(rows))
    policy = Policy.from_config(RetentionConfig.model_validate({"successful_jobs": {"hours": hours}}))
    decisions = {decision.job.id: decision for decision in jobs.decisions(zone, policy)}
    assert decisions.keys() == {job_id for job_id, *_ in rows}
    assert {(decision.clean, decision.notable) for decision in decisions.values()} == {(False, True)}


@pytest.mark.parametrize("ended", ["1795010112345", "20250101T000000", "0001-01-01T00:00:00Z", "2025-01-01"])
def test_text_that_is_no_date_with_separators_and_a_time_is_no_end(tmp_path: Path, ended: str) -> None:
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection, connection:
        connection.execute("CREATE TABLE jobs (id TEXT, status TEXT, completed_at TEXT)")
        connection.execute("INSERT INTO jobs VALUES ('a', 'failed', ?)", (ended,))
    (decision,) = Jobs("sqlite", tmp_path, None).decisions("UTC", POLICY)
    assert (decision.clean, decision.notable) == (False, True)


@pytest.fixture(params=["sqlite", "TEXT"])
def text_jobs(request: pytest.FixtureRequest, tmp_path: Path) -> Jobs:
    return Jobs(
        request.param, tmp_path, None if request.param == "sqlite" else request.getfixturevalue("postgres")
    )


def test_a_huge_value_is_cut_and_makes_no_job_due(text_jobs: Jobs) -> None:
    text_jobs.fill([("a", "completed", "2025-03-20T12:00:00" + " " * 20_000), ("b", "x" * 1_000_000, None)])
    decisions = text_jobs.decisions("UTC", POLICY)
    assert {(decision.clean, decision.notable) for decision in decisions} == {(False, True)}
    assert max(len(decision.job.status) for decision in decisions) < 20_000


def test_the_newest_jobs_are_those_with_the_latest_moments(text_jobs: Jobs) -> None:
    text_jobs.fill(
        [
            ("newest", "completed", "2026-03-20T10:00:00-08:00"),
            ("second", "completed", "2026-03-20T12:00:00Z"),
            ("third", "completed", "2026-03-20 11:30:00"),
            ("fourth", "completed", "2026-03-20T11:00:00.5"),
            ("failed", "failed", "2026-03-21T00:00:00"),
            ("undated", "completed", "n/a"),
            ("number", "completed", "20260321000000"),
            ("future", "completed", "2026-04-01T00:00:00"),
            ("early", "completed", "1970-01-01T00:00:00"),
            ("empty", "completed", None),
        ]
    )
    ranking = ["newest", "second", "third", "fourth"]
    for page_size in (1, 2, 500):
        for count in (0, 1, 2, 3, 4, 5):
            assert text_jobs.newest("UTC", count, page_size) == set(ranking[:count])


def test_an_id_of_several_rows_takes_one_place_among_the_newest(text_jobs: Jobs) -> None:
    text_jobs.fill(
        [
            ("twice", "completed", "2026-03-20T12:00:00Z"),
            ("older", "completed", "2026-03-20T11:00:00Z"),
            ("oldest", "completed", "2026-03-20T10:00:00Z"),
            ("twice", "completed", "2026-03-20T09:00:00Z"),
            ("twice", "completed", "2026-03-20T13:00:00Z"),
        ],
        key="job_id TEXT",
    )
    for page_size in (1, 2, 500):
        assert text_jobs.newest("UTC", 1, page_size) == {"twice"}
        assert text_jobs.newest("UTC", 2, page_size) == {"twice", "older"}
        assert text_jobs.newest("UTC", 9, page_size) == {"twice", "older", "oldest"}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    zone=st.sampled_from(["UTC", "Europe/Berlin", "Asia/Tokyo", "Pacific/Kiritimati", "Pacific/Pago_Pago"]),
    ends=st.lists(
        st.tuples(
            st.integers(-2 * 86_400, 5 * 86_400),
            st.sampled_from(["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"]),
            st.integers(0, 2),
            st.sampled_from([0, 1, 10, 123, 123_456]),
        ),
        max_size=40,
    ),
    count=st.integers(1, 6),
    page_size=st.integers(1, 10),
)
def test_no_page_hides_a_newer_job(
    jobs: Jobs, zone: str, ends: list[tuple[int, str, int, int]], count: int, page_size: int
) -> None:
    rows = []
    for number, (seconds, foreign, form_index, milliseconds) in enumerate(ends):
        form = jobs.forms[form_index % len(jobs.forms)]
        moment = NOW - timedelta(seconds=seconds, milliseconds=milliseconds)
        rows.append(
            (f"job-{number}", "completed", written(moment, foreign if form == "zone" else zone, form))
        )
    jobs.fill(list(rows))
    possible = [job for job in jobs.read(zone, [row[0] for row in rows]) if end_problem(job, NOW) is None]
    ranking = sorted(possible, key=lambda job: (job.completed_at, job.id), reverse=True)
    assert jobs.newest(zone, count, page_size) == {job.id for job in ranking[:count]}


def test_the_newest_jobs_of_a_big_table_are_found_in_few_pages(sqlite_jobs: Jobs) -> None:
    ends = [NOW - timedelta(minutes=number) for number in range(3000)]
    sqlite_jobs.fill(
        [(f"job-{number}", "completed", written(end, "UTC", "T")) for number, end in enumerate(ends)]
    )
    reads = 0

    def count_reads(statement: str) -> None:
        nonlocal reads
        reads += "ended_key" in statement

    database = sqlite_jobs.open()
    with database.read() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.set_trace_callback(count_reads)
    table = JobTable(database, POLICY, UTC)
    assert table.newest_successful(3, NOW, 200) == {"job-0", "job-1", "job-2"}
    database.close()
    assert reads <= 2


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


def test_ids_are_found_by_their_start_and_the_shortest_is_first(jobs: Jobs) -> None:
    names = ("ab1", "ab", "abc_%", "Ab", "b", "é1", "é12")
    jobs.fill([(name, "completed", None) for name in names])
    database = jobs.open()
    try:
        table = JobTable(database, POLICY, None)
        with database.read() as connection:
            found = {
                start: table.ids_starting_with(connection, start, 2)
                for start in ("ab", "abc_", "é", "_", "x\0")
            }
    finally:
        database.close()
    assert found.pop("ab")[0] == "ab"
    assert found == {"abc_": ["abc_%"], "é": ["é1", "é12"], "_": [], "x\0": []}


@pytest.mark.parametrize(
    "declared", ["TEXT PRIMARY KEY", "TEXT COLLATE NOCASE PRIMARY KEY", "INTEGER PRIMARY KEY"]
)
def test_pages_contain_each_job_once_whatever_the_type_of_its_id(tmp_path: Path, declared: str) -> None:
    ids = [str(number) for number in range(1, 40)]
    if "TEXT" in declared:
        ids += ["a", "B", "abZ", "ab[", "ab", "ab\udcff", "ab\udcff\udcff", "ü", "%", "_", " "]
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection, connection:
        connection.execute(f"CREATE TABLE jobs (id {declared}, status TEXT, completed_at TIMESTAMP)")
        connection.executemany(
            "INSERT INTO jobs VALUES (CAST(? AS TEXT), 'completed', '')",
            [(name.encode("utf-8", "surrogateescape"),) for name in ids],
        )
    with closing(SqliteDatabase(tmp_path / "jobs.db", busy_timeout_seconds=1)) as database:
        for limit in (1, 7, 100):
            assert sorted(listed(database, "", limit)) == sorted(ids)
        for start in ("1", "ab", "abZ", "AB", "ab\udcff", "%", "ü"):
            assert sorted(listed(database, start, 3)) == sorted(
                name for name in ids if name.startswith(start)
            )


@pytest.mark.parametrize(
    ("declared", "ids", "expected"),
    [
        ("TEXT", ["a", "a", "a", "b", "b"], 5),
        ("TEXT COLLATE NOCASE", ["a", "A", "b", "B", "c"], 5),
        ("TEXT COLLATE RTRIM", ["a", "a ", "a  ", "b"], 4),
        ("INTEGER", [1, 2, 10, 2**60, 2**60 + 1, "x"], 6),
        ("TEXT", ["a", None, b"b", b"c", b"d", "e"], 2),  # no id is equal to a BLOB
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_contain_each_row_of_a_column_that_is_not_unique(
    tmp_path: Path, declared: str, ids: list[object], expected: int, limit: int
) -> None:
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection, connection:
        connection.execute(f"CREATE TABLE jobs (job_id {declared}, status TEXT, completed_at TIMESTAMP)")
        connection.executemany("INSERT INTO jobs VALUES (?, 'completed', '')", [(each,) for each in ids])
    with closing(SqliteDatabase(tmp_path / "jobs.db", busy_timeout_seconds=1)) as database:
        found = listed(database, "", limit)
    assert len(found) == expected
    assert set(found) == {str(each) for each in ids if isinstance(each, str | int)}


def test_pages_contain_each_job_once_in_any_database(jobs: Jobs) -> None:
    names = ["a", "A", "ab", "a b", "ä", "Z", "_", "%", "10", "9", *(f"job-{number}" for number in range(20))]
    jobs.fill([(name, "completed", None) for name in names])
    with closing(jobs.open()) as database:
        for limit in (1, 7, 100):
            assert sorted(listed(database, "", limit)) == sorted(names)
            assert sorted(listed(database, "job-1", limit)) == sorted(
                filter(re.compile("job-1").match, names)
            )


def listed(database: Database, start: str, limit: int) -> list[str]:
    """Return the ids of all pages of a list."""
    table = JobTable(database, POLICY, None)
    found: list[str] = []
    after = None
    while True:
        with database.read() as connection:
            page = table.page(connection, JobFilter(start), after, limit)
        found += [row.job.id for row, _ in page.rows]
        assert page.next_after is None or page.next_after != after
        after = page.next_after
        if after is None:
            return found


def test_the_start_of_an_id_is_found_in_its_index(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as file, file:
        file.execute("CREATE TABLE jobs (id TEXT PRIMARY KEY, status TEXT, completed_at TIMESTAMP)")
    with closing(SqliteDatabase(tmp_path / "jobs.db", busy_timeout_seconds=1)) as database:
        condition = database.starts_with("id", "abc").compile(compile_kwargs={"literal_binds": False})
        values = {
            name: str(each).encode("utf-8", "surrogateescape") for name, each in condition.params.items()
        }
        with database.read() as connection:
            plan = connection.exec_driver_sql(
                f"EXPLAIN QUERY PLAN SELECT id FROM jobs WHERE {condition}", values
            ).all()
    assert "SEARCH" in str(plan)
