"""What a worker of a cluster does: it removes a subtree of an item, on a mount of its own, for a moment.

A subtree is a folder in a doomed item.  All that a worker is told is where it lies; what it finds there
must be the same filesystem, or it touches nothing.  A task may be done twice, since what is gone is no
error, and each file is counted by whoever's unlink took it away.  It ends after a few seconds and
says what is left, so that a stop need not reach it, and a big tree spreads over all workers.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.deletion.helper_process import Request
from eemtcleanupd.deletion.rate_limit import DeletionControls, RateLimits
from eemtcleanupd.deletion.roots import Root, open_root
from eemtcleanupd.deletion.trash import read_marker
from eemtcleanupd.deletion.tree import FOLDER_FLAGS, RemovalStats, empty_folder
from eemtcleanupd.errors import RootError
from eemtcleanupd.model import TRASH_NAME, RootName

SLICE_SECONDS = 2.0
"""How long a task goes on at most."""


@dataclass(frozen=True, slots=True)
class ItemLocation:
    """A doomed item, for those who have no descriptor of it: ``inode`` and ``marker`` are its root's."""

    root_name: RootName
    root_path: str
    inode: int
    marker: str
    item: str


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a task did: what is left as (name, label), or why this worker can do nothing for this root."""

    worker: str
    tally: RemovalStats
    left: tuple[tuple[str, str], ...] = ()
    unusable_reason: str | None = None


class _Deadline(StopFlag):
    """Set by itself after some seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._until = monotonic_seconds() + seconds

    def is_set(self) -> bool:
        return monotonic_seconds() >= self._until


def remove_subtree(
    place: ItemLocation, request: Request, limits: RateLimits, seconds: float = SLICE_SECONDS
) -> TaskResult:
    """Remove a folder of an item with everything in it, or as much as goes in some seconds.

    Files that need one hand for all (those of several links, and big ones that go in steps) are moved up
    into the item, where who sent this task finds them.
    """
    worker = _address()
    root = None
    try:
        root = open_root(place.root_name, Path(place.root_path))
        if root.inode != place.inode or read_marker(root) != place.marker:
            return TaskResult(worker, RemovalStats(), unusable_reason=f"{root.path} is another folder there")
        item_fd = _open_item(root, place.item)
    except RootError as error:
        return TaskResult(worker, RemovalStats(), unusable_reason=str(error))
    except FileNotFoundError:  # done by somebody else
        return TaskResult(worker, RemovalStats())
    except OSError as error:
        return TaskResult(
            worker, RemovalStats(), unusable_reason=f"its trash cannot be opened: {error.strerror}"
        )
    finally:
        if root is not None:
            root.close()
    controls = DeletionControls(_Deadline(seconds), one_hand=False)
    controls.apply(limits)
    try:
        return TaskResult(worker, *_remove(item_fd, replace(request, device=root.device), controls))
    finally:
        controls.close()
        os.close(item_fd)


def _open_item(root: Root, item: str) -> int:
    trash_fd = os.open(TRASH_NAME, FOLDER_FLAGS, dir_fd=root.fd)
    try:
        return os.open(item, FOLDER_FLAGS, dir_fd=trash_fd)
    finally:
        os.close(trash_fd)


def _remove(
    item_fd: int, request: Request, controls: DeletionControls
) -> tuple[RemovalStats, tuple[tuple[str, str], ...]]:
    tally = RemovalStats()
    waiting, share = deque([(request.name, request.label)]), request.share

    def found(name: str, label: str) -> None:
        waiting.append((name, label))

    while waiting:
        name, label = waiting[0]
        tally.add(
            empty_folder(
                item_fd,
                name,
                label=label,
                device=request.device,
                controls=controls,
                found=found,
                share=share,
            )
        )
        if controls.stop.is_set():
            break  # that folder may be gone; to hand it out once more does no harm
        waiting.popleft()
        share = None
    return tally, tuple(waiting)


def _address() -> str:
    try:
        from distributed import get_worker

        return str(get_worker().address)
    except (ImportError, ValueError):
        return "here"
