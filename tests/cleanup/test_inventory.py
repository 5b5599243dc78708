"""The inventory of the roots: sizes of jobs that wait for their retention."""

from __future__ import annotations

from tests.cleanup.conftest import JobStore


def test_every_upload_of_a_job_counts_however_many_workers_measure(store: JobStore) -> None:
    """Threads that list one open folder share its position, so each would miss what another has read."""
    for number in range(1500):
        (store.path / "uploads" / f"stranger_{number:04}.tif").touch()
    for number in range(200):
        store.job(f"job-{number:03}", days=1, files=0)
        (store.path / "uploads" / f"job-{number:03}_dem.tif").write_bytes(bytes(4096))
    store.run(performance__max_workers=8)
    assert store.sql("SELECT count(*) FROM jobs WHERE data_size_mb * 1048576 >= 4096") == [(200,)]
