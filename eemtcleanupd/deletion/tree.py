"""Removal of one folder of an item, by descriptors and without recursion.

Each child folder is renamed up into the item under a fresh name and becomes a task of its own.  This has four
effects.  Depth costs nothing: no recursion, no PATH_MAX, two descriptors.  Tasks are independent and can run
twice.  One job's tree is deleted in parallel, like the trees of many jobs.  And the kernel refuses to rename
a mount point (EBUSY, rename(2)), so another filesystem or a bind mount is never entered.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.deletion.rate_limit import DeletionControls
from eemtcleanupd.deletion.truncate import BLOCK_BYTES, truncate_gradually
from eemtcleanupd.formatting import printable, shortened

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How every folder below a root is opened: never through a symlink (open(2))."""
BATCH_ENTRIES = 100_000
"""How many entries are sorted at a time; that takes about 25 MB of memory."""
STRIPE_INODES = 1024
"""Inodes that are neighbours on the disk (64 blocks of an ext4 inode table) belong to one shard."""

_MAX_NAMED_ERRORS = 20
# A process that still has the folder open can keep creating files; it must not block a run forever.
_MAX_READINGS = 1000
# Smaller files are never truncated gradually, which saves a check for each of them.
_MIN_CHUNK_BYTES = 1 << 20
_REPORT_SECONDS = 0.3
# Errors of an entry that is not (or no longer) a folder.
_NO_FOLDER = {errno.ENOTDIR, errno.ELOOP}

_numbers = itertools.count()
# Fresh names must differ from those of other processes and earlier runs: a rename can replace a folder.
_token = os.urandom(8).hex()


def _reset_token() -> None:
    global _token  # noqa: PLW0603  (a forked helper needs its own)
    _token = os.urandom(8).hex()


os.register_at_fork(after_in_child=_reset_token)


class Shard(NamedTuple):
    """A part of the entries of a folder: number ``number`` (from 0) of ``of`` parts."""

    number: int
    of: int


@dataclass(frozen=True, slots=True)
class FolderTask:
    """A folder of an item to empty.

    Attributes:
        name: the folder's name in the item.
        label: the folder's original path, for messages.
        device: the root's device; a folder on another device is not entered.
        shard: the part of the entries to remove, when several workers share the folder; the folder itself
            stays.
    """

    name: str
    label: str
    device: int
    shard: Shard | None = None


OnProgress = Callable[[int], object]
"""Receives the bytes that a task has freed so far, while it continues."""
OnSubfolder = Callable[[str, str], object]
"""Receives the new name and the label of each child folder that was moved up into the item."""


Failure = tuple[str, str, str]
"""A path that was not removed: its original path in the item (empty for the item itself), where it is in the
item now, and the reason."""


@dataclass(slots=True)
class RemovalStats:
    """What was removed; ``errors`` names the first failed paths, ``error_count`` counts all of them.

    ``bytes_reported`` are those of ``bytes_freed`` that the pool counted while the task went on.
    """

    bytes_freed: int = 0
    bytes_reported: int = 0
    files: int = 0
    folders: int = 0
    errors: list[Failure] = field(default_factory=list)
    error_count: int = 0

    def add(self, other: RemovalStats) -> None:
        """Add what another task removed."""
        self.bytes_freed += other.bytes_freed
        self.bytes_reported += other.bytes_reported
        self.files += other.files
        self.folders += other.folders
        self.error_count += other.error_count
        self.errors += other.errors[: _MAX_NAMED_ERRORS - len(self.errors)]

    def fail(self, label: str, error: OSError, place: str | None = None) -> None:
        """Count a path that could not be removed, and where it is in the item now (default: its label)."""
        self.error_count += 1
        if len(self.errors) < _MAX_NAMED_ERRORS:
            now = shortened(printable(label if place is None else place))
            self.errors.append((printable(label), now, str(error.strerror or error)))


class ProgressReports:
    """Calls a function with the bytes that a task has freed, once in a while."""

    def __init__(self, report: OnProgress) -> None:
        self._report = report
        self._due = monotonic_seconds() + _REPORT_SECONDS

    def check(self, stats: RemovalStats) -> None:
        """Report the bytes if the last report is old."""
        now = monotonic_seconds()
        if now >= self._due:
            self._due = now + _REPORT_SECONDS
            self._report(stats.bytes_freed)


def _ignore(_bytes_freed: int) -> None:
    """Ignore a report."""


def empty_folder(
    item_fd: int,
    task: FolderTask,
    controls: DeletionControls,
    on_subfolder: OnSubfolder,
    on_progress: OnProgress = _ignore,
) -> RemovalStats:
    """Remove a folder of an item and its content, or a shard of its entries.

    Args:
        item_fd: the item.
        task: the folder.
        controls: checked between two entries; shared by all threads and processes that remove on this
            filesystem.
        on_subfolder: called for each child folder.
        on_progress: called once in a while with the bytes freed so far.

    Returns:
        What was removed.  An error affects only its own path; the siblings are still removed.
    """
    stats, reports = RemovalStats(), ProgressReports(on_progress)

    def read(fd: int) -> int:
        return _empty_once(fd, item_fd, task, stats, reports, controls=controls, on_subfolder=on_subfolder)

    _remove_folder(item_fd, task, stats, controls, read)
    return stats


def remove_small(
    group_fd: int, name: str, label: str, device: int, controls: DeletionControls
) -> RemovalStats:
    """Remove a file, or a folder that is expected to be small, in this thread.

    Subfolders are moved up into the folder itself, so nothing of it is left when the folder is gone.

    Args:
        group_fd: the folder that contains it.
        name: its name.
        label: its original path, for messages.
        device: the root's device.
        controls: as for :func:`empty_folder`.

    Returns:
        What was removed.  Something is left only after an error or a stop; then the entry is too.
    """
    task = FolderTask(name, label, device)
    stats, reports = RemovalStats(), ProgressReports(_ignore)

    def read(fd: int) -> int:
        subfolders: list[tuple[str, str]] = []

        def add(*subfolder: str) -> None:
            subfolders.append(subfolder)  # type: ignore[arg-type]

        removed = _empty_once(fd, fd, task, stats, reports, controls=controls, on_subfolder=add)
        while subfolders and not controls.stop.is_set():
            below = empty_folder(fd, FolderTask(*subfolders.pop(), device), controls, add)
            below.errors = [(child, f"{name}/{place}", reason) for child, place, reason in below.errors]
            stats.add(below)
        return removed

    _remove_folder(group_fd, task, stats, controls, read)
    return stats


def _remove_folder(
    parent_fd: int,
    task: FolderTask,
    stats: RemovalStats,
    controls: DeletionControls,
    read: Callable[[int], int],
) -> None:
    """Open a folder, empty it and remove it.

    Args:
        parent_fd: the folder that contains it.
        task: the folder.
        stats: counts what is removed.
        controls: as for :func:`empty_folder`.
        read: empties the open folder as far as one reading of it does; returns how many entries it removed.
    """
    name, label = task.name, task.label
    try:
        fd = _open_folder(parent_fd, name)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno in _NO_FOLDER:  # replaced by a link or a file: remove that without entering it
            unlink_entry(parent_fd, name, label, stats, controls)
        else:
            stats.fail(label, error, name)
        return
    try:
        status = os.fstat(fd)
        if status.st_dev != task.device:
            stats.fail(label, OSError(errno.EXDEV, "is on another filesystem"), name)
            return
        if task.shard is not None:
            read(fd)
            return
        # Reading while removing can miss entries (readdir(3)), so repeat as long as that makes progress.
        for reading in itertools.count(1):
            removed = read(fd)
            size = status.st_blocks * BLOCK_BYTES
            if stats.error_count or controls.stop.is_set() or not controls.acquire(size):
                return
            try:
                os.rmdir(name, dir_fd=parent_fd)
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno in {errno.ENOTEMPTY, errno.EEXIST} and removed and reading < _MAX_READINGS:
                    continue
                stats.fail(label, error, name)
                return
            stats.folders += 1
            stats.bytes_freed += size
            return
    finally:
        os.close(fd)


def _empty_once(
    fd: int,
    item_fd: int,
    task: FolderTask,
    stats: RemovalStats,
    reports: ProgressReports,
    *,
    controls: DeletionControls,
    on_subfolder: OnSubfolder,
) -> int:
    """Remove the entries that one reading of a folder yields; return how many were removed or moved up."""
    removed = 0
    is_stopped, acquire, unlink = controls.stop.is_set, controls.acquire, os.unlink
    with os.scandir(fd) as listing:
        for entry in _by_inode(listing, task.shard):
            if is_stopped():
                break
            reports.check(stats)
            try:
                if entry.is_dir(follow_symlinks=False):
                    fresh = f"{_token}-{next(_numbers)}"
                    _move_up(fd, entry.name, item_fd, fresh)
                    on_subfolder(fresh, _child_label(task.label, entry.name))
                else:
                    status = entry.stat(follow_symlinks=False)
                    size = status.st_blocks * BLOCK_BYTES
                    is_gradual = size > _MIN_CHUNK_BYTES and 0 < controls.chunk_bytes < size
                    is_gradual = is_gradual and status.st_nlink == 1
                    if not controls.exclusive and (is_gradual or status.st_nlink > 1):
                        _move_up(fd, entry.name, item_fd, f"{_token}-{next(_numbers)}")
                    elif is_gradual:
                        # In the item, no other user can reach the file while it is truncated.
                        fresh = f"{controls.in_progress_prefix}{_token}-{next(_numbers)}"
                        _move_up(fd, entry.name, item_fd, fresh)
                        unlink_entry(item_fd, fresh, _child_label(task.label, entry.name), stats, controls)
                    elif not acquire(size // status.st_nlink):
                        break
                    elif status.st_nlink == 1:
                        unlink(entry.name, dir_fd=fd)
                        stats.bytes_freed += size
                        stats.files += 1
                    else:
                        _unlink_hard_link(fd, entry.name, status.st_ino, stats, controls)
            except FileNotFoundError:
                pass
            except OSError as error:
                stats.fail(_child_label(task.label, entry.name), error, f"{task.name}/{entry.name}")
                continue
            removed += 1
    return removed


def _by_inode(listing: Iterable[os.DirEntry[str]], shard: Shard | None) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a shard in batches that are sorted by inode.

    A folder lists its entries in a nearly random order.  Entries with neighbouring inodes change the same
    disk blocks; without sorting, a folder of a million files writes each block many times.
    """
    entries, batch_entries = iter(listing), BATCH_ENTRIES
    if shard is not None:
        entries = (entry for entry in listing if entry.inode() // STRIPE_INODES % shard.of == shard.number)
        batch_entries = max(1, BATCH_ENTRIES // shard.of)  # all shards together use the memory of one batch
    while batch := list(itertools.islice(entries, batch_entries)):
        batch.sort(key=os.DirEntry.inode, reverse=True)
        while batch:
            yield batch.pop()  # an entry caches its status; pop frees it after use


def _child_label(label: str, name: str) -> str:
    """Return the label of an entry, shortened: full labels would need memory quadratic in the depth."""
    return shortened(f"{label}/{name}", 400)


def _unlink_hard_link(
    fd: int, name: str, inode: int, stats: RemovalStats, controls: DeletionControls
) -> None:
    """Remove one of several links of an inode; the removal of the last link frees its space."""
    with controls.link_lock(inode):  # of two concurrent removals, one must see that it removes the last link
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        os.unlink(name, dir_fd=fd)
    stats.files += 1
    if status.st_nlink == 1:
        stats.bytes_freed += status.st_blocks * BLOCK_BYTES


def unlink_entry(
    item_fd: int, name: str, label: str, stats: RemovalStats, controls: DeletionControls
) -> None:
    """Remove an entry of an item that is not a folder; truncate a big file gradually if configured."""
    try:
        status = os.stat(name, dir_fd=item_fd, follow_symlinks=False)
        size = status.st_blocks * BLOCK_BYTES
        if status.st_nlink == 1 and 0 < controls.chunk_bytes < size:
            freed = truncate_gradually(item_fd, name, controls)
            stats.bytes_freed += freed
            size -= freed
        if controls.stop.is_set() or not controls.acquire(size // max(1, status.st_nlink)):
            return
        if status.st_nlink > 1:
            _unlink_hard_link(item_fd, name, status.st_ino, stats, controls)
            return
        os.unlink(name, dir_fd=item_fd)
        stats.bytes_freed += size
        stats.files += 1
    except FileNotFoundError:
        pass
    except OSError as error:
        stats.fail(label, error, name)


def _open_folder(parent_fd: int, name: str) -> int:
    """Open a folder; grant access first if this user owns it and its mode denies access."""
    try:
        fd = os.open(name, FOLDER_FLAGS, dir_fd=parent_fd)
    except PermissionError:
        _grant_access(parent_fd, name)
        fd = os.open(name, FOLDER_FLAGS, dir_fd=parent_fd)
    status = os.fstat(fd)
    if status.st_mode & stat.S_IRWXU != stat.S_IRWXU and status.st_uid == os.geteuid():
        # An immutable folder refuses this; then each of its entries reports an error.
        with contextlib.suppress(OSError):
            os.fchmod(fd, stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
    return fd


def _grant_access(parent_fd: int, name: str) -> None:
    """Grant this user all rights on a folder that the user owns but cannot open."""
    with _pinned(parent_fd, name) as (path, status):
        if stat.S_ISDIR(status.st_mode):
            os.chmod(path, stat.S_IMODE(status.st_mode) | stat.S_IRWXU)  # noqa: PTH101


def _hide(parent_fd: int, name: str) -> None:
    """Leave rights on a folder or file to its owner only, as far as this process can."""
    with contextlib.suppress(OSError), _pinned(parent_fd, name) as (path, status):
        if stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1):
            os.chmod(path, status.st_mode & stat.S_IRWXU)  # noqa: PTH101


@contextlib.contextmanager
def _pinned(parent_fd: int, name: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield a path of an entry for chmod(2), which follows links, and its status.

    The entry is opened with O_PATH, which needs no right on it.
    """
    pin = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        yield f"/proc/self/fd/{pin}", os.fstat(pin)  # no Path: helper processes do not import pathlib
    finally:
        os.close(pin)


def _move_up(fd: int, name: str, item_fd: int, fresh: str) -> None:
    """Rename an entry up into the item; for a folder this writes its ``..``, which requires access to it.

    The owner of the store can enter the item, but perhaps not the folder of another user where the entry was.
    """
    if os.geteuid() not in {0, os.fstat(fd).st_uid}:
        _hide(fd, name)
    try:
        os.rename(name, fresh, src_dir_fd=fd, dst_dir_fd=item_fd)
    except PermissionError:
        _grant_access(fd, name)
        os.rename(name, fresh, src_dir_fd=fd, dst_dir_fd=item_fd)
