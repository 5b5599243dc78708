"""What interrupted runs and other hands left: found again, or missed and said."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from eemtcleanupd.cleanup.recording import Recording
from eemtcleanupd.deletion.trash import Trash, group_name
from eemtcleanupd.errors import RootError
from eemtcleanupd.events import JobFailed, Warned
from eemtcleanupd.model import TRASH_NAME, Trigger
from tests.cleanup.conftest import JobStore

GRACE: dict[str, Any] = {"trash__grace_hours": 24}


def failures(store: JobStore) -> list[str]:
    return [event.error for event in store.events if isinstance(event, JobFailed)]


def test_an_upload_whose_jobs_are_all_cleaned_goes_with_the_next_run(store: JobStore) -> None:
    upload = store.upload("dem.tif")
    store.now = datetime.now(UTC)
    for job in ("a", "b"):
        store.job(job, dem="dem.tif", files=0)
    store.run(retention__successful_jobs__hours=100_000)
    store.wait(seconds=5)
    store.sql("UPDATE jobs SET data_cleaned_at = ?", store.now.replace(tzinfo=None).isoformat())
    store.wait(seconds=10)
    report = store.run(dry_run=True)
    assert (report.orphans.jobs, report.bytes_freed) == (1, 4096)
    assert store.run().orphans.jobs == 1
    assert not upload.exists()
    assert store.run().orphans.jobs == 0


@pytest.mark.parametrize("why", ["came back", "held", "live", "not due"])
def test_an_upload_that_is_needed_or_came_back_after_the_cleanup_stays(store: JobStore, why: str) -> None:
    store.now = datetime.now(UTC)
    upload = store.upload("dem.tif")
    for job in ("a", "b"):
        store.job(job, dem="dem.tif", files=0, days=1 if why == "not due" else 10)
    store.run(retention__successful_jobs__hours=100_000)
    store.wait(seconds=-60 if why == "came back" else 5)
    store.sql("UPDATE jobs SET data_cleaned_at = ? WHERE id = 'a'", store.now.isoformat()[:19])
    if why != "not due":
        store.sql("UPDATE jobs SET data_cleaned_at = ? WHERE id = 'b'", store.now.isoformat()[:19])
    if why == "held":
        store.sql("INSERT INTO cleanup_holds (job_id) VALUES ('b')")
    if why == "live":
        store.sql("UPDATE jobs SET status = 'running' WHERE id = 'b'")
    store.wait(seconds=10)
    store.run()
    assert upload.exists()


def test_what_came_back_after_the_cleanup_stays_when_the_zone_is_corrected(store: JobStore) -> None:
    """The time in the row seems to be nine hours later then."""
    store.wait(minutes=-10)
    store.job("a")
    assert store.run(database__timezone="Asia/Tokyo").successful.jobs == 1
    store.results("a").mkdir()
    store.wait(hours=1)
    assert store.run(database__timezone="UTC").orphans.jobs == 0
    assert store.results("a").exists()


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("grace", [False, True])
def test_a_trash_that_was_taken_away_is_missed(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, grace: bool
) -> None:
    store.job("a")
    if grace:
        store.run(**GRACE)
    else:
        monkeypatch.setattr(Trash, "mark_deleting", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.run()
        monkeypatch.undo()
    trash = store.path / "results/.eemtcleanupd-trash"
    trash.rename(store.path / "elsewhere")
    store.now = store.now.replace(day=20)
    for _ in range(2):
        with pytest.raises(RootError, match="removed or replaced"):
            store.run()
    shutil.move(store.path / "elsewhere", trash)
    store.run()
    assert failures(store) == []
    assert not list(trash.glob("[!.]*"))


def test_an_item_that_was_taken_out_of_the_trash_is_an_error_until_a_person_gives_it_up(
    store: JobStore,
) -> None:
    store.job("a")
    store.job("b")
    store.run(**GRACE)
    trash = store.path / "results/.eemtcleanupd-trash"
    taken = next(path for path in trash.iterdir() if (path / "a").exists())
    taken.rename(store.path / "taken")
    store.now = store.now.replace(day=20)
    for purged in (1, 0):
        report = store.run(**GRACE)
        assert (report.trash_purged.jobs, report.errors) == (purged, 1)
        assert "results/a" in failures(store)[0]
    report = store.request(Trigger.TRASH, forget_missing=True, **GRACE)
    assert (report.trash_purged.jobs, report.errors) == (1, 1)
    assert store.run(**GRACE).errors == 0


def test_a_purge_that_was_killed_before_its_record_is_no_loss(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.job("a")
    store.run(**GRACE)
    store.now = store.now.replace(day=20)
    monkeypatch.setattr(Recording, "record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.run(**GRACE)
    monkeypatch.undo()
    assert not [
        name for name in os.listdir(Path(store.path) / "results/.eemtcleanupd-trash") if name[0] != "."
    ]
    report = store.run(**GRACE)
    assert (report.errors, report.trash_purged.jobs) == (0, 1)


def test_what_was_still_staged_goes_with_what_a_killed_run_had_deleted(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run died after one item was deleted completely, and before it began to delete the next."""
    store.job("a", dem="dem.tif")
    upload = store.upload("dem.tif")
    mark = Trash.mark_deleting

    def mark_one(self: Trash, item: str) -> str:
        if self.root.name == "uploads":
            raise KeyboardInterrupt
        return mark(self, item)

    monkeypatch.setattr(Trash, "mark_deleting", mark_one)
    with pytest.raises(KeyboardInterrupt):
        store.run()
    monkeypatch.undo()
    for item in (store.path / "results/.eemtcleanupd-trash").glob("*.deleting"):
        shutil.rmtree(item)
    store.run()
    assert store.cleaned() == {"a"}
    assert not upload.exists()
    assert store.trash() == []


def test_what_a_kill_left_in_the_folder_of_a_finished_group_goes_with_the_next_run(store: JobStore) -> None:
    store.run()
    stray = store.path / "results" / TRASH_NAME / f"{group_name('run', 3)}.deleting" / "moved-up"
    stray.mkdir(parents=True)
    (stray / "raster.tif").write_text("x")
    store.run()
    assert store.trash() == []
    assert not [event for event in store.events if isinstance(event, Warned) and "run.g3" in event.message]
