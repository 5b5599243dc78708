"""``report --what-if``: its figures are those of the store, in each form and on each database."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from eemtcleanupd.cli.main import cli
from eemtcleanupd.errors import CleanupError
from tests.cleanup.conftest import JobStore
from tests.conftest import settle
from tests.postgres import Server

_EAST = timezone(timedelta(hours=5))
CONFIG = "database: {timezone: UTC}\nsafety: {min_idle_minutes: 0}\n"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobStore:
    store = JobStore(tmp_path / "store", now=datetime.now(UTC))
    (store.path / "cleanup_config.yaml").write_text(CONFIG)
    monkeypatch.chdir(store.path)
    return store


def what_if(*options: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["report", "--what-if", *options])
    if isinstance(result.exception, CleanupError):  # main() turns it into a message
        result.exit_code = result.exception.exit_code
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(what_if("--json").stdout)
    return found


def kept(found: dict[str, Any], of: str = "successful") -> dict[float, int]:
    return {point["retention_hours"]: point["kept"]["bytes"] for point in found[of]["points"]}


def measured(store: JobStore) -> dict[str, int]:
    return {str(name): int(str(size)) for name, size in store.sql("SELECT job_id, bytes FROM cleanup_sizes")}


def filled(store: JobStore) -> None:
    for name, days, files in (("cleaned", 10, 3), ("kept", 4, 2), ("new", 1.2, 1)):
        store.job(name, days=days, files=files)
    store.job("failed", "failed", days=0.1, files=4)
    store.job("live", "running", days=None, files=9)
    store.run()


def test_periods_keep_and_free_the_measured_data(store: JobStore) -> None:
    filled(store)
    found = document()
    known, sizes = measured(store), kept(found)
    assert (sizes[24], sizes[48], sizes[72]) == (0, known["new"], known["new"])
    assert sizes[168] == known["new"] + known["kept"]
    assert sizes[336] > sizes[168]
    frees = {
        point["retention_hours"]: point["freed_by_next_run"]["bytes"]
        for point in found["successful"]["points"]
    }
    assert (frees[6], frees[72], frees[168]) == (sizes[168], known["kept"], 0)
    assert [found[name]["retention_hours"] for name in ("successful", "failed")] == [168, 12]
    assert [found[name]["jobs"] for name in ("successful", "failed")] == [2, 1]
    text = what_if().stdout
    assert found["successful"]["summary"] in text
    assert text.count(" *") == 2


def test_nothing_changes_and_no_folder_is_read(store: JobStore) -> None:
    filled(store)
    before = document()
    database = (store.path / "jobs.db").read_bytes()
    for name in ("uploads", "temp"):
        (store.path / name).rename(store.path / f"{name}.gone")
    (store.path / "results").rename(store.path / "results.gone")
    (store.path / "results").mkdir()
    after = document()
    assert (kept(after), kept(after, "failed")) == (kept(before), kept(before, "failed"))
    assert (store.path / "jobs.db").read_bytes() == database


def test_jobs_without_a_known_size_are_counted_and_estimated(store: JobStore) -> None:
    filled(store)
    known = kept(document())[168]
    for name in ("later", "latest"):
        store.job(name, days=-0.0001, files=0)
    found = document()
    assert (found["successful"]["estimated_jobs"], found["successful"]["jobs"]) == (2, 4)
    assert kept(found)[168] == known + 2 * found["successful"]["mean_size"]["bytes"]
    assert len(found["unknown"]) == len(document()["unknown"])


def test_before_the_first_run_nothing_is_claimed(store: JobStore) -> None:
    store.job("old")
    found = document()
    assert found["successful"]["points"] == []
    assert (found["successful"]["summary"], found["successful"]["mean_size"]) == (None, None)
    assert found["successful"]["estimated_jobs"] == 1
    assert what_if().stdout
    what_if("--plot", "curve.svg", code=1)


def test_an_unreadable_results_folder_leaves_the_day_of_a_full_disk_unknown(store: JobStore) -> None:
    filled(store)
    (store.path / "results").rename(store.path / "gone")
    found = document()
    assert found["disk_known"] is False
    assert kept(found)[168] > 0
    assert {point["disk_full_at"] for point in found["successful"]["points"]} == {None}


def test_a_held_job_stays_in_the_total_of_each_period(store: JobStore) -> None:
    filled(store)
    held = measured(store)["kept"]
    CliRunner().invoke(cli, ["hold", "kept"], catch_exceptions=False)
    first = document()["successful"]["points"][0]
    assert first["freed_by_next_run"]["bytes"] == kept(document())[168]
    failed = kept(document(), "failed")[12]
    assert first["kept_of_all_jobs"]["bytes"] == first["kept"]["bytes"] + failed + held


def aged(store: JobStore, job_id: str, **span: float) -> None:
    """Let a job that runs have measured be one that ended so long ago."""
    ended = store.now - timedelta(**span)
    stamps = (f"{moment:%Y-%m-%d %H:%M:%S}" for moment in (ended, ended - timedelta(hours=1)))
    store.sql("UPDATE jobs SET completed_at = ?, created_at = ? WHERE id = ?", *stamps, job_id)
    settle(store.results(job_id), ended)


def test_the_configured_retention_frees_what_a_dry_run_of_the_same_moment_says(store: JobStore) -> None:
    (store.path / "cleanup_config.yaml").write_text(
        "database: {timezone: UTC}\nsafety: {max_fraction: 1}\nretention: {successful_jobs: {keep_last: 2}}\n"
    )
    names = ("due", "held", "undated", "reversed", "nameless", "marked", "busy", "empty", "newest", "last")
    for number, name in enumerate((*names, "alone", "both1", "both2", "one", "young")):
        uploads = {"both1": "both.tif", "both2": "both.tif", "one": "one.tif", "young": "one.tif"}
        dem = uploads.get(name, f"{name}.tif")
        store.upload(dem)
        store.job(name, days=0.2, files=number + 1, dem=dem)
    for number, name in enumerate(("failed", "failed, held", "edge", "margin")):
        store.job(name, "failed", days=0.2, files=30 + number)
    store.job("cleaned", days=0.2, dem="last.tif")  # last.tif goes with the last of the two
    CliRunner().invoke(cli, ["clean"], catch_exceptions=False)
    store.sql("UPDATE jobs SET data_cleaned_at = completed_at WHERE id = 'cleaned'")
    store.sql("UPDATE jobs SET dem_filename = 'alone.tif' WHERE id = 'newest'")  # alone.tif stays since then
    for number, name in enumerate((*names, "alone", "both1", "both2", "one", "failed", "failed, held")):
        aged(store, name, days=20 - number / 100)
    aged(store, "margin", hours=12, minutes=2)
    aged(store, "edge", hours=11, minutes=58)
    aged(store, "young", days=3)
    aged(store, "newest", days=8)
    aged(store, "last", days=9)
    for name in ("held", "failed, held"):
        CliRunner().invoke(cli, ["hold", name], catch_exceptions=False)
    store.sql("UPDATE jobs SET completed_at = NULL WHERE id = 'undated'")
    store.sql("UPDATE jobs SET created_at = '2099-01-01 00:00:00' WHERE id = 'reversed'")
    store.sql("UPDATE jobs SET dem_filename = '../etc' WHERE id = 'nameless'")
    (store.results("marked") / ".eemt-keep").touch()
    settle(store.results("marked"), store.now - timedelta(days=9))
    (store.results("busy") / "new").mkdir()
    shutil.rmtree(store.results("empty"))
    (store.path / "uploads" / "empty.tif").unlink()

    found = document()
    freed = {
        name: next(point for point in found[name]["points"] if point["is_configured"])["freed_by_next_run"]
        for name in ("successful", "failed")
    }
    plan = CliRunner().invoke(cli, ["clean", "--dry-run", "--json"], catch_exceptions=False)
    planned = json.loads(plan.stdout)
    assert planned["cleaned_jobs"] == {"successful": 7, "failed": 2}
    assert sum(each["bytes"] for each in freed.values()) == planned["space_freed"]["bytes"] > 0
    shortest = found["failed"]["points"][0]["freed_by_next_run"]["bytes"]
    assert shortest == freed["failed"]["bytes"] + measured(store)["edge"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--format", "csv"], 2),
        (["--format", "html"], 2),
        (["--plot", "x.gif"], 2),
        (["--format", "text"], 0),
    ],
)
def test_only_text_json_and_pictures_are_formats(store: JobStore, options: list[str], code: int) -> None:
    what_if(*options, code=code)


@pytest.mark.slow
def test_the_curves_are_drawn_and_the_report_is_written_to_a_file(store: JobStore) -> None:
    filled(store)
    assert not what_if("--plot", "curve.svg", "--json", "--output", "what_if.json").stdout
    assert "<svg" in (store.path / "curve.svg").read_text()
    assert json.loads((store.path / "what_if.json").read_text())["successful"]["points"]
    what_if("--output", "jobs.db", code=2)


def test_rows_that_make_no_sense_change_no_other_figure(store: JobStore) -> None:
    filled(store)
    before = document()
    ends = ("", "yesterday", "2026-13-45T99", "20260601", "9999-12-31T23:59:59+14:00", "0001-01-01 00:00:00")
    sizes = ("much", "9e999", "-5", "1e300")
    for ended, size in product((*ends, "x" * 5000, None), sizes):
        name = f"{ended}, {size}"
        store.job(name, files=0)
        store.sql("UPDATE jobs SET completed_at = ?, data_size_mb = ? WHERE id = ?", ended, size, name)
    after = document()
    assert (kept(after), kept(after, "failed")) == (kept(before), kept(before, "failed"))


def test_ends_with_a_zone_of_their_own_count_at_their_moment(store: JobStore) -> None:
    filled(store)
    moment = store.sql("SELECT completed_at FROM jobs WHERE id = 'new'")[0][0]
    before = kept(document())
    assert isinstance(moment, str)
    local = datetime.fromisoformat(moment).replace(tzinfo=UTC).astimezone(tz=_EAST).isoformat()
    store.sql("UPDATE jobs SET completed_at = ? WHERE id = 'new'", local)
    assert local.endswith("+05:00")
    assert kept(document()) == before


@pytest.mark.slow
def test_a_store_on_postgresql_has_the_same_figures(
    store: JobStore, tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = JobStore(tmp_path / "served", now=store.now, url=postgres.create())
    (served.path / "cleanup_config.yaml").write_text(
        f"{CONFIG}paths: {{database: '{served.url}'}}\n"
        "retention: {overrides: [{workflow_type: eemt, successful_hours: 24}]}\n"
    )
    (store.path / "cleanup_config.yaml").write_text(
        f"{CONFIG}retention: {{overrides: [{{workflow_type: eemt, successful_hours: 24}}]}}\n"
    )
    documents = []
    for each in (store, served):
        filled(each)
        each.job("other", days=2, files=7, workflow="eemt")
        each.run()
        monkeypatch.chdir(each.path)
        documents.append(document())
    for found in documents:
        for name in ("made_at", "database"):
            del found[name]
    assert documents[0] == documents[1]
