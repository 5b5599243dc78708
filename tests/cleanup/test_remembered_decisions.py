"""A run that counts the expired jobs for its breaker cleans none that something keeps since then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from eemtcleanupd.cleanup.planner import Planner
from eemtcleanupd.model import Hold
from eemtcleanupd.store.ledger import Ledger
from tests.cleanup.conftest import JobStore


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path / "store")
    store.job("first")
    store.run()
    for job_id in ("a", "b"):
        store.job(job_id, dem=f"{job_id}.tif")
        store.upload(f"{job_id}.tif")
    return store


def hold(store: JobStore) -> None:
    with closing(store.open()) as database:
        Ledger(database).hold(Hold("a", "paper", "ann"), store.now)


def mark(store: JobStore) -> None:
    (store.results("a") / ".eemt-keep").touch()


def restart(store: JobStore) -> None:
    store.sql("UPDATE jobs SET status = 'running', completed_at = NULL WHERE id = 'a'")


def end_later(store: JobStore) -> None:
    store.sql("UPDATE jobs SET completed_at = ? WHERE id = 'a'", (store.now - timedelta(hours=1)).isoformat())


def remove_row(store: JobStore) -> None:
    store.sql("DELETE FROM jobs WHERE id = 'a'")


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize("change", [hold, mark, restart, end_later, remove_row])
def test_what_keeps_a_job_after_the_count_is_seen(
    store: JobStore, change: Callable[[JobStore], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Planner.count_expired
    counted = []

    def count_and_change(planner: Planner, page_size: int, candidates: int) -> int:
        counted.append(count(planner, page_size, candidates))
        change(store)
        return counted[-1]

    monkeypatch.setattr(Planner, "count_expired", count_and_change)
    store.run(safety__max_fraction=0.99, safety__max_fraction_min_jobs=1, force=True)
    assert counted == [2]
    assert store.results("a").exists()
    assert (store.path / "uploads/a.tif").exists()
    assert not store.results("b").exists()


def test_another_job_that_needs_an_upload_after_the_count_keeps_it(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Planner.count_expired

    def count_and_submit(planner: Planner, page_size: int, candidates: int) -> int:
        expired = count(planner, page_size, candidates)
        store.job("c", "running", days=None, dem="a.tif")
        return expired

    monkeypatch.setattr(Planner, "count_expired", count_and_submit)
    store.run(safety__max_fraction=0.99, safety__max_fraction_min_jobs=1, force=True)
    assert not store.results("a").exists()
    assert (store.path / "uploads/a.tif").exists()
