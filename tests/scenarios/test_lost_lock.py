"""Runs on PostgreSQL whose connection is cut, or whose lock another takes meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection

from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.cleanup.context import NullHooks
from eemtcleanupd.cleanup.recording import Recording
from eemtcleanupd.cleanup.staging import ClaimedJob, Staging
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.errors import LockHeldError
from eemtcleanupd.events import AuditEntry, Event, JobCleaned, OrphanFound, RunStarted
from eemtcleanupd.model import ArtifactPath, Job
from eemtcleanupd.store.jobs import JobTable
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


@pytest.mark.slow
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


@pytest.mark.slow
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

        with pytest.raises(LockHeldError, match="lock"):
            store.run(on_event=take, performance__batch_size=3, performance__max_workers=1)
    report = store.run()
    assert report.outcome == "success"
    assert_all_is_clean_and_recorded_once(store)


def test_what_was_staged_when_the_lock_was_lost_is_put_back(
    store: JobStore, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    before = store.snapshot()
    stage = Staging.stage

    def stage_and_lose(self: Staging, group: list[ClaimedJob]) -> list[ClaimedJob]:
        staged = stage(self, group)
        postgres.disconnect(str(store.url))
        with run_lock(store.open(), "theirs", store.now):
            pass
        return staged

    monkeypatch.setattr(Staging, "stage", stage_and_lose)
    with pytest.raises(LockHeldError):
        store.run()
    monkeypatch.undo()
    assert {path: content for path, content in store.snapshot().items() if "trash" not in path} == before
    store.run()
    assert_all_is_clean_and_recorded_once(store)


class Losing(NullHooks):
    """Loses the lock to another, at a moment, and remembers the actions in the audit log."""

    def __init__(self, store: JobStore, server: Server) -> None:
        self._store = store
        self._server = server
        self.actions: list[str] = []

    def lose(self) -> None:
        self._server.disconnect(str(self._store.url))
        with run_lock(self._store.open(), "theirs", self._store.now):
            pass

    def audit(self, entries: Sequence[AuditEntry]) -> None:
        self.actions += [entry.action for entry in entries]


def run_and_lose(store: JobStore, hooks: Losing, **options: object) -> None:
    with pytest.raises(LockHeldError):
        clean(
            store.config(**options),
            RunRequest(user="tester"),
            emit=store.events.append,
            clock=lambda: store.now,
            hooks=hooks,
        )


def test_nothing_moves_when_the_lock_was_lost_while_a_backup_was_made(
    store: JobStore, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    moved: list[str] = []

    class Backup(Losing):
        def before_stage(self, job: Job, artifacts: Sequence[ArtifactPath]) -> str | None:
            if not store.opened:
                self.lose()
            return None

    def stage(self: Trash, item: str, names: Sequence[str]) -> tuple[str, ...]:
        moved.extend(names)
        return ()

    monkeypatch.setattr(Trash, "stage", stage)
    run_and_lose(store, Backup(store, postgres))
    assert moved == []


def test_no_further_job_moves_when_the_lock_was_lost_as_one_moved(
    store: JobStore, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the run that has it by now would find no files, and record what comes back in a moment."""
    fill(store)
    moved: set[str] = set()
    stage = Trash.stage
    hooks = Losing(store, postgres)

    def stage_and_lose(self: Trash, item: str, names: Sequence[str]) -> tuple[str, ...]:
        moved.add(item.rpartition(".")[0])
        staged = stage(self, item, names)
        if not store.opened:
            hooks.lose()
        return staged

    monkeypatch.setattr(Trash, "stage", stage_and_lose)
    run_and_lose(store, hooks)
    assert len(moved) == 1
    assert store.trash() == []


def test_an_orphan_that_was_staged_when_the_lock_was_lost_is_put_back(
    store: JobStore, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.job("live", "running", days=None, files=0)  # an empty table would be refused
    place = store.path / "results/nobody"
    place.mkdir()
    store.wait(hours=2)
    stage = Trash.stage
    hooks = Losing(store, postgres)

    def stage_and_lose(self: Trash, item: str, names: Sequence[str]) -> tuple[str, ...]:
        staged = stage(self, item, names)
        hooks.lose()
        return staged

    monkeypatch.setattr(Trash, "stage", stage_and_lose)
    run_and_lose(store, hooks, orphans__delete_after_hours=1)
    assert place.is_dir()
    assert store.trash() == []


@pytest.mark.parametrize("grace_hours", [0, 24])
def test_the_audit_log_is_told_nothing_of_jobs_that_are_another_runs_by_now(
    store: JobStore, postgres: Server, monkeypatch: pytest.MonkeyPatch, grace_hours: int
) -> None:
    fill(store)
    record = Recording.record
    hooks = Losing(store, postgres)

    def lose_and_record(self: Recording, jobs: Sequence[object]) -> None:
        hooks.lose()
        record(self, jobs)  # type: ignore[arg-type]

    monkeypatch.setattr(Recording, "record", lose_and_record)
    run_and_lose(store, hooks, trash__grace_hours=grace_hours)
    assert "cleaning" in hooks.actions
    assert not {"cleaned", "trashed"} & set(hooks.actions)


def test_a_job_that_is_run_again_amid_the_record_is_not_marked(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.job("a")
    mark = JobTable.mark_cleaned

    def run_again_and_mark(self: JobTable, connection: Connection, *rest: object) -> None:
        if store.results("a").exists():  # the rehearsal before anything moves
            mark(self, connection, *rest)  # type: ignore[arg-type]
            return
        with (
            psycopg.connect(str(store.url), autocommit=True, options="-c lock_timeout=100ms") as web,
            suppress(psycopg.errors.LockNotAvailable),  # then it has to wait until this is over
        ):
            web.execute("UPDATE jobs SET status = 'running', completed_at = NULL")
        mark(self, connection, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(JobTable, "mark_cleaned", run_again_and_mark)
    store.run()
    assert store.sql("SELECT status, data_cleaned_at IS NOT NULL FROM jobs") == [("completed", True)]


def test_orphans_whose_names_no_text_can_hold_are_counted_removed_and_told(store: JobStore) -> None:
    for root in ("results", "uploads"):
        place = os.path.join(os.fsencode(store.path), root.encode(), b"caf\xe9")
        os.mkdir(place) if root == "results" else open(place, "wb").close()
    store.job("live", "running", days=None, files=0)  # an empty table would be refused
    store.wait(hours=2)
    assert store.run().orphans_found == 2
    report = store.run(orphans__delete_after_hours=1)
    assert report.orphans.jobs == 2
    assert store.sql("SELECT job_id FROM cleanup_log") == [("caf\\xe9",), ("caf\\xe9",)]
    assert os.listdir(store.path / "results") == [".eemtcleanupd-trash"]
