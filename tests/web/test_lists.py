"""The pages with lists, in the test's process: what they contain, page after page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path

import pytest

from eemtcleanupd.events import AuditEntry
from eemtcleanupd.model import Hold
from eemtcleanupd.web.context import open_ledger
from eemtcleanupd.web.pages import from_key, to_key
from tests.web.conftest import Site, create_store, site_of

ODD = ["../etc/passwd", '"quoted"', "a b&c=d#e?", "line\nbreak", "b\udc80yte", "<i>x</i>"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    store = create_store(tmp_path_factory.mktemp("lists") / "store")
    for number in range(120):
        store.job(f"many-{number:03}", "completed" if number % 2 else "failed", days=0.1, files=0)
    with site_of(store) as site:
        yield site


def test_the_job_list_contains_every_job_once(site: Site) -> None:
    listed = site.jobs("/jobs")
    assert listed == sorted(str(row[0]) for row in site.store.sql("SELECT id FROM jobs"))
    assert len(listed) > 120


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("q=many-0", 100),
        ("q=many-007", 1),
        ("q=MANY", 0),
        ("q=%25", 0),
        ("q=many&status=failed", 60),
        ("status=live", 1),
        ("status=unknown", 0),
        ("show=cleaned", 0),
        ("show=data&q=many", 120),
        ("show=nonsense&status=nonsense&q=many-1", 20),
    ],
)
def test_the_job_list_is_searched(site: Site, query: str, count: int) -> None:
    assert len(site.jobs(f"/jobs?{query}")) == count


def test_the_job_list_shows_who_is_held_and_only_those(site: Site) -> None:
    with open_ledger(site.backend.config, create=True) as ledger:
        assert ledger is not None
        now = datetime.now(UTC)
        ledger.hold(Hold("many-001", "paper", "ann"), now)
        ledger.hold(Hold("many-002", "past", "ann", now - timedelta(days=1)), now)
        ledger.hold(Hold("no such job", "typing", "ann"), now)
    assert site.jobs("/jobs?show=held") == ["many-001"]
    assert site.jobs("/jobs?show=held&q=x") == []
    assert site.get("/job?job_id=many-001").count("paper") == 1


def test_a_job_has_a_page_and_an_unknown_one_has_not(site: Site) -> None:
    assert "7 days" in site.get("/job?job_id=young")
    site.get("/job?job_id=nobody", status=404)
    assert "many-000" in site.get("/job"), "a form that was sent empty leads to the list"


def test_the_start_of_an_id_finds_the_job_while_no_other_starts_so(site: Site) -> None:
    assert '<h1>Job <span class="id">young</span></h1>' in site.get("/job?job_id=you")
    assert "many-000" in site.get("/job?job_id=many-00", status=409)


def test_the_list_of_jobs_that_need_attention_has_what_no_rule_or_no_run_can_clean(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store")
    store.job("undated", days=None)
    store.job("odd", "archived")
    store.job("evil", dem="../a")
    for number in range(1500):
        store.job(f"many-{number:04}", days=0.1, files=0)
    with site_of(store) as site:
        assert site.jobs("/jobs?show=attention") == ["evil", "odd", "undated"]
        assert site.jobs("/jobs?show=attention&q=o&status=unknown") == ["odd"]
        with open_ledger(site.backend.config, create=True):
            pass
        for run, trigger, outcome, job in (
            ("1", "schedule", "errors", "b"),
            ("2", "schedule", "errors", "a"),
            ("3", "trash", "success", "young"),
            ("4", "recovery", "success", "young"),
            ("5", "schedule", "refused", "young"),
        ):
            site.store.sql(
                "INSERT INTO cleanup_runs (id, number, started_at, finished_at, trigger, outcome)"
                " VALUES (?, ?, ?, '2026-01-09 00:00:00', ?, ?)",
                *(run, int(run), f"2026-01-0{run} 00:00:00", trigger, outcome),
            )
            site.store.sql(
                "INSERT INTO cleanup_log (run_id, job_id, action, message) VALUES (?, ?, 'failed', 'EIO')",
                *(run, job),
            )
        assert site.jobs("/jobs?show=attention") == ["a", "evil", "odd", "undated"]
        assert "EIO" in site.get("/jobs?show=attention")


@pytest.mark.slow
def test_a_search_for_jobs_that_need_attention_is_continued(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store")
    store.sql(
        "INSERT INTO jobs (id, workflow_type, status) WITH RECURSIVE n(i) AS"
        " (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 11999)"
        " SELECT printf('many-%05d', i), 'sol', CASE WHEN i % 200 = 7 THEN 'odd' ELSE 'running' END FROM n"
    )
    with site_of(store) as site:
        assert len(site.jobs("/jobs?show=attention")) == 60


@pytest.mark.parametrize("job_id", ODD)
def test_a_job_of_any_name_is_found_by_its_link(site: Site, job_id: str) -> None:
    site.store.sql(
        "INSERT INTO jobs (id, workflow_type, status) VALUES (CAST(? AS TEXT), 'sol', 'odd')",
        job_id.encode("utf-8", "surrogateescape"),
    )
    try:
        page = site.get("/jobs?status=unknown")
        (link,) = re.findall(r'<th scope="row" class="id"><a href="([^"]*)"', page)
        assert "<h1>Job" in site.get(unescape(link))
        assert from_key(to_key(job_id)) == job_id
    finally:
        site.store.sql("DELETE FROM jobs WHERE status = 'odd'")


@pytest.mark.parametrize(
    "key", ['"\\ud800"', '"\\udfff"', '"\\ud83d"', '"', '"a"b', '"\\u0000"', "\0", "x" * 2_000]
)
def test_a_key_of_no_job_finds_none(site: Site, key: str) -> None:
    params = {"q": key, "after": key, "job": key, "job_id": key, "before": key}
    for path, status in {"/jobs": 200, "/job": 404, "/trash": 200, "/runs": 200, "/hold": 200}.items():
        answer = site.client.get(path, params=params, headers=site.bearer("clean"))
        assert answer.status_code == (422 if "\0" in key else status)
    assert from_key(to_key(key)) == key


def test_runs_are_paged_and_name_who_started_them(site: Site) -> None:
    with open_ledger(site.backend.config, create=True):
        pass
    for number in range(120):
        site.store.sql(
            "INSERT INTO cleanup_runs (id, number, started_at, trigger, user, bytes_freed)"
            " VALUES (?, ?, ?, 'api', 'ann', 4096)",
            f"run-{number:03}",
            number,
            f"{datetime.now(UTC) - timedelta(days=(120 - number) // 2):%Y-%m-%d %H:%M:%S}",
        )
    assert site.jobs("/runs") == [f"run-{number:03}" for number in reversed(range(120))]
    page = site.get("/runs")
    assert page.count("ann") == 50
    assert page.count('class="column"') == 61
    assert site.get("/runs?before=nonsense").count("<tr>") == 0
    assert '<section class="card" aria-labelledby="h-jobs">' in site.get("/runs/run-001")
    site.get("/runs/run-1", status=404)


def test_the_log_of_a_run_is_paged_with_its_errors_first(site: Site) -> None:
    with open_ledger(site.backend.config, create=True):
        pass
    site.store.sql(
        "INSERT INTO cleanup_runs (id, number, started_at, outcome)"
        " VALUES ('long', 0, '2020-01-01 00:00:00', 'errors')"
    )
    rows = []
    for number in range(450):
        action = "failed" if number == 449 else "cleaned"
        rows.append(f"('long', 'j-{number}', 'completed', '{action}', 1, '')")
    columns = "run_id, job_id, status, action, bytes_freed, message"
    site.store.sql(f"INSERT INTO cleanup_log ({columns}) VALUES {', '.join(rows)}")
    assert site.jobs("/runs/long") == ["j-449", *(f"j-{number}" for number in range(450))]
    site.store.sql("DELETE FROM cleanup_runs WHERE id = 'long'")


def test_the_trash_is_paged_in_the_order_of_its_deletion(site: Site) -> None:
    with open_ledger(site.backend.config, create=True):
        pass
    for number in range(130):
        site.store.sql(
            "INSERT INTO cleanup_intents (id, run_id, kind, state, job_id, status, artifacts, purge_after,"
            " size_bytes, created_at)"
            " VALUES (?, 'r', 'job', 'trashed', ?, 'completed', '[]', ?, 5, '2026-01-01')",
            f"i-{number}",
            f"t-{number}",
            None if number == 7 else f"2026-01-01 00:{number % 60:02}:00",
        )
    try:
        expected = sorted(range(130), key=lambda n: ("" if n == 7 else f"{n % 60:02}", f"i-{n}"))
        assert site.jobs("/trash") == [f"t-{number}" for number in expected]
        assert sorted(site.jobs("/trash?q=t-12")) == ["t-12", *(f"t-12{digit}" for digit in range(10))]
    finally:
        site.store.sql("DELETE FROM cleanup_intents")


def test_the_audit_log_is_paged_and_searched(site: Site) -> None:
    for number in range(60):
        entry = AuditEntry(datetime.now(UTC), "ann", "hold", {"job_id": f"Käse {number}"}, "10.0.0.1")
        site.backend.plugins.audit([entry])
    lines = site.jobs("/audit")
    assert lines == [str(number) for number in range(len(lines), 0, -1)]
    assert len(lines) >= 60
    assert site.jobs("/audit?q=Käse") == [line for line in lines if line in lines[:60]]
    assert len(site.jobs("/audit?q=ANN")) == 60
    assert site.jobs("/audit?q=no-such-text") == []


def test_a_line_that_another_program_wrote_harms_no_page_of_the_audit_log(tmp_path: Path) -> None:
    with site_of(create_store(tmp_path / "store")) as site:
        site.client.get("/hold", headers=site.bearer("read"))  # refused, so there is a line
        log = site.store.path / "logs/cleanup_audit.jsonl"
        for line in (
            '"seq": "<script>\u202e", "timestamp": 1e999, "details": {"\\ud800": "\\u202e"}',
            '"timestamp": "0001-01-01T00:00:00+14:00", "details": 1, "user": ["<script>"]',
            f'"details": {{"x": {"[" * 900}{"]" * 900}}}, "ip_address": {{"a": "<script>\u202e"}}',
            f'"user": "{"x" * 3_000_000}", "action": null',
        ):
            with log.open("a", encoding="utf-8") as file:
                file.write(f'{{"seq": 9, {line}, "hash": "{"a" * 64}"}}\n')
        page = site.get("/audit")
        assert len(page) < 100_000
        assert "<script>" not in page
        assert "\u202e" not in page
        assert page.count("<tr>") == 6


def test_the_configuration_has_origins_and_no_secrets(site: Site) -> None:
    page = site.get("/config")
    assert "SECRET" not in page
    assert "trash.grace_hours" in site.jobs("/config?q=TRASH")[0]
    assert len(site.jobs("/config?changed=1")) < 10 < len(site.jobs("/config"))


def test_the_plan_is_a_page(site: Site) -> None:
    assert sorted(site.jobs("/plan")) == ["a", "b"]
    assert site.jobs("/plan?number=2") == []


LISTS = ["/jobs", "/plan", "/trash", "/runs", "/audit", "/config", "/job?job_id=a"]


def test_lists_need_a_token(site: Site) -> None:
    for path in LISTS:
        assert site.client.get(path).status_code == 401
        assert site.client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 403


def test_lists_without_the_ledger_and_without_the_database(tmp_path: Path) -> None:
    with site_of(create_store(tmp_path / "store")) as site:
        for path in LISTS:
            site.get(path)
        (site.store.path / "jobs.db").rename(site.store.path / "away.db")
        for path in LISTS:
            if path not in {"/audit", "/plan"}:  # the plan is remembered
                assert str(site.store.path) not in site.get(path, status=503)


def test_lists_read_the_ledger_of_an_earlier_version(tmp_path: Path) -> None:
    with site_of(create_store(tmp_path / "store")) as site:
        assert site.client.post("/hold", data={"job": "a"}, headers=site.bearer("clean")).status_code == 200
        site.store.sql("DROP TABLE cleanup_acknowledgements")
        site.store.sql("ALTER TABLE cleanup_runs DROP COLUMN number")
        assert site.jobs("/jobs?show=held") == ["a"]
        for path in LISTS:
            site.get(path)
