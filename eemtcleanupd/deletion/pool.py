"""A pool of workers that empties many items of the trash at a time, each in parallel.

An unlink waits much longer than it computes (60 µs and 10 µs on the test machine), so each worker runs four
at a time.  Only one thread of an interpreter computes at a time: with threads alone, 80,000 files took 1.5
times as long as with four parallel ``rm``.  So each worker is a process if there is much to delete.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.deletion.concurrency import AdaptiveSemaphore
from eemtcleanupd.deletion.helper_pool import HelperPool
from eemtcleanupd.deletion.helper_process import SMALL_BATCH
from eemtcleanupd.deletion.rate_limit import DeletionControls, RateLimits
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.deletion.tree import (
    FOLDER_FLAGS,
    Failure,
    FolderTask,
    OnSubfolder,
    RemovalStats,
    Shard,
    empty_folder,
    remove_small,
    unlink_entry,
)
from eemtcleanupd.formatting import printable
from eemtcleanupd.privileges import lower_new_thread, with_file_access

if TYPE_CHECKING:
    from eemtcleanupd.deletion.dask_executor import DaskExecutor

log = logging.getLogger(__name__)

WIDE_BYTES = 1 << 20
"""A folder whose own size is larger has tens of thousands of entries; several workers share it."""
QUEUE_LIMIT = 4096
"""How many folders of all items can wait in memory; the others wait on the disk, in their item."""
_THREADS_PER_WORKER = 4
_SHARDS = 4
# Removing fewer entries takes less time than handing them to another process.
_FEW_ENTRIES = 250
# How many failed folders of an item are remembered, so that later rounds skip them.
_MAX_FAILED = 1000
_NO_LIMITS = RateLimits()


@dataclass(frozen=True, slots=True)
class RemovalResult:
    """The result for one item; ``complete`` means that nothing of the item is left."""

    bytes_freed: int
    files: int
    folders: int
    errors: tuple[Failure, ...]
    error_count: int
    complete: bool


class DeletionPool:
    """Workers that empty items; a context manager that waits for all started work.

    Args:
        workers: the number of workers.
        auto: find the best number of workers up to ``workers``.
        stop: ends all work after the current system calls; items are then left incomplete.
        cluster: workers of other machines, which also delete; the pool closes it.
        limits: rate limits and priority; ``controls.apply`` changes them during the work.
        queue_limit: how many folders can wait in memory.

    Attributes:
        controls: the stop flag and limits, which threads and processes check between two files.
        bytes_freed: the bytes freed so far, over all items.
        files: the number of files removed so far.
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
        self._adaptive = AdaptiveSemaphore(workers, _THREADS_PER_WORKER, monotonic_seconds) if auto else None
        local_threads = workers * _THREADS_PER_WORKER
        self._local_slots = self._adaptive or threading.BoundedSemaphore(local_threads)
        # One thread waits for each folder that a helper or the cluster is emptying.
        threads = local_threads + (cluster.threads if cluster else 0)
        self._executor = ThreadPoolExecutor(threads, "delete", lower_new_thread)
        self._executor.submit(int)  # starts one thread, which does all queued work if no other can be started
        self._stop = stop
        self.controls = DeletionControls(stop)
        if limits != _NO_LIMITS:
            self.controls.apply(limits)
        self._helpers_lock = threading.Lock()
        self._helpers: HelperPool | None = None
        self._free_queue_slots = queue_limit
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
        """Empty and remove an item whose deletion has started; a missing item is complete.

        Returns:
            A future of what was removed.  Its result names the paths that could not be removed.
        """
        with self._changed:
            self._items += 1
        removal = _ItemRemoval(self, self._stop, trash, item)
        removal.future.add_done_callback(self._item_done)
        self.submit(removal.start)
        return removal.future

    def remove_small(self, trash: Trash, group: str, names: Sequence[str]) -> list[Future[RemovalResult]]:
        """Remove small entries of a group whose deletion has started; a missing entry is complete.

        Returns:
            A future for each name, of what was removed.
        """
        futures: list[Future[RemovalResult]] = [Future() for _ in names]
        for start in range(0, len(names), SMALL_BATCH):
            part = slice(start, start + SMALL_BATCH)
            with self._changed:
                self._items += 1
            self.submit(partial(self._remove_small, trash, group, names[part], futures[part]))
        return futures

    def _remove_small(
        self, trash: Trash, group: str, names: Sequence[str], futures: Sequence[Future[RemovalResult]]
    ) -> None:
        waiting = list(zip(names, futures, strict=True))

        def removed(stats: RemovalStats) -> None:
            name, future = waiting.pop(0)
            self.count(stats)
            is_complete = not stats.error_count and not (
                self._stop.is_set() and trash.exists(f"{group}/{name}")
            )
            future.set_result(_result(stats, complete=is_complete))

        try:
            self._remove_each(trash, group, names, removed)
        except BaseException as error:  # the thread that waits for the futures must receive it
            if not isinstance(error, OSError):
                log.exception("A deletion task failed")
            while waiting:
                stats = RemovalStats()
                stats.fail(
                    waiting[0][0], error if isinstance(error, OSError) else OSError(errno.EIO, repr(error))
                )
                removed(stats)
        self._item_done()

    def _remove_each(
        self, trash: Trash, group: str, names: Sequence[str], removed: Callable[[RemovalStats], object]
    ) -> None:
        """Remove small entries; ``removed`` receives the statistics of each, in order."""
        device = trash.root.device
        try:
            group_fd = os.open(group, FOLDER_FLAGS, dir_fd=trash.fd)
        except FileNotFoundError:
            for _ in names:
                removed(RemovalStats())
            return
        try:
            with self._local_slots:
                if self.files >= _FEW_ENTRIES and self._started_helpers().remove_small(
                    group_fd, names, device, removed
                ):
                    return
                for name in names:
                    removed(remove_small(group_fd, name, name, device, self.controls))
        finally:
            os.close(group_fd)

    def try_submit(self, task: Callable[[], None]) -> bool:
        """Queue the task of a folder; return False when too many are waiting."""
        with self._changed:
            if self._free_queue_slots <= 0:
                return False
            self._free_queue_slots -= 1
        self.submit(task)
        return True

    def submit(self, task: Callable[[], None]) -> None:
        """Queue a task that is not limited by the queue size."""
        with suppress(RuntimeError):  # no more threads can be started: the existing ones run the task
            self._executor.submit(with_file_access(task))

    def task_started(self) -> None:
        """Free the queue slot of a folder's task."""
        with self._changed:
            self._free_queue_slots += 1

    def empty_folder(
        self, trash: Trash, item: str, item_fd: int, task: FolderTask, on_subfolder: OnSubfolder
    ) -> RemovalStats:
        """Remove a folder of an item: in the cluster, in a helper, or in this thread if it is small."""
        stats = None
        is_large = self.files >= _FEW_ENTRIES or not _has_few_entries(item_fd, task.name)
        if is_large and self._cluster is not None:
            stats = self._cluster.empty_folder(trash, item, task, self.controls, on_subfolder)
        if stats is not None:
            return stats
        reported = 0

        def on_progress(bytes_freed: int) -> None:
            nonlocal reported
            with self._changed:
                self.bytes_freed += bytes_freed - reported
            reported = bytes_freed

        with self._local_slots:
            if is_large:
                stats = self._started_helpers().empty_folder(item_fd, task, on_subfolder, on_progress)
            if stats is None:
                stats = empty_folder(item_fd, task, self.controls, on_subfolder, on_progress)
        stats.bytes_reported = reported
        return stats

    def prepare(self) -> None:
        """Start the helpers' server process early, when there might be much to remove."""
        with self._helpers_lock:
            self._helper_pool()

    def _helper_pool(self) -> HelperPool:
        if self._helpers is None:
            self._helpers = HelperPool(_THREADS_PER_WORKER, self.controls)
        return self._helpers

    def _started_helpers(self) -> HelperPool:
        with self._helpers_lock:
            helpers = self._helper_pool()
            helpers.ensure_processes(self._workers if self._adaptive is None else self._adaptive.workers)
            return helpers

    def count(self, stats: RemovalStats) -> None:
        """Count what was removed."""
        with self._changed:
            self.bytes_freed += stats.bytes_freed - stats.bytes_reported
            self.files += stats.files
            self._removed += stats.files + stats.folders
            removed = self._removed
        if self._adaptive is not None:
            self._adaptive.note(removed)

    def _item_done(self, _future: Future[RemovalResult] | None = None) -> None:
        with self._changed:
            self._items -= 1
            self._changed.notify_all()


def _result(stats: RemovalStats, *, complete: bool) -> RemovalResult:
    return RemovalResult(
        stats.bytes_freed,
        stats.files,
        stats.folders,
        tuple(stats.errors),
        stats.error_count,
        complete=complete,
    )


def _has_few_entries(item_fd: int, name: str) -> bool:
    """Return whether a folder has few entries, or cannot be read."""
    try:
        fd = os.open(name, FOLDER_FLAGS, dir_fd=item_fd)
    except OSError:
        return True
    try:
        with os.scandir(fd) as listing:
            return sum(1 for _ in itertools.islice(listing, _FEW_ENTRIES)) < _FEW_ENTRIES
    except OSError:
        return True
    finally:
        os.close(fd)


class _ItemRemoval:
    """The removal of one item in rounds: a round submits the folders that are in the item at its start.

    ``_pending`` counts the tasks of a round, including the round itself.  The task that ends last starts the
    next round, or finishes the item.
    """

    def __init__(self, pool: DeletionPool, stop: StopFlag, trash: Trash, item: str) -> None:
        self.future: Future[RemovalResult] = Future()
        self._pool = pool
        self._stop = stop
        self._trash = trash
        self._item = item
        self._lock = threading.Lock()
        self._stats = RemovalStats()
        self._pending = 0
        self._removed_before = -1
        self._needs_round = False
        self._failed: set[str] = set()
        self._labels: dict[str, str] = {}
        self._sharded: set[str] = set()
        self._fd = -1
        self._started = monotonic_seconds()

    def start(self) -> None:
        try:
            self._fd = os.open(self._item, FOLDER_FLAGS, dir_fd=self._trash.fd)
        except FileNotFoundError:
            self._finish(complete=True)
        except OSError as error:
            self._stats.fail("", error)
            self._finish(complete=False)
        else:
            self._run_round()

    def _run_round(self) -> None:
        """Remove the files of the item, and submit its folders."""
        with self._lock:
            self._pending += 1
            self._needs_round = False
        with self._task_stats() as stats, os.scandir(self._fd) as listing:
            for entry in listing:
                if self._stop.is_set():
                    break
                if entry.name in self._failed:
                    continue
                if not entry.is_dir(follow_symlinks=False):
                    # A file with the prefix is removed by the task that moved it here.
                    if not entry.name.startswith(self._pool.controls.in_progress_prefix):
                        unlink_entry(self._fd, entry.name, entry.name, stats, self._pool.controls)
                    continue
                label = self._labels.pop(entry.name, entry.name)
                if not self._submit(entry.name, label):
                    self._empty(entry.name, label, stats)  # the queue is full: empty it in this thread

    def _submit(self, name: str, label: str, shard: Shard | None = None) -> bool:
        """Submit the task of a folder; if the queue is full, return False and leave it for a later round."""
        with self._lock:
            self._pending += 1
        if self._pool.try_submit(lambda: self._run_task(name, label, shard)):
            return True
        with self._lock:
            self._pending -= 1  # never the last one: the caller's task is pending
            if len(self._labels) < QUEUE_LIMIT:
                self._labels[name] = label
            self._needs_round = True
        return False

    def _run_task(self, name: str, label: str, shard: Shard | None) -> None:
        self._pool.task_started()
        with self._task_stats() as stats:
            self._empty(name, label, stats, shard)

    def _empty(self, name: str, label: str, stats: RemovalStats, shard: Shard | None = None) -> None:
        if shard is None and self._is_wide(name):
            shard = Shard(0, _SHARDS)
            for number in range(1, _SHARDS):
                self._submit(name, label, Shard(number, _SHARDS))
        task = FolderTask(name, label, self._trash.root.device, shard)
        removed = self._pool.empty_folder(self._trash, self._item, self._fd, task, self._submit)
        stats.add(removed)
        if removed.error_count:
            with self._lock:
                self._failed.add(name)

    def _is_wide(self, name: str) -> bool:
        """Return whether several workers should share a folder.

        That is true only once: removing entries does not reduce a folder's own size.  The next round removes
        the rest.
        """
        try:
            status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:  # the task that empties it reports the error
            return False
        if not stat.S_ISDIR(status.st_mode) or status.st_size < WIDE_BYTES:
            return False
        with self._lock:
            is_first = name not in self._sharded
            self._sharded.add(name)
            self._needs_round = self._needs_round or is_first
        return is_first

    @contextmanager
    def _task_stats(self) -> Iterator[RemovalStats]:
        """Count what the body removes; after the last task of a round, finish the round."""
        stats = RemovalStats()
        try:
            yield stats
        except OSError as error:
            stats.fail("", error)
        except BaseException as error:  # a programming error: the waiting thread must receive it
            stats.fail("", OSError(errno.EIO, repr(error)))
            log.exception("A deletion task failed")
        self._pool.count(stats)
        with self._lock:
            self._stats.add(stats)
            self._pending -= 1
            is_last = self._pending == 0
        if is_last:
            self._finish_round()

    def _finish_round(self) -> None:
        # The error of one path does not affect its siblings, including those that still wait on the disk.
        failed = self._stats.error_count and (not self._needs_round or len(self._failed) > _MAX_FAILED)
        if self._stop.is_set() or failed:
            self._finish(complete=False)
            return
        try:
            os.rmdir(self._item, dir_fd=self._trash.fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            # Folders did not fit into the queue, or reading missed entries: repeat while that makes progress.
            removed = self._stats.files + self._stats.folders
            has_progress = self._needs_round or removed > self._removed_before
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST} and has_progress:
                self._removed_before = removed
                self._pool.submit(self._run_round)
                return
            self._stats.fail("", error)
            self._finish(complete=False)
            return
        self._finish(complete=True)

    def _finish(self, *, complete: bool) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        stats = self._stats
        log.debug(
            "%s trash item %s: %d files, %d folders, %d errors in %.1f ms",
            "Emptied" if complete else "Did not empty",
            printable(self._item),
            stats.files,
            stats.folders,
            stats.error_count,
            (monotonic_seconds() - self._started) * 1000,
        )
        self.future.set_result(_result(stats, complete=complete))
