"""The task of a Dask worker: removes a subtree of an item through the worker's own mount, for a few seconds.

A subtree is a folder in an item under deletion.  The worker receives only its location, and touches nothing
unless it finds the same filesystem there.  A task can run twice: a missing file is no error, and each file is
counted by the task whose unlink removed it.  A task ends after a few seconds and returns what is left.  So a
stop need not reach it, and a big tree spreads over all workers.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.deletion.rate_limit import DeletionControls, RateLimits
from eemtcleanupd.deletion.roots import Root, open_root
from eemtcleanupd.deletion.trash import marker_in
from eemtcleanupd.deletion.tree import FOLDER_FLAGS, FolderTask, RemovalStats, empty_folder
from eemtcleanupd.errors import RootError
from eemtcleanupd.model import TRASH_NAME, RootName

SLICE_SECONDS = 2.0
"""The maximum duration of a task."""


@dataclass(frozen=True, slots=True)
class ItemLocation:
    """The location of an item under deletion; ``inode`` and ``marker`` identify its root."""

    root_name: RootName
    root_path: str
    inode: int
    marker: str
    item: str


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The result of a task: what is left as (name, label), or why this worker cannot use this root."""

    worker: str
    stats: RemovalStats
    left: tuple[tuple[str, str], ...] = ()
    unusable_reason: str | None = None


class _Deadline(StopFlag):
    """A flag that sets itself after some seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._until = monotonic_seconds() + seconds

    def is_set(self) -> bool:
        return monotonic_seconds() >= self._until


def remove_subtree(
    location: ItemLocation, task: FolderTask, limits: RateLimits, seconds: float = SLICE_SECONDS
) -> TaskResult:
    """Remove a folder of an item and its content, or as much as is possible in some seconds.

    Files with several links and big files that are truncated gradually require a lock of the run.  They are
    moved up into the item, where the sender of this task removes them.
    """
    worker = _address()
    root = None
    try:
        root = open_root(location.root_name, Path(location.root_path))
        item_fd = _open_item(root, location)
    except RootError as error:
        return TaskResult(worker, RemovalStats(), unusable_reason=str(error))
    except FileNotFoundError:  # another worker has removed the item
        return TaskResult(worker, RemovalStats())
    except OSError as error:
        return TaskResult(worker, RemovalStats(), unusable_reason=f"cannot open the trash: {error.strerror}")
    finally:
        if root is not None:
            root.close()
    controls = DeletionControls(_Deadline(seconds), exclusive=False)
    controls.apply(limits)
    try:
        return TaskResult(worker, *_remove(item_fd, replace(task, device=root.device), controls))
    finally:
        controls.close()
        os.close(item_fd)


def _open_item(root: Root, location: ItemLocation) -> int:
    try:
        trash_fd = os.open(TRASH_NAME, FOLDER_FLAGS, dir_fd=root.fd)
    except OSError as error:
        raise RootError(f"cannot open the trash: {error.strerror}") from error
    try:
        if root.inode != location.inode or marker_in(trash_fd) != location.marker:
            raise RootError(f"{root.path} is another folder there")
        return os.open(location.item, FOLDER_FLAGS, dir_fd=trash_fd)
    finally:
        os.close(trash_fd)


def _remove(
    item_fd: int, task: FolderTask, controls: DeletionControls
) -> tuple[RemovalStats, tuple[tuple[str, str], ...]]:
    stats = RemovalStats()
    waiting = deque([task])
    while waiting:
        folder = waiting[0]
        stats.add(
            empty_folder(
                item_fd,
                folder,
                controls,
                lambda name, label: waiting.append(FolderTask(name, label, task.device)),
            )
        )
        if controls.stop.is_set():
            break  # that folder might be removed already; a second task for it does no harm
        waiting.popleft()
    return stats, tuple((folder.name, folder.label) for folder in waiting)


def _address() -> str:
    try:
        from distributed import get_worker

        return str(get_worker().address)
    except (ImportError, ValueError):
        return "local"
