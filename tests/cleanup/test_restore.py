"""What is in the trash comes back as if nothing had happened, also when it is interrupted."""

from __future__ import annotations

import errno
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eemtcleanupd.cleanup.context import NullHooks
from eemtcleanupd.cleanup.restore import RestoreRequest, RestoreResult, restore
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.errors import LockHeldError, RowError, TrashError
from eemtcleanupd.events import Warned
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Trigger
from eemtcleanupd.store.lock import run_lock
from tests.cleanup.conftest import JobStore
from tests.cleanup.test_refused_records import refuse

GRACE: dict[str, Any] = {"trash__grace_hours": 24}


def put_back(store: JobStore, job_id: str, *only: str, hold: bool = False) -> RestoreResult:
    labels = {each.rstrip("/") for each in only}
    return restore(
        RestoreRequest(store.config(**GRACE), job_id, labels, hold, "ann", NullHooks(), lambda: store.now)
    )


def without_trash(store: JobStore) -> dict[str, bytes | None]:
    return {
        path: data
        for path, data in store.snapshot().items()
        if ".eemtcleanupd" not in path and "jobs.db" not in path
    }


def columns(store: JobStore) -> list[tuple[object, ...]]:
    return store.sql(
        "SELECT id, status, completed_at, dem_filename, data_cleaned_at, cleanup_summary FROM jobs"
    )


@pytest.fixture
def trashed(store: JobStore) -> JobStore:
    store.job("a", dem="dem.tif")
    store.upload("dem.tif")
    store.run(trash__grace_hours=0, retention__successful_jobs__hours=100_000)  # the columns are there
    return store


def test_everything_is_where_it_was_and_the_row_as_it_was(trashed: JobStore) -> None:
    before, rows = without_trash(trashed), columns(trashed)
    trashed.run(**GRACE)
    assert trashed.cleaned() == {"a"}
    done = put_back(trashed, "a")
    assert sorted(found.label for found in done.artifacts) == ["results/a/", "uploads/dem.tif"]
    assert without_trash(trashed) == before
    assert columns(trashed) == rows
    assert trashed.sql("SELECT * FROM cleanup_intents") == []


def test_a_restored_job_is_held_for_its_retention_once_more(trashed: JobStore) -> None:
    trashed.run(**GRACE)
    assert put_back(trashed, "a", hold=True).held_until == trashed.now + timedelta(hours=168)
    trashed.run(**GRACE)
    assert trashed.results("a").exists()
    trashed.now += timedelta(hours=169)
    trashed.run(**GRACE)
    assert not trashed.results("a").exists()


def test_a_restored_job_is_held_for_the_retention_of_its_workflow(trashed: JobStore, tmp_path: Path) -> None:
    trashed.run(**GRACE)
    trashed.config_file = tmp_path / "config.yaml"
    paths = ", ".join(f"{name}: {trashed.path / name}" for name in ("results", "uploads", "temp"))
    trashed.config_file.write_text(
        f"paths: {{{paths}, database: {trashed.path / 'jobs.db'}}}\n"
        "retention: {overrides: [{workflow_type: sol, successful_hours: 1000}]}"
    )
    assert put_back(trashed, "a", hold=True).held_until == trashed.now + timedelta(hours=1000)


@pytest.mark.parametrize("until", [None, "2030-01-01 00:00:00"])
def test_a_longer_hold_of_a_person_stays(trashed: JobStore, until: str | None) -> None:
    trashed.run(**GRACE)
    trashed.sql("INSERT INTO cleanup_holds (job_id, reason, until) VALUES ('a', 'thesis', ?)", until)
    result = put_back(trashed, "a", hold=True)
    assert trashed.sql("SELECT reason, until FROM cleanup_holds") == [("thesis", until)]
    named = None if result.held_until is None else f"{result.held_until:%Y-%m-%d %H:%M:%S}"
    assert (named, result.held_permanently) == (until, until is None)


def test_a_shorter_hold_of_a_person_gets_another_end_and_keeps_its_reason(trashed: JobStore) -> None:
    trashed.run(**GRACE)
    soon = f"{trashed.now + timedelta(hours=1):%Y-%m-%d %H:%M:%S}"
    trashed.sql("INSERT INTO cleanup_holds (job_id, reason, until) VALUES ('a', 'thesis', ?)", soon)
    until = put_back(trashed, "a", hold=True).held_until
    assert trashed.sql("SELECT reason, until FROM cleanup_holds") == [
        ("thesis", f"{until:%Y-%m-%d %H:%M:%S}")
    ]


def test_a_single_artifact_comes_back_and_the_rest_waits_while_the_job_is_held(trashed: JobStore) -> None:
    trashed.run(**GRACE)
    put_back(trashed, "a", "results/a/", hold=True)
    assert trashed.results("a").exists()
    assert not (trashed.path / "uploads/dem.tif").exists()
    trashed.now += timedelta(hours=25)
    trashed.run(**GRACE)
    assert len(trashed.trash()) == 1
    assert trashed.results("a").exists()
    assert trashed.cleaned() == set()
    assert trashed.of(Warned) == [], "what is in the trash is still known"
    put_back(trashed, "a")
    assert (trashed.path / "uploads/dem.tif").exists()


def test_nothing_is_put_over_what_is_there_now(trashed: JobStore) -> None:
    trashed.run(**GRACE)
    trashed.results("a").mkdir()
    before = trashed.snapshot()
    with pytest.raises(TrashError, match="results/a/"):
        put_back(trashed, "a")
    assert trashed.snapshot() == before
    assert trashed.cleaned() == {"a"}


def test_what_is_not_in_the_trash_is_a_clear_error(trashed: JobStore) -> None:
    with pytest.raises(TrashError, match="job a"):
        put_back(trashed, "a")
    trashed.run(**GRACE)
    with pytest.raises(TrashError, match=r"results/a/, uploads/dem.tif"):
        put_back(trashed, "a", "results/b/")


def test_it_waits_for_no_run(trashed: JobStore) -> None:
    trashed.run(**GRACE)
    with (
        run_lock(trashed.open(), "another", trashed.now),
        pytest.raises(LockHeldError),
    ):
        put_back(trashed, "a")


@pytest.mark.parametrize("killed_at", range(1, 4))
def test_interrupted_anywhere_the_next_run_finishes_it(
    trashed: JobStore, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    class Killed(BaseException):
        pass

    before = without_trash(trashed)
    trashed.run(**GRACE)
    calls = 0
    real_restore, real_sync = Trash.restore, Trash.sync

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == killed_at:
            raise Killed

    def counted(self: Trash, item: str) -> tuple[str, ...]:
        count()
        return real_restore(self, item)

    def counted_sync(self: Trash) -> None:
        count()
        real_sync(self)

    monkeypatch.setattr(Trash, "restore", counted)
    monkeypatch.setattr(Trash, "sync", counted_sync)
    with pytest.raises(Killed):
        put_back(trashed, "a", hold=True)
    monkeypatch.undo()
    assert trashed.cleaned() == set()
    trashed.run(**GRACE)
    assert without_trash(trashed) == before
    assert trashed.sql("SELECT * FROM cleanup_intents") == []


def test_a_purge_takes_what_is_old_enough_and_no_held_job(store: JobStore) -> None:
    from eemtcleanupd.cleanup import RunRequest, clean

    def purge(hours: float) -> int:
        request = RunRequest(user="ann", trigger=Trigger.TRASH, purge_older_than=timedelta(hours=hours))
        done = clean(store.config(**GRACE), request, emit=lambda _: None, clock=lambda: store.now)
        return done.trash_purged.jobs

    store.job("old")
    store.run(**GRACE)
    store.now += timedelta(hours=5)
    store.job("new")
    store.job("held")
    store.run(**GRACE)
    store.sql("INSERT INTO cleanup_holds (job_id) VALUES ('held')")
    assert purge(3) == 1
    assert purge(0) == 1
    assert purge(0) == 0
    assert len(store.trash()) == 1


def test_a_symlink_in_its_place_is_something_in_its_place(trashed: JobStore, tmp_path: Path) -> None:
    trashed.run(**GRACE)
    os.symlink(tmp_path / "nowhere", trashed.results("a"))
    with pytest.raises(TrashError, match="results/a"):
        put_back(trashed, "a")


def test_a_ledger_of_an_earlier_version_gets_what_it_lacks(trashed: JobStore) -> None:
    trashed.run(**GRACE)
    for table in ("cleanup_totals", "cleanup_outbox", "cleanup_notifiers"):
        trashed.sql(f"DROP TABLE {table}")
    trashed.sql("ALTER TABLE cleanup_intents DROP COLUMN size_bytes")
    trashed.now += timedelta(hours=25)
    trashed.run(**GRACE)
    assert trashed.trash() == []
    assert trashed.sql("SELECT count(size_bytes) FROM cleanup_intents") == [(0,)]


def test_an_upload_that_went_with_another_job_comes_back_too(trashed: JobStore) -> None:
    trashed.job("b", dem="dem.tif")
    before = without_trash(trashed)
    trashed.run(**GRACE)
    assert trashed.cleaned() == {"a", "b"}
    first = [found.label for found in put_back(trashed, "a", hold=True).artifacts]
    second = [found.label for found in put_back(trashed, "b", hold=True).artifacts]
    assert first == ["results/a/", "uploads/dem.tif"]
    assert second == ["results/b/"]
    assert without_trash(trashed) == before
    assert trashed.sql("SELECT * FROM cleanup_intents") == []
    assert trashed.trash() == []


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("grace_hours", [240, 0])
def test_a_job_whose_upload_went_after_it_is_held_and_counts_as_not_cleaned(
    store: JobStore, grace_hours: int
) -> None:
    store.now = datetime.now(UTC)
    store.job("a", dem="dem.tif")
    store.job("b", days=1, dem="dem.tif", files=0)
    store.upload("dem.tif")
    store.run(trash__grace_hours=grace_hours)
    store.sql("DELETE FROM jobs WHERE id = 'b'")
    store.wait(seconds=5)
    store.sql("UPDATE jobs SET data_cleaned_at = ?", store.now.replace(tzinfo=None).isoformat())
    store.wait(seconds=10)
    store.now = store.now.replace(microsecond=0)
    store.run(**GRACE)
    assert not (store.path / "uploads/dem.tif").exists()
    done = put_back(store, "a", hold=True)
    expected = ["uploads/dem.tif"] if grace_hours == 0 else ["results/a/", "uploads/dem.tif"]
    assert [found.label for found in done.artifacts] == expected
    assert done.held_until == store.now + timedelta(hours=168)
    assert store.cleaned() == set()


def test_an_upload_that_went_with_a_job_of_another_class_is_held_as_its_own_job_is(store: JobStore) -> None:
    store.job("a", "failed", dem="dem.tif")
    store.job("b", dem="dem.tif")
    store.upload("dem.tif")
    store.run(retention__failed_jobs__hours=100_000)
    store.run(**GRACE)
    assert put_back(store, "b", hold=True).held_until == store.now + timedelta(hours=168)
    restored = store.sql("SELECT job_id, status FROM cleanup_log WHERE action = 'restored'")
    assert restored == [("b", "completed")]


def test_an_upload_that_went_with_another_job_may_be_named_as_it_is_listed(trashed: JobStore) -> None:
    for job in ("c", "d"):
        trashed.job(job, dem="odd\n.tif")
    trashed.upload("odd\n.tif")
    trashed.run(**GRACE)
    done = put_back(trashed, "c", printable("uploads/odd\n.tif"))
    assert [found.label for found in done.artifacts] == ["uploads/odd\n.tif"]


def test_an_upload_that_came_anew_meanwhile_stays_and_is_no_reason_to_refuse(trashed: JobStore) -> None:
    trashed.job("b", dem="dem.tif")
    trashed.run(**GRACE)
    trashed.upload("dem.tif").write_text("new")
    assert [found.label for found in put_back(trashed, "a").artifacts] == ["results/a/"]
    assert (trashed.path / "uploads/dem.tif").read_text() == "new"
    (trashed.path / "uploads/dem.tif").unlink()
    assert [found.label for found in put_back(trashed, "a").artifacts] == ["uploads/dem.tif"]


def test_an_entry_of_no_job_comes_back_by_its_label_and_is_young_again(store: JobStore) -> None:
    store.job("live", "running", days=None, files=0)  # an empty table would be refused
    stranger = store.path / "results/stranger"
    stranger.mkdir()
    (stranger / "data").write_text("data")
    store.wait(days=9)
    options = {**GRACE, "orphans__delete_after_hours": 24}
    store.run(**options)
    assert not stranger.exists()
    assert put_back(store, "results/stranger/", hold=True).held_until is None
    assert (stranger / "data").read_text() == "data"
    os.utime(stranger / "data", (store.now.timestamp(), store.now.timestamp()))
    store.run(**options)
    assert stranger.exists()
    assert store.trash() == []


def test_a_restoring_that_met_something_goes_on_when_it_is_asked_for_again(
    trashed: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place is taken in the very moment; the others of its artifacts can be asked for at once."""
    trashed.run(**GRACE)
    real = Trash.restore

    def taken(self: Trash, item: str) -> tuple[str, ...]:
        trashed.results("a").mkdir(exist_ok=True)
        return real(self, item)

    monkeypatch.setattr(Trash, "restore", taken)
    with pytest.raises(TrashError, match="results/a"):
        put_back(trashed, "a", "results/a/")
    monkeypatch.undo()
    trashed.run(**GRACE)
    assert not any("owns" in event.message for event in trashed.events if isinstance(event, Warned))
    put_back(trashed, "a", "uploads/dem.tif")
    with pytest.raises(TrashError, match="results/a"):
        put_back(trashed, "a")
    trashed.results("a").rmdir()
    put_back(trashed, "a")
    assert (trashed.results("a") / "global/day_1.tif").exists()
    assert trashed.trash() == []
    assert trashed.sql("SELECT * FROM cleanup_intents") == []


def test_an_upload_that_a_held_job_shares_outlasts_the_grace_of_the_job_that_took_it(
    trashed: JobStore,
) -> None:
    trashed.job("b", dem="dem.tif")
    before = without_trash(trashed)
    trashed.run(**GRACE)
    trashed.sql("INSERT INTO cleanup_holds (job_id) VALUES ('a')")
    for _ in range(2):
        trashed.now += timedelta(hours=25)
        report = trashed.run(**GRACE)
        assert (report.outcome, report.trash_purged.jobs, report.skipped) == ("success", 0, 1)
    put_back(trashed, "a")
    put_back(trashed, "b")
    assert without_trash(trashed) == before


def test_an_artifact_with_an_odd_name_may_be_named_as_it_is_listed(store: JobStore) -> None:
    store.job("a\nb")
    store.run(**GRACE)
    (found,) = put_back(store, "a\nb", "results/a\\x0ab/").artifacts
    assert found.artifact.name == "a\nb"


# -- what is missing ------------------------------------------------------------------------------------


def trash_item(store: JobStore, root: str) -> Path:
    (item,) = (path for path in (store.path / root / ".eemtcleanupd-trash").iterdir() if path.name[0] != ".")
    return item


@pytest.mark.parametrize("what", ["item", "content"])
@pytest.mark.parametrize("root", ["results", "uploads"])
def test_a_missing_item_is_an_error_and_nothing_moves(trashed: JobStore, root: str, what: str) -> None:
    trashed.run(**GRACE)
    item = trash_item(trashed, root)
    for path in [item] if what == "item" else list(item.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = trashed.snapshot()
    label = {"results": "results/a/", "uploads": "uploads/dem.tif"}[root]
    with pytest.raises(TrashError, match=label):
        put_back(trashed, "a")
    assert trashed.snapshot() == before
    assert trashed.cleaned() == {"a"}
    other = {"results": "uploads/dem.tif", "uploads": "results/a/"}[root]
    assert [found.label for found in put_back(trashed, "a", other).artifacts] == [other]


def test_a_missing_upload_that_went_with_another_job_is_an_error(trashed: JobStore) -> None:
    trashed.job("b", dem="dem.tif")
    trashed.run(**GRACE)
    shutil.rmtree(trash_item(trashed, "uploads"))
    for job in ("a", "b"):
        with pytest.raises(TrashError, match=r"uploads/dem\.tif"):
            put_back(trashed, job)
        found = put_back(trashed, job, f"results/{job}/").artifacts
        assert [artifact.label for artifact in found] == [f"results/{job}/"]


def test_what_an_interrupted_run_left_incomplete_is_an_error(trashed: JobStore) -> None:
    trashed.run(**GRACE)
    trashed.sql("UPDATE cleanup_intents SET state = 'open'")
    shutil.rmtree(trash_item(trashed, "uploads"))
    with pytest.raises(TrashError, match=r"uploads/dem\.tif"):
        put_back(trashed, "a")
    assert put_back(trashed, "a", "results/a/").not_restored == ()


@pytest.mark.parametrize("failing", ["results", "uploads"])
def test_a_restore_in_part_says_what_was_restored_and_what_was_not(
    trashed: JobStore, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = without_trash(trashed)
    trashed.run(**GRACE)
    real = Trash.restore

    def fail(self: Trash, item: str) -> tuple[str, ...]:
        if self.root.name == failing:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, item)

    monkeypatch.setattr(Trash, "restore", fail)
    done = put_back(trashed, "a", hold=True)
    restored = [found.artifact.root for found in done.artifacts]
    missing = [(found.artifact.root, reason) for found, reason in done.not_restored]
    assert restored == ["uploads" if failing == "results" else "results"]
    assert missing == [(failing, "Input/output error")]
    (logged,) = trashed.sql("SELECT message FROM cleanup_log WHERE action = 'restored'")
    assert f"{failing}/" not in str(logged)
    monkeypatch.undo()
    trashed.run(**GRACE)  # it does the rest
    assert without_trash(trashed) == before
    assert trashed.sql("SELECT * FROM cleanup_intents") == []


def test_a_restore_after_a_killed_one_leaves_no_empty_item(
    trashed: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    before = without_trash(trashed)
    trashed.run(**GRACE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", kill)
        with pytest.raises(Killed):
            put_back(trashed, "a")
    put_back(trashed, "a", hold=True)
    trashed.run(**GRACE)
    assert (trashed.trash(), trashed.of(Warned), without_trash(trashed)) == ([], [], before)


def test_an_item_that_vanishes_during_the_restore_is_not_restored(
    trashed: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    trashed.run(**GRACE)
    real = Trash.restore

    def vanish(self: Trash, item: str) -> tuple[str, ...]:
        if self.root.name == "results":
            shutil.rmtree(trash_item(trashed, "uploads"))
        return real(self, item)

    monkeypatch.setattr(Trash, "restore", vanish)
    done = put_back(trashed, "a")
    assert [found.label for found in done.artifacts] == ["results/a/"]
    assert [found.label for found, _ in done.not_restored] == ["uploads/dem.tif"]
    assert trashed.sql("SELECT * FROM cleanup_intents") == []


def test_what_stays_in_the_trash_after_a_restore_in_part_has_its_own_size(trashed: JobStore) -> None:
    trashed.run(**GRACE)
    put_back(trashed, "a", "results/a/")
    (size,) = trashed.sql("SELECT size_bytes FROM cleanup_intents")
    assert size == (4096,)


def test_a_restore_in_part_of_a_purge_that_was_killed_invents_no_loss(trashed: JobStore) -> None:
    trashed.run(**GRACE)
    shutil.rmtree(trash_item(trashed, "results"))
    trashed.sql("UPDATE cleanup_intents SET is_purging = 1")
    put_back(trashed, "a", "uploads/dem.tif")
    trashed.now += timedelta(hours=25)
    assert trashed.run(**GRACE).errors == 0
    assert len(trashed.sql("SELECT * FROM cleanup_intents")) == 1, "only that of the upload, which went again"


def test_a_row_that_cannot_be_updated_is_not_restored(trashed: JobStore) -> None:
    trashed.job("bad")
    trashed.run(**GRACE)
    refuse(trashed, "ignore")
    before = trashed.snapshot()
    with pytest.raises(RowError):
        put_back(trashed, "bad")
    assert trashed.snapshot() == before
    assert trashed.cleaned() == {"a", "bad"}
    assert len(put_back(trashed, "a").artifacts) == 2


def test_of_an_artifact_that_was_trashed_twice_the_newer_one_is_restored(trashed: JobStore) -> None:
    trashed.run(**GRACE)
    trashed.sql("UPDATE jobs SET data_cleaned_at = NULL")
    trashed.results("a").mkdir()
    (trashed.results("a") / "new.tif").write_bytes(b"new")
    trashed.now += timedelta(hours=1)
    trashed.run(**GRACE)
    done = put_back(trashed, "a")
    assert sorted(found.label for found in done.artifacts) == ["results/a/", "uploads/dem.tif"]
    assert done.not_restored == ()
    assert (trashed.results("a") / "new.tif").exists()
    trashed.now += timedelta(hours=25)
    trashed.run(**GRACE)
    assert len(trashed.trash()) == 2  # the results, and the upload


def test_what_stays_in_the_trash_keeps_its_age(trashed: JobStore) -> None:
    trashed.run(**GRACE)
    trashed.sql("UPDATE jobs SET data_cleaned_at = NULL")
    trashed.results("a").mkdir()
    (trashed.results("a") / "new.tif").write_bytes(b"new")
    trashed.now += timedelta(hours=1)
    trashed.run(**GRACE)
    times = trashed.sql("SELECT created_at FROM cleanup_intents ORDER BY created_at")
    trashed.now += timedelta(hours=1)
    put_back(trashed, "a", "uploads/dem.tif")
    assert trashed.sql("SELECT created_at FROM cleanup_intents ORDER BY created_at") == times
    put_back(trashed, "a", "results/a/")
    assert (trashed.results("a") / "new.tif").exists()
