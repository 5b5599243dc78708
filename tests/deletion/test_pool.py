from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion import pool as module
from eemtcleanupd.deletion.pool import DeletionPool
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.model import TRASH_NAME
from tests.deletion.conftest import Remove, allocated, open_descriptors


def _fill(folder: Path, folders: int, files: int) -> None:
    for number in range(folders):
        below = folder / f"d{number}"
        below.mkdir(parents=True)
        for file in range(files):
            (below / f"f{file}").touch()


@pytest.mark.parametrize("queue_limit", [0, 1, 7])
def test_more_folders_than_may_wait_in_memory_go_all_the_same(
    root: Root, remove: Remove, queue_limit: int
) -> None:
    for number in range(6):
        _fill(root.path / "job" / f"part{number}" / "deeper", 20, 2)
    removed = remove("job", queue_limit=queue_limit)
    assert (removed.complete, removed.files, removed.folders) == (True, 240, 6 * 22 + 1)
    assert os.listdir(root.path / TRASH_NAME) == []


@pytest.mark.parametrize("threads", [0, 1])
def test_where_no_more_threads_can_be_started_those_that_there_are_do_it_and_nobody_waits_for_ever(
    root: Root, trash: Trash, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """As in a container whose limit of processes (pids.max) is reached."""
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
        with pytest.raises(RuntimeError, match="can't start"), DeletionPool(2, StopFlag()) as pool:
            pool.remove(trash, "item.deleting")
        return
    with DeletionPool(2, StopFlag()) as pool:
        removed = pool.remove(trash, "item.deleting").result(timeout=60)
    assert (removed.complete, removed.files) == (True, 15)


def test_what_a_stop_interrupts_a_later_run_completes(root: Root, trash: Trash) -> None:
    _fill(root.path / "job", 40, 100)
    trash.stage("item", ["job"])
    trash.mark_deleting("item")
    stop = StopFlag()
    deadline = time.monotonic() + 60
    with DeletionPool(1, stop, queue_limit=8) as pool:
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


def test_what_a_killed_run_had_moved_up_is_removed_too(root: Root, trash: Trash) -> None:
    doomed = root.path / TRASH_NAME / "item.deleting"
    _fill(doomed / "0123456789abcdef-0", 3, 3)
    _fill(doomed / "0123456789abcdef-1" / "x" / "y", 3, 3)
    (doomed / "job").mkdir()
    with DeletionPool(2, StopFlag()) as pool:
        removed = pool.remove(trash, "item.deleting").result(timeout=60)
    assert (removed.complete, removed.files) == (True, 18)


def test_an_item_that_is_gone_is_complete(trash: Trash) -> None:
    with DeletionPool(1, StopFlag()) as pool:
        removed = pool.remove(trash, "never.deleting").result(timeout=60)
    assert (removed.complete, removed.files, removed.bytes_freed) == (True, 0, 0)


def test_an_item_that_is_a_link_is_an_error_not_a_way_out(root: Root, trash: Trash, canary: Path) -> None:
    (root.path / TRASH_NAME / "item.deleting").symlink_to(canary)
    with DeletionPool(1, StopFlag()) as pool:
        removed = pool.remove(trash, "item.deleting").result(timeout=60)
    assert (removed.complete, removed.error_count) == (False, 1)


def test_a_pool_ends_what_it_has_begun_and_leaves_nothing_open(root: Root, trash: Trash) -> None:
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


def test_leaving_a_pool_by_an_error_stops_it(root: Root, trash: Trash) -> None:
    _fill(root.path / "job", 20, 200)
    trash.stage("item", ["job"])
    stop = StopFlag()
    pool = DeletionPool(1, stop)
    future = pool.remove(trash, trash.mark_deleting("item"))
    with pytest.raises(KeyboardInterrupt), pool:
        raise KeyboardInterrupt
    assert stop.is_set()
    assert future.done()
    assert not future.result().complete
    assert list(trash.items()) == [("item", True)]


@pytest.mark.parametrize("queue_limit", [2, 1000])
def test_folders_that_are_shared_out_go_whole_and_count_once(
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


def test_what_cannot_be_removed_of_a_shared_folder_leaves_other_shared_folders_alone(
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
