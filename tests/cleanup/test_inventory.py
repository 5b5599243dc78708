"""The inventory of the roots: sizes of jobs that wait for their retention."""

from __future__ import annotations

import pytest

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
