from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion import pool as module
from eemtcleanupd.deletion.pool import DeletionPool
from eemtcleanupd.deletion.rate_limit import RateLimits
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.trash import Trash, group_name
from eemtcleanupd.model import TRASH_NAME
from tests.conftest import immutable
from tests.deletion.conftest import Remove, allocated, open_descriptors


def _fill(folder: Path, folders: int, files: int) -> None:
    for number in range(folders):
        below = folder / f"d{number}"
        below.mkdir(parents=True)
        for file in range(files):
            (below / f"f{file}").touch()


@pytest.mark.parametrize("queue_limit", [0, 1, 7])
def test_more_folders_than_the_queue_limit_are_removed(root: Root, remove: Remove, queue_limit: int) -> None:
    for number in range(6):
        _fill(root.path / "job" / f"part{number}" / "deeper", 20, 2)
    removed = remove("job", queue_limit=queue_limit)
    assert (removed.complete, removed.files, removed.folders) == (True, 240, 6 * 22 + 1)
    assert os.listdir(root.path / TRASH_NAME) == []


@pytest.mark.parametrize("threads", [0, 1])
def test_existing_threads_do_all_work_when_no_more_can_be_started(
    root: Root, trash: Trash, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """As in a container that has reached its process limit (pids.max)."""
    start = threading.Thread.start
    left = [True] * threads

    def start_some(self: threading.Thread) -> None:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(self)

    _fill(root.path / "job", 5, 3)
    trash.stage("item", ["job"])
    trash.mark_deleting("item")
    monkeypatch.setattr(threading.Thread, "start", start_some)
    if not threads:
        with pytest.raises(RuntimeError), DeletionPool(2, StopFlag()) as pool:
            pool.remove(trash, "item.deleting")
        return
    with DeletionPool(2, StopFlag()) as pool:
        removed = pool.remove(trash, "item.deleting").result(timeout=60)
    assert (removed.complete, removed.files) == (True, 15)


@pytest.mark.slow
def test_a_later_run_completes_an_interrupted_removal(root: Root, trash: Trash) -> None:
    _fill(root.path / "job", 40, 100)
    trash.stage("item", ["job"])
    trash.mark_deleting("item")
    stop = StopFlag()
    deadline = time.monotonic() + 60
    with DeletionPool(1, stop, limits=RateLimits(deletes_per_second=300), queue_limit=8) as pool:
        future = pool.remove(trash, "item.deleting")
        while not pool.files and time.monotonic() < deadline:
            time.sleep(0.0005)
        stop.set()
        first = future.result(timeout=60)
    assert not first.complete
    assert first.error_count == 0
    assert list(trash.items()) == [("item", True)]
    with DeletionPool(4, StopFlag()) as pool:
        second = pool.remove(trash, "item.deleting").result(timeout=60)
    assert second.complete
    assert first.files + second.files == 4000
    assert first.folders + second.folders == 41
    assert list(trash.items()) == []


def test_folders_that_a_killed_run_moved_up_are_removed(root: Root, trash: Trash) -> None:
    item = root.path / TRASH_NAME / "item.deleting"
    _fill(item / "0123456789abcdef-0", 3, 3)
    _fill(item / "0123456789abcdef-1" / "x" / "y", 3, 3)
    (item / "job").mkdir()
    with DeletionPool(2, StopFlag()) as pool:
        removed = pool.remove(trash, "item.deleting").result(timeout=60)
    assert (removed.complete, removed.files) == (True, 18)


def test_a_missing_item_is_complete(trash: Trash) -> None:
    with DeletionPool(1, StopFlag()) as pool:
        removed = pool.remove(trash, "never.deleting").result(timeout=60)
    assert (removed.complete, removed.files, removed.bytes_freed) == (True, 0, 0)


def test_an_item_that_is_a_link_is_an_error_and_not_followed(root: Root, trash: Trash, canary: Path) -> None:
    (root.path / TRASH_NAME / "item.deleting").symlink_to(canary)
    with DeletionPool(1, StopFlag()) as pool:
        removed = pool.remove(trash, "item.deleting").result(timeout=60)
    assert (removed.complete, removed.error_count) == (False, 1)


def test_a_pool_finishes_its_work_and_closes_all_descriptors(root: Root, trash: Trash) -> None:
    before = open_descriptors()
    futures = []
    with DeletionPool(3, StopFlag()) as pool:
        for number in range(12):
            _fill(root.path / f"job{number}", 3, 5)
            trash.stage(f"item{number}", [f"job{number}"])
            futures.append(pool.remove(trash, trash.mark_deleting(f"item{number}")))
    assert all(future.done() and future.result().complete for future in futures)
    assert pool.files == 12 * 15
    assert open_descriptors() == before


@pytest.mark.slow
def test_an_exception_in_the_body_stops_the_pool(root: Root, trash: Trash) -> None:
    _fill(root.path / "job", 20, 200)
    trash.stage("item", ["job"])
    stop = StopFlag()
    pool = DeletionPool(1, stop, limits=RateLimits(deletes_per_second=300))
    future = pool.remove(trash, trash.mark_deleting("item"))
    with pytest.raises(KeyboardInterrupt), pool:
        raise KeyboardInterrupt
    assert stop.is_set()
    assert future.done()
    assert not future.result().complete
    assert list(trash.items()) == [("item", True)]


@pytest.mark.parametrize("queue_limit", [2, 1000])
def test_folders_that_several_workers_share_are_removed_completely_and_counted_once(
    root: Root, remove: Remove, monkeypatch: pytest.MonkeyPatch, queue_limit: int
) -> None:
    monkeypatch.setattr(module, "WIDE_BYTES", 0)
    _fill(root.path / "job" / "deep" / "deeper", 6, 70)
    (root.path / "job" / "a").touch()
    os.link(root.path / "job" / "a", root.path / "job" / "deep" / "link")
    size = allocated(root.path / "job")
    removed = remove("job", queue_limit=queue_limit)
    assert (removed.complete, removed.files, removed.folders) == (True, 422, 9)
    assert removed.bytes_freed == size
    assert os.listdir(root.path / TRASH_NAME) == []


def test_an_error_in_one_shared_folder_does_not_affect_the_others(
    root: Root, remove: Remove, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def refuse_one(name: str, *, dir_fd: int) -> None:
        if name == "stays":
            raise PermissionError(1, "Operation not permitted")
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(module, "WIDE_BYTES", 0)
    monkeypatch.setattr(os, "unlink", refuse_one)
    _fill(root.path / "job", 5, 20)
    (root.path / "job" / "d3" / "stays").touch()
    removed = remove("job")
    assert (removed.complete, removed.error_count) == (False, 1)
    (item,) = (root.path / TRASH_NAME).iterdir()
    (folder,) = item.iterdir()
    assert os.listdir(folder) == ["stays"]


@pytest.mark.parametrize("files_before", [0, 10_000], ids=["in a thread", "in a helper"])
def test_small_entries_of_a_group_are_removed_and_counted_one_by_one(
    root: Root, trash: Trash, files_before: int
) -> None:
    group = group_name("run", 1)
    names = [f"job{number}" for number in range(120)]
    for number, name in enumerate(names):
        if number % 3:
            _fill(root.path / name, number % 2, 2)
            (root.path / name).mkdir(exist_ok=True)
            (root.path / name / "f").write_text("data")
        else:
            (root.path / name).write_text("data")
    sizes = [allocated(root.path / name) for name in names]
    for name in names:
        trash.stage(f"{group}/{name}", [name])
    with DeletionPool(2, StopFlag()) as pool:
        pool.files = files_before
        folder = trash.mark_deleting(group)
        removed = [future.result(60) for future in pool.remove_small(trash, folder, [*names, "missing"])]
    assert all(result.complete for result in removed)
    assert [result.bytes_freed for result in removed] == [*sizes, 0]
    assert trash.remove_group(folder)


def test_an_error_in_a_group_affects_its_own_entry_only(root: Root, trash: Trash) -> None:
    group = group_name("run", 1)
    for name in ("a", "b"):
        _fill(root.path / name, 1, 1)
    with immutable(root.path / "a/d0/f0", root=root.path):
        for name in ("a", "b"):
            trash.stage(f"{group}/{name}", [name])
        with DeletionPool(1, StopFlag()) as pool:
            folder = trash.mark_deleting(group)
            first, second = (future.result(60) for future in pool.remove_small(trash, folder, ["a", "b"]))
    (left,) = (path for path in (root.path / TRASH_NAME / folder).rglob("f0"))
    assert (first.complete, first.error_count, second.complete) == (False, 1, True)
    assert left == root.path / TRASH_NAME / folder / first.errors[0][1]
    assert trash.exists(f"{folder}/a")
    assert not trash.remove_group(folder)


def test_a_stop_leaves_the_rest_of_a_group(root: Root, trash: Trash) -> None:
    group = group_name("run", 1)
    _fill(root.path / "job", 1, 1)
    trash.stage(f"{group}/job", ["job"])
    stop = StopFlag()
    stop.set()
    with DeletionPool(1, stop) as pool:
        (removed,) = (
            future.result(60) for future in pool.remove_small(trash, trash.mark_deleting(group), ["job"])
        )
    assert not removed.complete
    assert trash.exists(f"{group}.deleting/job")


class StopAfter(StopFlag):
    """Is set after it was asked so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def is_set(self) -> bool:
        self.times -= 1
        return self.times < 0


def test_an_entry_of_a_group_is_there_until_all_of_it_is_removed(root: Root, trash: Trash) -> None:
    """A later run takes a job without an entry for one whose deletion was complete."""
    complete = []
    for times in range(30):
        group = group_name("run", times)
        (root.path / "job/a/b").mkdir(parents=True)
        (root.path / "job/a/b/file").write_text("data")
        (root.path / "job/file").write_text("data")
        trash.stage(f"{group}/job", ["job"])
        with DeletionPool(1, StopAfter(times)) as pool:
            folder = trash.mark_deleting(group)
            (removed,) = (future.result(60) for future in pool.remove_small(trash, folder, ["job"]))
        assert os.listdir(root.path / TRASH_NAME / folder) == ([] if removed.complete else ["job"])
        complete.append(removed.complete)
    assert set(complete) == {False, True}
