"""The pool of workers that empties doomed items, many at a time and each in parallel.

An unlink waits far longer than it computes (here 60 µs to 10 µs), so every worker keeps four of them in
flight.  But threads of one interpreter compute one at a time, and 80,000 files took them half as long again
as four parallel ``rm``: so each worker is a process of its own, started when there is much to delete.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.deletion.concurrency import AdaptiveSemaphore
from eemtcleanupd.deletion.helper_pool import HelperPool
from eemtcleanupd.deletion.helper_process import Request
from eemtcleanupd.deletion.rate_limit import DeletionControls, RateLimits
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.deletion.tree import FOLDER_FLAGS, RemovalStats, Shard, empty_folder, unlink_entry

if TYPE_CHECKING:
    from eemtcleanupd.deletion.dask_executor import DaskExecutor

log = logging.getLogger(__name__)

THREADS_PER_WORKER = 4
# A folder whose own size is larger has tens of thousands of entries: several remove them, a share each.
WIDE_BYTES = 1 << 20
SHARES = 4
# So few are gone before they have been handed to another process.
FEW = 250
# Folders that wait in memory, over all items; what is found beyond waits in the item itself, on the disk.
QUEUE_LIMIT = 4096
# Folders of an item that could not be removed and are remembered, so that a later round leaves them alone.
_FAILED_LIMIT = 1000
_NO_LIMITS = RateLimits()


@dataclass(frozen=True, slots=True)
class RemovalResult:
    """What became of one item: ``complete`` when nothing of it is left."""

    bytes_freed: int
    files: int
    folders: int
    errors: tuple[str, ...]
    error_count: int
    complete: bool


class DeletionPool:
    """Workers that empty items; a context manager that waits for what it has begun.

    Args:
        workers: how many.
        auto: whether to find out how many, up to ``workers``, do best.
        stop: ends all work after the system calls at hand; items are then left incomplete.
        cluster: workers of other machines that delete as well; the pool closes it.
        limits: how fast and how politely; ``controls.set`` puts others in force while it works.
        queue_limit: how many folders may wait in memory.

    Attributes:
        controls: what its threads and processes look at between two files.
        bytes_freed: what all items together have freed so far, for whoever watches.
        files: how many files are gone so far.
    """

    def __init__(
        self,
        workers: int,
        stop: StopFlag,
        *,
        auto: bool = False,
        cluster: DaskExecutor | None = None,
        limits: RateLimits = _NO_LIMITS,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        self.bytes_freed = 0
        self.files = 0
        self._workers = workers
        self._cluster = cluster
        self._slots = AdaptiveSemaphore(workers, THREADS_PER_WORKER, monotonic_seconds) if auto else None
        here = workers * THREADS_PER_WORKER
        self._here = self._slots or threading.BoundedSemaphore(here)
        # One thread waits for each folder that is in hand somewhere.
        self._executor = ThreadPoolExecutor(here + (cluster.threads if cluster else 0), "delete")
        self._executor.submit(int)  # one thread at least, which in the end does all that is queued
        self._stop = stop
        self.controls = DeletionControls(stop)
        if limits != _NO_LIMITS:
            self.controls.apply(limits)
        self._starting = threading.Lock()
        self._helpers: HelperPool | None = None
        self._room = queue_limit
        self._changed = threading.Condition()
        self._items = 0
        self._removed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stop.set()
        with self._changed:
            self._changed.wait_for(lambda: self._items == 0)
        self._executor.shutdown()
        if self._cluster is not None:
            self._cluster.close()
        if self._helpers is not None:
            self._helpers.close()
        self.controls.close()

    def remove(self, trash: Trash, item: str) -> Future[RemovalResult]:
        """Empty and remove a doomed item; one that is gone already is complete.

        Returns:
            A future of what was removed.  Paths that could not be removed are told in its result.
        """
        with self._changed:
            self._items += 1
        work = _Item(self, self._stop, trash, item)
        work.future.add_done_callback(self._item_done)
        self.submit(work.begin)
        return work.future

    def try_submit(self, task: Callable[[], None]) -> bool:
        """Queue a folder's task, unless too many wait already."""
        with self._changed:
            if self._room <= 0:
                return False
            self._room -= 1
        self.submit(task)
        return True

    def submit(self, task: Callable[[], None]) -> None:
        """Queue a task that is no folder's and must not be refused."""
        with suppress(RuntimeError):  # no more threads can be started: those that there are do it
            self._executor.submit(task)

    def folder_done(self) -> None:
        """Make room for another folder."""
        with self._changed:
            self._room += 1

    def empty_folder(
        self, trash: Trash, item: str, item_fd: int, request: Request, found: Callable[[str, str], object]
    ) -> RemovalStats:
        """Remove a folder of an item: by a worker of the cluster, in a helper, or here, as it is worth."""
        tally = None
        is_much = self.files >= FEW or not _has_few(item_fd, request.name)
        if is_much and self._cluster is not None:
            tally = self._cluster.empty_folder(trash, item, request, self.controls, found)
        if tally is not None:
            return tally
        with self._here:
            if is_much:
                tally = self._started_helpers().empty_folder(item_fd, request, found)
            if tally is None:
                tally = empty_folder(
                    item_fd,
                    request.name,
                    label=request.label,
                    device=request.device,
                    controls=self.controls,
                    found=found,
                    share=request.share,
                )
        return tally

    def prepare(self) -> None:
        """Let the first helper start sooner, where there may be much to remove."""
        with self._starting:
            self._prepared()

    def _prepared(self) -> HelperPool:
        if self._helpers is None:
            self._helpers = HelperPool(THREADS_PER_WORKER, self.controls)
        return self._helpers

    def _started_helpers(self) -> HelperPool:
        with self._starting:
            helpers = self._prepared()
            helpers.ensure_processes(self._workers if self._slots is None else self._slots.workers)
            return helpers

    def count(self, tally: RemovalStats) -> None:
        """Count what was removed."""
        with self._changed:
            self.bytes_freed += tally.bytes_freed
            self.files += tally.files
            self._removed += tally.files + tally.folders
            removed = self._removed
        if self._slots is not None:
            self._slots.note(removed)

    def _item_done(self, _future: Future[RemovalResult]) -> None:
        with self._changed:
            self._items -= 1
            self._changed.notify_all()


def _has_few(item_fd: int, name: str) -> bool:
    """Tell whether a folder has few entries, or is none that can be read."""
    try:
        fd = os.open(name, FOLDER_FLAGS, dir_fd=item_fd)
    except OSError:
        return True
    try:
        with os.scandir(fd) as listing:
            return sum(1 for _ in itertools.islice(listing, FEW)) < FEW
    except OSError:
        return True
    finally:
        os.close(fd)


class _Item:
    """One item on its way, in rounds: a round hands out the folders that are in the item at its beginning.

    ``_pending`` counts the tasks of a round, the round itself included; whichever ends last begins the
    next round, or ends the item.
    """

    def __init__(self, pool: DeletionPool, stop: StopFlag, trash: Trash, item: str) -> None:
        self.future: Future[RemovalResult] = Future()
        self._pool = pool
        self._stop = stop
        self._trash = trash
        self._item = item
        self._lock = threading.Lock()
        self._tally = RemovalStats()
        self._pending = 0
        self._removed_before = -1
        self._surplus = False
        self._failed: set[str] = set()
        self._shared: set[str] = set()
        self._fd = -1
        self._began = monotonic_seconds()

    def begin(self) -> None:
        try:
            self._fd = os.open(self._item, FOLDER_FLAGS, dir_fd=self._trash.fd)
        except FileNotFoundError:
            self._end(complete=True)
        except OSError as error:
            self._tally.fail(self._item, error)
            self._end(complete=False)
        else:
            self._round()

    def _round(self) -> None:
        """Remove the files of the item, and hand out its folders."""
        with self._lock:
            self._pending += 1
            self._surplus = False
        with self._counted() as tally, os.scandir(self._fd) as listing:
            for entry in listing:
                if self._stop.is_set():
                    break
                if entry.name in self._failed:
                    continue
                if not entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith(self._pool.controls.mark):  # whoever frees it, removes it
                        unlink_entry(self._fd, entry.name, entry.name, tally, self._pool.controls)
                elif not self._hand_out(entry.name, entry.name):
                    self._empty(entry.name, entry.name, tally)  # no room to wait: at once, here

    def _hand_out(self, name: str, label: str, share: Shard | None = None) -> bool:
        """Make a task of a folder; False when too many wait, then a later round finds it in the item."""
        with self._lock:
            self._pending += 1
        if self._pool.try_submit(lambda: self._task(name, label, share)):
            return True
        with self._lock:
            self._pending -= 1  # not the last one: whoever hands out still counts
            self._surplus = True
        return False

    def _task(self, name: str, label: str, share: Shard | None) -> None:
        self._pool.folder_done()
        with self._counted() as tally:
            self._empty(name, label, tally, share)

    def _empty(self, name: str, label: str, tally: RemovalStats, share: Shard | None = None) -> None:
        if share is None and self._is_wide(name):
            share = Shard(0, SHARES)
            for number in range(1, SHARES):
                self._hand_out(name, label, Shard(number, SHARES))
        request = Request(name, label, self._trash.root.device, share)
        removed = self._pool.empty_folder(self._trash, self._item, self._fd, request, self._hand_out)
        tally.add(removed)
        if removed.error_count:
            with self._lock:
                self._failed.add(name)

    def _is_wide(self, name: str) -> bool:
        """Tell whether a folder is to be shared out: once, then the next round takes what is left of it.

        (A folder does not become smaller when its entries go.)
        """
        try:
            status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:  # whoever empties it tells that
            return False
        if not stat.S_ISDIR(status.st_mode) or status.st_size < WIDE_BYTES:
            return False
        with self._lock:
            first = name not in self._shared
            self._shared.add(name)
            self._surplus = self._surplus or first
        return first

    @contextmanager
    def _counted(self) -> Iterator[RemovalStats]:
        """Count what the body removes, then see whether it was the last task of the round."""
        tally = RemovalStats()
        try:
            yield tally
        except OSError as error:
            tally.fail(self._item, error)
        except BaseException as error:  # a defect of ours: it must reach whoever waits
            tally.fail(self._item, OSError(errno.EIO, repr(error)))
            log.exception("a worker failed")
        self._pool.count(tally)
        with self._lock:
            self._tally.add(tally)
            self._pending -= 1
            last = self._pending == 0
        if last:
            self._finish_round()

    def _finish_round(self) -> None:
        # One path's error leaves its siblings alone, those too that had to wait on the disk.
        failed = self._tally.error_count and (not self._surplus or len(self._failed) > _FAILED_LIMIT)
        if self._stop.is_set() or failed:
            self._end(complete=False)
            return
        try:
            os.rmdir(self._item, dir_fd=self._trash.fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            # Folders that found no room are left, or reading left entries out: again, while that helps.
            removed = self._tally.files + self._tally.folders
            went_on = self._surplus or removed > self._removed_before
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST} and went_on:
                self._removed_before = removed
                self._pool.submit(self._round)
                return
            self._tally.fail(self._item, error)
            self._end(complete=False)
            return
        self._end(complete=True)

    def _end(self, *, complete: bool) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        tally = self._tally
        log.debug(
            "%s trash item %s: %d files, %d folders, %d errors in %.1f ms",
            "emptied" if complete else "left",
            self._item,
            tally.files,
            tally.folders,
            tally.error_count,
            (monotonic_seconds() - self._began) * 1000,
        )
        self.future.set_result(
            RemovalResult(
                tally.bytes_freed,
                tally.files,
                tally.folders,
                tuple(tally.errors),
                tally.error_count,
                complete=complete,
            )
        )
