"""``report`` in all formats: its figures are right and it changes nothing."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from axe_playwright_python.sync_playwright import Axe
from click.testing import CliRunner, Result
from playwright.sync_api import Page, sync_playwright

from eemtcleanupd.cli.main import cli
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.installation import add_extra
from eemtcleanupd.report import formats
from eemtcleanupd.report.collect import gather
from tests.cleanup.conftest import JobStore
from tests.conftest import Aged, RunCli
from tests.postgres import PASSWORD, QUOTED, Server

FORMS = ("text", "json", "html", "csv")
GB = 2**30
HOSTILE = (
    "=HYPERLINK(1)",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "  =1",
    "\t=1",
    "\r=1",
    "<script>document.title='gone'</script>",
    '"><img src=x onerror="document.title=1">',
    "{{ 7*7 }} {% raw %}",
    'a,b\n"c";d',
    "\u202egnp.exe\x1b[31m\x07",
    "x" * 300,
)
DOCUMENTED_METRICS_SCRIPT = (Path(__file__).parents[1] / "data/document_metrics.txt").read_text()


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path / "store", now=datetime.now(UTC))
    (store.path / "cleanup_config.yaml").write_text("database: {timezone: UTC}\n")
    return store


class Reporter:
    """Calls the command within the test's process, in the folder of the store."""

    def __call__(self, *options: str | Path, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, ["report", *map(str, options)])
        if isinstance(result.exception, CleanupError):  # main() turns it into a message
            result.exit_code = result.exception.exit_code
            result.stderr_bytes = str(result.exception).encode()
        assert result.exit_code == code, (result.stderr, result.exception)
        return result

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("--json").stdout)
        return found


@pytest.fixture
def report(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> Reporter:
    monkeypatch.chdir(store.path)
    return Reporter()


def with_history(store: JobStore, days: int = 20, *, free_gb: int = 100, lose_gb: int = 4) -> None:
    """Give a store that was cleaned a storage history that ends now."""
    store.sql("DELETE FROM cleanup_storage")
    for day in range(days):
        moment = store.now - timedelta(days=days - 1 - day)
        store.sql(
            "INSERT INTO cleanup_storage (timestamp, successful_bytes, failed_bytes, free_bytes, total_bytes)"
            " VALUES (?, ?, ?, ?, ?)",
            f"{moment:%Y-%m-%d %H:%M:%S}",
            (10 + day) * GB,
            GB,
            (free_gb - lose_gb * day) * GB,
            200 * GB,
        )


def everything(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


def test_report_agrees_with_the_documented_script(sample_store: Path, aged: Aged, run_cli: RunCli) -> None:
    zone, environ = ZoneInfo("America/New_York"), {"TZ": "America/New_York"}
    store = aged(sample_store, 10, zone)
    assert run_cli("hold", "ab1034c4-ce51-4d3a-9b8c-a89a7af0a326", cwd=store, env=environ).returncode == 0
    assert run_cli("clean", cwd=store, env=environ).returncode == 0
    with closing(sqlite3.connect(store / "jobs.db")) as connection, connection:
        # The script prints GB, so enlarge the sizes; add a job that was cleaned just over 24 hours ago.
        connection.execute("UPDATE jobs SET data_size_mb = data_size_mb * 40000")
        left = (datetime.now(zone) - timedelta(hours=24, minutes=5)).replace(tzinfo=None)
        connection.execute(
            "INSERT INTO jobs (id, workflow_type, status, parameters, data_cleaned_at, data_size_mb)"
            " VALUES ('left', 'sol', 'failed', '{}', ?, 99999)",
            (left.isoformat(),),
        )
    script = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DOCUMENTED_METRICS_SCRIPT],
        cwd=store,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(run_cli("report", "--json", cwd=store, env=environ).stdout)
    day = found["cleaned"]["last_24h"]
    lines = ["Cleanup Metrics (Last 24h):", f"  Jobs cleaned: {day['jobs']}"]
    lines += [f"  Space freed: {day['bytes'] / GB:.1f} GB", "", "Current Usage:"]
    lines += sorted(
        f"  {each['status']}: {each['jobs']} jobs, {each['bytes'] / GB:.1f} GB"
        for each in found["usage"]["by_status"]
    )
    assert day["jobs"] > 0
    assert min(day["bytes"], found["usage"]["bytes"]) > GB
    assert found["cleaned"]["last_30d"]["jobs"] == day["jobs"] + 1
    assert script.stdout.splitlines() == lines


def test_before_the_first_run_unknown_values_are_null(store: JobStore, report: Reporter) -> None:
    store.job("a")
    before = everything(store.path)
    assert report().stdout
    for form in FORMS[1:]:
        report("--format", form)
    found = report.document()
    assert found["usage"]["by_status"] == [{"status": "completed", "jobs": 1, "bytes": 0, "measured_jobs": 0}]
    assert found["cleaned"]["last_30d"] == {"jobs": 0, "bytes": 0}
    unknown = ("runs", "biggest_jobs", "growth", "forecast", "trash", "last_run", "next_run", "capacity")
    assert {name: found[name] for name in unknown} == dict.fromkeys(unknown)
    assert found["unknown"]
    assert everything(store.path) == before


def test_report_shows_used_and_freed_space_and_changes_nothing(store: JobStore, report: Reporter) -> None:
    store.job("old", files=3, workflow="eemt")
    store.job("small", days=1, files=1)
    store.job("big", days=1, files=9, workflow="eemt")
    store.job("broken", "failed", days=0.1, files=2)
    store.job("live", "running", days=None, files=4)
    store.run()
    size: dict[Any, Any] = dict(store.sql("SELECT job_id, bytes FROM cleanup_sizes"))  # type: ignore[arg-type]
    before = everything(store.path)
    found = report.document()
    assert found["usage"]["by_status"] == [
        {
            "status": "completed",
            "jobs": 2,
            "bytes": size["small"] + size["big"],
            "measured_jobs": 2,
        },
        {"status": "failed", "jobs": 1, "bytes": size["broken"], "measured_jobs": 1},
        {"status": "running", "jobs": 1, "bytes": 0, "measured_jobs": 0},
    ]
    eemt, sol = found["usage"]["by_workflow_type"]
    assert (eemt["workflow_type"], eemt["bytes"], eemt["jobs"]) == ("eemt", size["big"], 1)
    assert eemt["cleaned"]["last_24h"]["jobs"] == 1
    assert (sol["workflow_type"], sol["jobs"], sol["measured_jobs"]) == ("sol", 3, 2)
    assert [job["job_id"] for job in found["biggest_jobs"]] == ["big", "broken", "small"]
    (run,) = store.sql("SELECT bytes_freed FROM cleanup_runs")
    assert found["runs"]["last_24h"] == {"runs": 1, "errors": 0, "bytes_freed": run[0], "bytes_trashed": 0}
    assert found["unknown"][-1].startswith("1 ")
    assert len(found["disk"]) == 4
    for form in FORMS:
        report("--format", form, "--biggest", "1")
    assert everything(store.path) == before


@pytest.mark.slow
def test_a_store_on_postgresql_has_the_same_report_as_one_on_sqlite(
    store: JobStore, report: Reporter, tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = JobStore(tmp_path / "served", now=store.now, url=postgres.create())
    (served.path / "cleanup_config.yaml").write_text(
        f"database: {{timezone: UTC}}\npaths: {{database: '{served.url}'}}\n"
    )
    documents = []
    for each in (store, served):
        for name, days, files in (("old", 10, 3), ("small", 1, 1), ("big", 1, 9)):
            each.job(name, days=days, files=files, workflow="eemt" if name == "big" else "sol")
        each.job("broken", "failed", days=0.1, files=2)
        each.run()
        with_history(each)
        monkeypatch.chdir(each.path)
        documents.append(report.document())
        assert report("--format", "csv").stdout.startswith("section,")
        assert PASSWORD not in documents[-1]["database"]
        assert QUOTED not in documents[-1]["database"]
    for found in documents:
        for name in ("made_at", "database", "disk", "last_run"):  # these values differ between two stores
            del found[name]
    assert documents[0] == documents[1]
    assert documents[0]["cleaned"]["last_24h"]["jobs"] == 1


def test_the_biggest_jobs_still_have_their_data(store: JobStore, report: Reporter) -> None:
    store.job("marked", days=1, files=9)
    store.job("gone", days=1, files=8)
    store.job("there", days=1, files=1)
    store.run()
    store.sql("UPDATE jobs SET data_cleaned_at = '2026-01-01T00:00:00' WHERE id = 'marked'")
    store.sql("DELETE FROM jobs WHERE id = 'gone'")
    assert [job["job_id"] for job in report.document()["biggest_jobs"]] == ["there"]


def test_the_disk_full_forecast_has_an_interval(store: JobStore, report: Reporter) -> None:
    store.run()
    with_history(store)
    (store.path / "cleanup_config.yaml").write_text("capacity: {max_bytes: 40G}\n")
    found = report.document()
    full = store.now + timedelta(days=6)  # 24 GB are left, and 4 GB go each day
    forecast = found["forecast"]
    assert forecast["earliest"] <= forecast["at"] <= forecast["latest"]
    assert abs(datetime.fromisoformat(forecast["at"]) - full) < timedelta(hours=1)
    assert forecast["confidence_percent"] == 90
    assert round(found["growth"]["bytes_per_day"] / GB) == 1
    over = store.now + timedelta(days=10)  # 30 of 40 GB, and 1 GB a day
    assert abs(datetime.fromisoformat(found["capacity"]["forecast"]["at"]) - over) < timedelta(hours=1)
    text = report().stdout
    assert re.search(r"^Disk full +about \d{4}-\d\d-\d\d \(between \S+ and \S+, 90 %\)$", text, re.MULTILINE)
    with_history(store, lose_gb=-1)
    assert report.document()["forecast"] is None
    store.sql("UPDATE cleanup_storage SET timestamp = datetime(timestamp, '-30 days')")
    assert len(report.document()["unknown"]) == 1


@pytest.mark.slow
def test_a_plot_has_the_format_of_its_suffix(store: JobStore, report: Reporter) -> None:
    store.run()
    with_history(store)
    assert "Cleaned" in report("--plot", "trend.PNG").stdout
    assert (store.path / "trend.PNG").read_bytes().startswith(b"\x89PNG")
    report("--plot", "trend.svg", "--format", "csv", "--output", "report.csv")
    svg = (store.path / "trend.svg").read_text()
    assert "<svg" in svg
    assert "full about" in svg
    assert (store.path / "report.csv").read_text().startswith("section,name,value,unit")


@pytest.mark.slow
def test_a_plot_is_drawn_from_the_first_run_on(store: JobStore, report: Reporter) -> None:
    store.run()
    report("--plot", "trend.svg")
    assert "<svg" in (store.path / "trend.svg").read_text()


@pytest.mark.parametrize("name", ["trend.jpg", "trend", ".png", "trend.png.exe"])
def test_an_unknown_suffix_is_refused_before_anything_is_written(
    store: JobStore, report: Reporter, name: str
) -> None:
    before = everything(store.path)
    done = report("--plot", name, code=2)
    assert ".png or .svg" in done.stderr
    assert done.stdout == ""
    assert everything(store.path) == before


def test_without_matplotlib_the_error_says_what_to_install(store: JobStore) -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None; from eemtcleanupd.cli.main import main;"
        " sys.argv = ['eemtcleanupd', 'report', '--plot', 'trend.png']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=store.path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert add_extra("plots") in done.stderr


def test_without_a_history_a_plot_is_an_error_after_the_report(store: JobStore, report: Reporter) -> None:
    done = report("--plot", "trend.png", code=1)
    assert done.stderr
    assert "Usage" in done.stdout
    assert not (store.path / "trend.png").exists()


def hostile(store: JobStore) -> None:
    for number, name in enumerate(HOSTILE):
        store.job(f"job-{number}", days=1, files=1, workflow=name)
    store.run()
    for number, name in enumerate(HOSTILE):
        store.sql("UPDATE jobs SET id = ?, status = ? WHERE id = ?", name, name, f"job-{number}")
        store.sql("UPDATE cleanup_sizes SET job_id = ? WHERE job_id = ?", name, f"job-{number}")
    with_history(store)


def test_no_name_is_a_formula_in_a_spreadsheet(store: JobStore, report: Reporter) -> None:
    hostile(store)
    report("--format", "csv", "--output", "report.csv", "--biggest", "50")
    with (store.path / "report.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["section", "name", "value", "unit"]
    assert {len(row) for row in rows} == {4}
    names = [row[1] for row in rows if row[0] == "biggest_jobs"]
    assert len(names) == len(HOSTILE)
    for _, name, value, _ in rows[1:]:
        assert not re.match(r"\s*[=+\-@\t\r]", name)
        assert re.fullmatch(r"-?\d+|[\dT:+-]*", value)
    assert "'=HYPERLINK(1)" in names


def test_untrusted_names_cannot_forge_lines_or_values(store: JobStore, report: Reporter) -> None:
    hostile(store)
    text = report("--biggest", "50").stdout
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", text)
    assert max(map(len, text.splitlines())) < 400
    found = report.document()
    assert {each["status"] for each in found["usage"]["by_status"]} == set(HOSTILE)


@pytest.fixture
def page() -> Iterator[Page]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright, ExitStack() as stack:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        stack.callback(browser.close)
        phone = {"width": 390, "height": 800}
        yield browser.new_context(viewport=phone, color_scheme="dark").new_page()  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_html_report_is_accessible_on_a_phone_and_runs_no_foreign_script(
    store: JobStore, report: Reporter, page: Page
) -> None:
    hostile(store)
    report("--format", "html", "--output", "report.html", "--biggest", "50")
    html = store.path / "report.html"
    assert max(map(len, html.read_text().splitlines())) < 998  # RFC 5322, 2.1.1
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(html.as_uri())
    assert page.title().startswith("EEMT storage report 20")
    assert asked == [html.as_uri()]
    assert said == []
    assert page.evaluate("document.querySelectorAll('script, img').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    assert page.locator("table.jobs tbody tr").count() == len(HOSTILE)
    assert page.locator("svg polygon").count() == 1
    assert page.get_by_role("row", name="{{ 7*7 }}").count() == 3
    faults = Axe().run(page).response["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in faults] == []


def test_output_is_atomic_and_never_replaces_the_job_database(store: JobStore, report: Reporter) -> None:
    before = (store.path / "jobs.db").read_bytes()
    link = store.path / "link.html"
    link.symlink_to(store.path / "jobs.db")
    for option in (["--output", "jobs.db"], ["--output", "./results/../jobs.db"], ["--output", "link.html"]):
        assert Path(option[1]).name in report(*option, code=2).stderr
    assert (store.path / "jobs.db").read_bytes() == before
    assert os.strerror(errno.ENOENT) in report("--output", "no/where", code=1).stderr
    assert "results" in report("--output", "results", code=1).stderr
    report("--output", "report.txt")
    assert (store.path / "report.txt").stat().st_mode & 0o777 == 0o666 & ~os.umask(0o022)
    assert not list(store.path.glob(".report*"))


def test_output_to_a_device_is_written_directly(store: JobStore, run_cli: RunCli) -> None:
    pipe = run_cli("report", "--json", "--output", "/dev/stdout", cwd=store.path)
    assert pipe.stdout.startswith("{")
    assert Path("/dev/stdout").is_symlink()


@pytest.mark.slow
def test_invalid_ledger_rows_are_a_cleanup_error_or_harmless(store: JobStore) -> None:
    store.job("a", days=1)
    store.job("b")
    store.run(trash__grace_hours=24)
    with_history(store, 3)
    config, database = store.config(), store.path / "jobs.db"
    good = database.read_bytes()
    columns = store.sql(
        "SELECT t.name, c.name FROM sqlite_master AS t JOIN pragma_table_info(t.name) AS c"
        " WHERE t.type = 'table' AND t.name IN ('jobs', 'cleanup_runs', 'cleanup_sizes', 'cleanup_storage',"
        " 'cleanup_intents') AND NOT c.pk"
    )
    assert len(columns) > 40
    for table, column in columns:
        for nonsense in ("'nonsense'", "x'ff00'"):
            store.sql(f'UPDATE {table} SET "{column}" = {nonsense}')
            with suppress(CleanupError):
                found = gather(config, lambda: store.now, biggest=5)
                json.dumps(formats.as_document(found))
                assert formats.as_text(found)
                assert formats.as_csv(found)
            database.write_bytes(good)


def test_contradictory_formats_are_refused(report: Reporter) -> None:
    assert "--format csv" in report("--json", "--format", "csv", code=2).stderr


def test_the_documented_crontab_line_mails_the_report(store: JobStore, tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs/how-to/reports-and-capacity.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^0 7 \* \* 1  eemt  (.*)$", document, re.MULTILINE)
    assert "%" not in line  # cron would end the command there
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sendmail").write_text(f'#!/bin/sh\ntest "$*" = -t && cat > {tmp_path}/mail\n')
    (tools / "eemtcleanupd").write_text(f'#!/bin/sh\nexec {sys.executable} -m eemtcleanupd "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environ = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run(["/bin/sh", "-c", line], cwd=store.path, env=environ, check=True, timeout=60)
    head, body = (tmp_path / "mail").read_text().split("\n\n", 1)
    assert "Content-Type: text/html; charset=utf-8" in head.splitlines()
    assert body.startswith("<!doctype html>")
