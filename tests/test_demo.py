"""The demo job store: structure, difficult contents, reproducibility."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eemtcleanupd.demo import CANARY, MIN_JOBS, DemoSummary, build
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.plugins import load
from tests.conftest import SAMPLE

pytestmark = pytest.mark.xdist_group("demo")  # one store for all of them

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
WEEK_AGO = NOW - timedelta(days=7)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> DemoSummary:
    return build(tmp_path_factory.mktemp("demo"), jobs=120, seed=7, now=NOW)


def rows(store: Path) -> list[sqlite3.Row]:
    with closing(sqlite3.connect(store / "jobs.db")) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute("SELECT * FROM jobs").fetchall()


def schema(store: Path) -> list[tuple[str]]:
    with closing(sqlite3.connect(store / "jobs.db")) as connection:
        return connection.execute("SELECT sql FROM sqlite_master").fetchall()


def ended(row: sqlite3.Row) -> datetime:
    return datetime.fromisoformat(row["completed_at"]).astimezone(UTC)


def fingerprint(store: Path) -> dict[str, str]:
    """Return every entry of a store with a hash of its content or the target of its link."""
    return {
        str(path.relative_to(store)): (
            str(path.readlink())
            if path.is_symlink()
            else hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else "folder"
        )
        for path in store.rglob("*")
    }


@pytest.mark.slow
def test_the_table_equals_that_of_the_web_interface(built: DemoSummary) -> None:
    assert schema(built.directory) == schema(SAMPLE)


def test_times_have_the_two_formats_of_the_web_interface(built: DemoSummary) -> None:
    for row in rows(built.directory):
        created = datetime.strptime(row["created_at"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        for name in ("started_at", "completed_at"):
            if row[name] is not None:
                moment = datetime.fromisoformat(row[name])
                assert moment.isoformat() == row[name]
                assert created <= moment.astimezone(UTC) <= NOW


def test_jobs_have_every_status_and_ages_from_minutes_to_months(built: DemoSummary) -> None:
    assert set(built.jobs) == {"completed", "failed", "cancelled", "pending", "running", "archived"}
    ages = [NOW - ended(row) for row in rows(built.directory) if row["completed_at"]]
    assert min(ages) < timedelta(hours=1)
    assert max(ages) > timedelta(days=90)
    undated = [
        row for row in rows(built.directory) if row["status"] == "completed" and not row["completed_at"]
    ]
    assert len(undated) == 1


@pytest.mark.slow
def test_the_summary_counts_all_files_and_jobs(built: DemoSummary) -> None:
    files = [path for path in built.directory.rglob("*") if path.is_file() and not path.is_symlink()]
    inodes = {path.stat().st_ino: path.stat().st_size for path in files}
    assert (built.files, built.size_bytes) == (len(inodes), sum(inodes.values()))
    assert sum(built.jobs.values()) == len(rows(built.directory)) == 120


def test_the_configuration_is_valid_and_names_the_demo_folders(built: DemoSummary, tmp_path: Path) -> None:
    loaded = load(built.directory / "cleanup_config.yaml", environ={}, options={}, cwd=tmp_path)
    assert loaded.warnings == ()
    paths = loaded.config.paths
    for path in (paths.database, paths.uploads, paths.results, paths.temp, paths.logs):
        assert Path(path).parent == built.directory
        assert Path(path).exists()


def test_an_expired_job_and_a_running_one_share_an_upload(built: DemoSummary) -> None:
    expired = {r["dem_filename"] for r in rows(built.directory) if r["completed_at"] and ended(r) < WEEK_AGO}
    running = {r["dem_filename"] for r in rows(built.directory) if r["status"] == "running"}
    shared = expired & running
    assert shared
    assert all((built.directory / "uploads" / name).is_file() for name in shared)


def test_hard_links_connect_two_expired_jobs_and_an_expired_with_a_young_job(
    built: DemoSummary,
) -> None:
    expired = {row["id"]: ended(row) < WEEK_AGO for row in rows(built.directory) if row["completed_at"]}
    owners: dict[int, list[bool]] = {}
    for path in (built.directory / "results").rglob("*.tif"):
        if path.stat().st_nlink > 1:
            job = path.relative_to(built.directory / "results").parts[0]
            owners.setdefault(path.stat().st_ino, []).append(expired[job])
    assert sorted(map(sorted, owners.values())) == [[False, True], [True, True]]


def test_expired_rows_and_a_link_point_to_the_canary_outside_the_roots(built: DemoSummary) -> None:
    expired = [row for row in rows(built.directory) if row["completed_at"] and ended(row) < WEEK_AGO]
    assert "../canary" in {row["id"] for row in expired}
    assert f"../{CANARY}" in {row["dem_filename"] for row in expired}
    links = [path for path in (built.directory / "results").rglob("*") if path.is_symlink()]
    assert [link.resolve() for link in links] == [(built.directory / CANARY).resolve()]
    assert links[0].relative_to(built.directory / "results").parts[0] in {row["id"] for row in expired}


def test_each_root_contains_an_orphan(built: DemoSummary) -> None:
    ids = {row["id"] for row in rows(built.directory)}
    uploads = {row["dem_filename"] for row in rows(built.directory)}
    known = {"results": ids | {f"{i}_results.zip" for i in ids}, "temp": ids, "uploads": uploads}
    for root, names in known.items():
        assert len({path.name for path in (built.directory / root).iterdir()} - names) == 1


def test_failed_jobs_have_logs_and_working_files_and_one_name_is_not_utf8(built: DemoSummary) -> None:
    failed = {row["id"] for row in rows(built.directory) if row["status"] == "failed"}
    logs = {path.parts[-2] for path in (built.directory / "results").glob("*/*.log")}
    assert logs & failed
    assert {path.name for path in (built.directory / "temp").iterdir()} & failed
    assert any((built.directory / "results").glob("*_results.zip"))
    assert b"\xff" in b"".join(
        os.fsencode(path.name) for path in (built.directory / "results").rglob("*.tif")
    )


def test_equal_seeds_create_equal_stores(tmp_path: Path) -> None:
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    for directory, seed in ((first, 1), (again, 1), (other, 2)):
        build(directory, jobs=MIN_JOBS, seed=seed, now=NOW)
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first)["jobs.db"] != fingerprint(other)["jobs.db"]


@pytest.mark.parametrize("occupant", ["", "mine.txt"], ids=["a file", "a folder with a file"])
def test_an_occupied_path_is_refused_and_not_changed(tmp_path: Path, occupant: str) -> None:
    place = tmp_path / "place"
    (place / occupant).parent.mkdir(exist_ok=True)
    (place / occupant).write_text("mine")
    before = fingerprint(tmp_path)
    with pytest.raises(ConfigError, match="place"):
        build(place, jobs=MIN_JOBS, seed=1, now=NOW)
    assert fingerprint(tmp_path) == before
