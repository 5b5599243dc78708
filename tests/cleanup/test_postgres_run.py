"""Runs on PostgreSQL whose connection is cut, or whose lock another takes meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from eemtcleanupd.errors import LockHeldError
from eemtcleanupd.events import Event, JobCleaned, OrphanFound, RunStarted
from eemtcleanupd.store.lock import run_lock
from tests.cleanup.conftest import JobStore
from tests.postgres import Server


@pytest.fixture
def store(tmp_path: Path, postgres: Server) -> Iterator[JobStore]:
    store = JobStore(tmp_path / "store", url=postgres.create())
    yield store
    for database in store.opened:
        database.close()


def fill(store: JobStore) -> None:
    for number in range(12):
        store.job(f"job-{number:02}", days=10 + number, dem=f"dem-{number // 2}.tif", files=1)
        store.upload(f"dem-{number // 2}.tif")
    for name in ("nobody", "noone"):
        (store.path / "results" / name).mkdir()


def assert_all_is_clean_and_recorded_once(store: JobStore) -> None:
    expected = {f"job-{number:02}" for number in range(12)}
    assert store.cleaned() == expected
    lines = store.sql("SELECT job_id FROM cleanup_log WHERE action = 'cleaned' ORDER BY job_id")
    assert [line[0] for line in lines] == sorted(expected)
    assert store.trash() == []
    assert store.sql("SELECT * FROM cleanup_intents") == []
    assert os.listdir(store.path / "uploads") == [".eemtcleanupd-trash"]


def test_a_run_goes_on_when_its_connection_is_cut_again_and_again(store: JobStore, postgres: Server) -> None:
    fill(store)
    cuts = 0

    def cut(event: Event) -> None:
        nonlocal cuts
        if isinstance(event, RunStarted | JobCleaned | OrphanFound) and cuts < 20:
            cuts += postgres.disconnect(str(store.url))

    report = store.run(on_event=cut, performance__batch_size=3, performance__max_workers=2)
    assert cuts > 10
    assert (report.outcome, report.successful.jobs, report.orphans_found) == ("success", 12, 2)
    assert_all_is_clean_and_recorded_once(store)


@pytest.mark.parametrize("is_over", [False, True])
def test_a_run_whose_lock_another_took_ends_and_leaves_the_rest_to_it(
    store: JobStore, postgres: Server, is_over: bool
) -> None:
    fill(store)
    with ExitStack() as stack:

        def take(event: Event) -> None:
            if isinstance(event, JobCleaned) and not store.opened:
                postgres.disconnect(str(store.url))
                with ExitStack() as inner:
                    inner.enter_context(run_lock(store.open(), "theirs", store.now))
                    if not is_over:
                        stack.push(inner.pop_all())

        with pytest.raises(LockHeldError, match="another has it, or had it meanwhile"):
            store.run(on_event=take, performance__batch_size=3, performance__max_workers=1)
    report = store.run()
    assert report.outcome == "success"
    assert_all_is_clean_and_recorded_once(store)


def test_what_was_staged_when_the_lock_was_lost_is_put_back(
    store: JobStore, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eemtcleanupd.cleanup.pipeline import Claimed, Pipeline

    fill(store)
    before = store.snapshot()
    stage = Pipeline._stage

    def stage_and_lose(self: Pipeline, group: list[Claimed]) -> list[Claimed]:
        staged = stage(self, group)
        postgres.disconnect(str(store.url))
        with run_lock(store.open(), "theirs", store.now):
            pass
        return staged

    monkeypatch.setattr(Pipeline, "_stage", stage_and_lose)
    with pytest.raises(LockHeldError):
        store.run()
    monkeypatch.undo()
    assert {path: content for path, content in store.snapshot().items() if "trash" not in path} == before
    store.run()
    assert_all_is_clean_and_recorded_once(store)


def test_orphans_whose_names_no_text_can_hold_are_counted_removed_and_told(store: JobStore) -> None:
    for root in ("results", "uploads"):
        place = os.path.join(os.fsencode(store.path), root.encode(), b"caf\xe9")
        os.mkdir(place) if root == "results" else open(place, "wb").close()
        os.utime(place, (0, 0))
    assert store.run().orphans_found == 2
    report = store.run(orphans__delete_after_hours=1)
    assert report.orphans.jobs == 2
    assert store.sql("SELECT job_id FROM cleanup_log") == [("caf\\xe9",), ("caf\\xe9",)]
    assert os.listdir(store.path / "results") == [".eemtcleanupd-trash"]
