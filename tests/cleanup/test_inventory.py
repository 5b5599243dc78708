"""The inventory of the roots: sizes of jobs that wait for their retention."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event

from tests.cleanup.conftest import JobStore


def measured(store: JobStore) -> dict[object, object]:
    return {row[0]: row[1] for row in store.sql("SELECT job_id, bytes FROM cleanup_sizes")}


@pytest.mark.slow
def test_every_upload_of_a_job_counts_however_many_workers_measure(store: JobStore) -> None:
    """Threads that list one open folder share its position, so each would miss what another has read."""
    for number in range(1500):
        (store.path / "uploads" / f"stranger_{number:04}.tif").touch()
    for number in range(200):
        store.job(f"job-{number:03}", days=1, files=0)
        (store.path / "uploads" / f"job-{number:03}_dem.tif").write_bytes(bytes(4096))
    store.run(performance__max_workers=8)
    assert store.sql("SELECT count(*) FROM jobs WHERE data_size_mb * 1048576 >= 4096") == [(200,)]


def test_an_upload_that_a_row_names_and_that_has_the_id_in_its_name_counts_once(store: JobStore) -> None:
    store.job("a", days=1, dem="a_dem.tif")
    store.job("b", days=1, dem="dem.tif")
    store.job("c", days=1, dem="a_of_c.tif")  # belongs to two jobs
    for name in ("a_dem.tif", "dem.tif", "a_of_c.tif"):
        store.upload(name)
    store.run()
    sizes = measured(store)
    assert sizes["a"] == sizes["b"] == sizes["c"]


def test_an_upload_counts_for_the_job_in_its_name_when_the_job_that_names_it_is_cleaned(
    store: JobStore,
) -> None:
    store.job("a", days=1)
    store.job("b", days=1, dem="b_dem.tif")
    store.job("cleaned", days=10, dem="a_dem.tif")
    for name in ("a_dem.tif", "b_dem.tif"):
        store.upload(name)
    store.run()
    assert store.cleaned() == {"cleaned"}
    sizes = measured(store)
    assert sizes["a"] == sizes["b"]


def test_a_job_that_the_web_application_deleted_or_started_again_uses_no_space_any_more(
    store: JobStore,
) -> None:
    for job_id in ("stays", "deleted", "again", "emptied"):
        store.job(job_id, days=1)
    store.run()
    assert measured(store).keys() == {"stays", "deleted", "again", "emptied"}
    store.sql("DELETE FROM jobs WHERE id = 'deleted'")
    store.sql("UPDATE jobs SET status = 'running' WHERE id = 'again'")
    for job_id in ("deleted", "emptied"):
        shutil.rmtree(store.results(job_id))
    store.run()
    assert measured(store).keys() == {"stays"}
    used = store.sql("SELECT successful_bytes FROM cleanup_storage ORDER BY id")
    assert used[1] == (measured(store)["stays"],)
    assert store.sql("SELECT id FROM jobs WHERE data_size_mb > 0") == [("stays",)]
    store.sql("UPDATE jobs SET status = 'completed' WHERE id = 'again'")
    store.run()
    assert measured(store).keys() == {"stays", "again"}


@contextmanager
def _counted_scans() -> Iterator[list[str]]:
    """Collect the statements that look for the rows that name uploads: each reads the whole table."""
    scans: list[str] = []

    def note(*values: Any) -> None:
        if "dem_filename IN" in values[2]:
            scans.append(values[2])

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield scans
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_scans_of_the_table_do_not_grow_with_the_jobs(store: JobStore) -> None:
    for number in range(40):
        store.job(f"job{number}", dem=f"{number // 2}.tif")
    for number in range(20):
        store.upload(f"{number}.tif")
    store.job("live", "running", days=None, dem="0.tif")
    with _counted_scans() as scans:
        store.run(dry_run=True, performance__batch_size=2)
    assert len(scans) == 1
    with _counted_scans() as scans:
        store.run(performance__batch_size=2, performance__max_workers=16)
    assert len(scans) <= 4  # one for the plan, and one for each group, which grows
    assert len(store.cleaned()) == 40
    assert {path.name for path in (store.path / "uploads").glob("[!.]*")} == {"0.tif"}


def test_scans_of_the_table_do_not_grow_with_the_orphans(store: JobStore) -> None:
    store.job("live", "running", days=None, dem="needed.tif")
    for number in range(30):
        os.utime(store.upload(f"{number}.tif"), (0, 0))
    store.wait(days=2)
    with _counted_scans() as scans:
        store.request(allow_orphans=True, orphans__delete_after_hours=1)
    assert len(scans) <= 4
    assert not list((store.path / "uploads").glob("[!.]*"))


def test_an_upload_whose_name_begins_with_the_ids_of_two_jobs_counts_for_none(store: JobStore) -> None:
    for job in ("run", "run_1", "run_1_b", "other"):
        store.job(job, days=1)
    store.upload("run_1_dem.tif")
    store.run()
    sizes = measured(store)
    assert sizes["run"] == sizes["run_1"] == sizes["run_1_b"] == sizes["other"]


def test_an_archive_that_can_belong_to_two_jobs_counts_for_none(store: JobStore) -> None:
    for job in ("a", "b"):
        store.job(job, days=1)
    store.job("a_results.zip", days=1, files=0)
    (store.path / "results/a_results.zip").write_bytes(b"zip" * 1000)
    store.run()
    sizes = measured(store)
    assert sizes["a"] == sizes["b"]
    assert sizes["a_results.zip"] == 0


@pytest.mark.sqlite  # a server's text has no NUL
@pytest.mark.parametrize("name", ["nul\0", "../outside", "."])
def test_of_a_job_whose_id_is_no_name_of_an_entry_only_the_upload_counts(store: JobStore, name: str) -> None:
    (store.path / "outside").mkdir()
    (store.path / "outside/large").write_bytes(bytes(1_000_000))
    store.job(name, dem="dem.tif", files=0)
    size = store.upload("dem.tif").stat().st_blocks * 512
    store.run()
    assert measured(store) == {name: size}


@pytest.mark.sqlite  # a server's key is never NULL
def test_a_row_without_id_that_names_an_upload_ends_no_run(store: JobStore) -> None:
    store.job(None, dem="dem.tif", files=0)
    store.upload("dem.tif")
    assert store.run(orphans__delete_after_hours=0.1).orphans_found == 0
    assert (store.path / "uploads/dem.tif").exists()


@pytest.mark.parametrize("threads", [0, 1])
def test_sizes_are_measured_where_no_more_threads_can_be_started(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    start, left = threading.Thread.start, [True] * threads

    def start_some(self: threading.Thread) -> None:
        if self.name.startswith("measure") and not left:
            raise RuntimeError("can't start new thread")
        if self.name.startswith("measure"):
            left.pop()
        start(self)

    for number in range(5):
        store.job(f"job-{number}", days=1)
    monkeypatch.setattr(threading.Thread, "start", start_some)
    store.run(performance__max_workers=4)
    assert len(measured(store)) == 5
