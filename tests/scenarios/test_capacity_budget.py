"""A budget for what the jobs hold: one warning for each crossing, run after run."""

from __future__ import annotations

import os
from typing import Any

import pytest

from eemtcleanupd.events import CapacityWarning
from tests.cleanup.conftest import JobStore


def grow(store: JobStore, name: str, kb: int) -> None:
    """Add a job that is not due, of so many KB."""
    store.job(name, days=1, files=1)
    file = store.results(name) / "global" / "day_0.tif"
    with file.open("wb") as opened:
        opened.write(os.urandom(kb * 1024))
        os.fsync(opened.fileno())


def shrink(store: JobStore, name: str) -> None:
    """Make a job due."""
    store.sql(
        "UPDATE jobs SET created_at = '2025-12-31 23:00:00', completed_at = '2026-01-01T00:00:00'"
        " WHERE id = ?",
        name,
    )


def warnings(store: JobStore, max_bytes: int | str = "10M", **options: Any) -> list[str]:
    """Run once, and return what there is to tell."""
    store.run(capacity__max_bytes=max_bytes, **options)
    found = []
    for event in store.of(CapacityWarning):
        assert isinstance(event, CapacityWarning)
        found.append("over" if event.is_over else "warning")
    return found


def test_each_crossing_is_reported_once_on_the_way_up_and_again_after_the_way_down(store: JobStore) -> None:
    grow(store, "a", 5000)
    assert warnings(store) == []
    grow(store, "b", 4000)
    assert warnings(store) == ["warning"]
    assert warnings(store) == []
    grow(store, "c", 2000)
    assert warnings(store) == ["over"]
    assert warnings(store) == []
    shrink(store, "c")
    assert warnings(store) == []  # down to the warning, which is no news
    shrink(store, "b")
    assert warnings(store) == []
    grow(store, "d", 9000)
    assert warnings(store) == ["over"]


def test_usage_just_below_a_mark_is_not_reported_again_when_it_comes_back(store: JobStore) -> None:
    grow(store, "a", 7900)
    grow(store, "b", 350)
    assert warnings(store) == ["warning"]
    shrink(store, "b")
    assert warnings(store) == []
    grow(store, "c", 350)
    assert warnings(store) == []


def test_a_budget_that_is_set_or_lowered_below_usage_is_reported(store: JobStore) -> None:
    grow(store, "a", 5000)
    store.run()
    assert warnings(store, "10M") == []
    assert warnings(store, "6M") == ["warning"]
    assert warnings(store, 1_000_000) == ["over"]
    assert warnings(store, "10M") == []
    store.run()
    assert warnings(store, "1M") == ["over"]


def test_without_a_budget_and_in_a_dry_run_nothing_is_reported(store: JobStore) -> None:
    grow(store, "a", 5000)
    store.run()
    assert store.of(CapacityWarning) == []
    store.run(dry_run=True, capacity__max_bytes=1)
    assert store.of(CapacityWarning) == []
    assert warnings(store, 1) == ["over"]


def test_what_is_reported_are_the_measured_bytes(store: JobStore) -> None:
    grow(store, "a", 5000)
    report = store.run(capacity__max_bytes="5M", capacity__warn_percent=90)
    (event,) = store.of(CapacityWarning)
    assert report.storage is not None
    assert event == CapacityWarning(report.storage.used_bytes, 5 * 2**20, 90)
    assert report.storage.capacity_max_bytes == 5 * 2**20


@pytest.mark.parametrize("damage", ["NULL", "'nonsense'", "77", "-1"])
def test_a_level_that_makes_no_sense_counts_as_none(store: JobStore, damage: str) -> None:
    grow(store, "a", 5000)
    store.run()
    store.sql(f"UPDATE cleanup_storage SET capacity_level = {damage}")
    assert warnings(store, "1M") == ["over"]


def test_a_ledger_of_an_earlier_version_gets_the_column(store: JobStore) -> None:
    grow(store, "a", 5000)
    store.run()
    store.sql("ALTER TABLE cleanup_storage DROP COLUMN capacity_level")
    assert warnings(store, "1M") == ["over"]
