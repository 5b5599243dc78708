"""Removal of one folder of a doomed item, by descriptors and without recursion.

A child folder is renamed up into the item under a fresh name and becomes a task of its own.  So depth costs
nothing (no recursion, no PATH_MAX, two descriptors), tasks are independent and may be done twice, one
job's tree is deleted in parallel like many jobs', and the kernel refuses to move a mount point (EBUSY,
rename(2)), so that another filesystem or a bind mount is never entered.
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

from eemtcleanupd.deletion.rate_limit import DeletionControls
from eemtcleanupd.deletion.truncate import truncate_gradually
from eemtcleanupd.formatting import printable, shortened

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How every folder below a root is opened: never through a symlink (open(2))."""

_ERRORS_NAMED = 20
# How many entries are put in order at a time: some 25 MB of memory.
_BATCH = 100_000
# Inodes that stand together on the disk (64 blocks of ext4's table) are one share's.
_STRIPE = 1024
# A process that is still in the folder may go on making files; it must not keep a run for ever.
_READINGS = 1000
# Smaller ones are not worth a look whether they should go in steps.
MIN_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 512  # the unit of st_blocks, whatever the filesystem's (stat(2))
# Errors that say that an entry is not (or no longer) a folder that may be entered.
_NO_FOLDER = {errno.ENOTDIR, errno.ELOOP}

_numbers = itertools.count()
# No name may be another process's, or one that an interrupted run left: a rename may replace a folder.
_token = os.urandom(8).hex()


def _begin_names() -> None:
    global _token  # noqa: PLW0603  (a forked helper needs its own)
    _token = os.urandom(8).hex()


os.register_at_fork(after_in_child=_begin_names)


class Shard(NamedTuple):
    """The entries of a folder that one of ``of`` takes, numbered from 0."""

    number: int
    of: int


@dataclass(slots=True)
class RemovalStats:
    """What was removed; ``errors`` names the first few paths that could not be, ``error_count`` all."""

    bytes_freed: int = 0
    files: int = 0
    folders: int = 0
    errors: list[str] = field(default_factory=list)
    error_count: int = 0

    def add(self, other: RemovalStats) -> None:
        """Count what another task removed."""
        self.bytes_freed += other.bytes_freed
        self.files += other.files
        self.folders += other.folders
        self.error_count += other.error_count
        self.errors += other.errors[: _ERRORS_NAMED - len(self.errors)]

    def fail(self, path: str, error: OSError) -> None:
        """Count a path that could not be removed."""
        self.error_count += 1
        if len(self.errors) < _ERRORS_NAMED:
            self.errors.append(f"{printable(path)}: {error.strerror}")


def empty_folder(
    item_fd: int,
    name: str,
    *,
    label: str,
    device: int,
    controls: DeletionControls,
    found: Callable[[str, str], object],
    share: Shard | None = None,
) -> RemovalStats:
    """Remove a folder of an item with everything in it, or a share of its entries.

    Args:
        item_fd: the item.
        name: the folder's name in the item.
        label: what the folder was called before it was moved up, for messages.
        device: the root's device; a folder on another one is not entered.
        controls: looked at between two entries; shared by all who remove on this filesystem.
        found: is handed each child folder, moved up into the item: its new name and its label.
        share: which of several that remove its entries at the same time this is; the folder itself stays.

    Returns:
        What was removed.  Errors are the path's alone: its siblings go on.
    """
    tally = RemovalStats()
    try:
        fd = _open_folder(item_fd, name)
    except FileNotFoundError:
        return tally
    except OSError as error:
        if error.errno in _NO_FOLDER:  # swapped for a link or a file: that itself goes, unentered
            unlink_entry(item_fd, name, label, tally, controls)
        else:
            tally.fail(label, error)
        return tally
    try:
        status = os.fstat(fd)
        if status.st_dev != device:
            tally.fail(label, OSError(errno.EXDEV, "is on another filesystem"))
            return tally
        if share is not None:
            _empty_once(fd, item_fd, label=label, tally=tally, controls=controls, found=found, share=share)
            return tally
        # Reading while removing may leave entries out (readdir(3)), so: again, while that helps.
        for reading in itertools.count(1):
            removed = _empty_once(fd, item_fd, label=label, tally=tally, controls=controls, found=found)
            size = status.st_blocks * _BLOCK_BYTES
            if tally.error_count or controls.stop.is_set() or not controls.acquire(size):
                return tally
            try:
                os.rmdir(name, dir_fd=item_fd)
            except FileNotFoundError:
                return tally
            except OSError as error:
                if error.errno in {errno.ENOTEMPTY, errno.EEXIST} and removed and reading < _READINGS:
                    continue
                tally.fail(label, error)
                return tally
            tally.folders += 1
            tally.bytes_freed += size
            return tally
    finally:
        os.close(fd)
    return tally


def _empty_once(
    fd: int,
    item_fd: int,
    *,
    label: str,
    tally: RemovalStats,
    controls: DeletionControls,
    found: Callable[[str, str], object],
    share: Shard | None = None,
) -> int:
    """Remove what one reading of a folder yields; returns how many entries went or moved up."""
    went = 0
    is_stopped, allows, unlink = controls.stop.is_set, controls.acquire, os.unlink
    with os.scandir(fd) as listing:
        for entry in _by_inode(listing, share):
            if is_stopped():
                break
            try:
                if entry.is_dir(follow_symlinks=False):
                    fresh = f"{_token}-{next(_numbers)}"
                    _move_up(fd, entry.name, item_fd, fresh)
                    found(fresh, _below(label, entry.name))
                else:
                    status = entry.stat(follow_symlinks=False)
                    size = status.st_blocks * _BLOCK_BYTES
                    in_steps = size > MIN_CHUNK_BYTES and 0 < controls.chunk_bytes < size
                    if not controls.one_hand and (in_steps or status.st_nlink > 1):
                        _move_up(fd, entry.name, item_fd, f"{_token}-{next(_numbers)}")
                    elif in_steps:
                        # In the item no one else can reach it while it is being emptied.
                        fresh = f"{controls.mark}{_token}-{next(_numbers)}"
                        _move_up(fd, entry.name, item_fd, fresh)
                        unlink_entry(item_fd, fresh, _below(label, entry.name), tally, controls)
                    elif not allows(size // status.st_nlink):
                        break
                    elif status.st_nlink == 1:
                        unlink(entry.name, dir_fd=fd)
                        tally.bytes_freed += size
                        tally.files += 1
                    else:
                        _unlink_one_of_many(fd, entry.name, status.st_ino, tally, controls)
            except FileNotFoundError:
                pass
            except OSError as error:
                tally.fail(_below(label, entry.name), error)
                continue
            went += 1
    return went


def _by_inode(listing: Iterable[os.DirEntry[str]], share: Shard | None) -> Iterator[os.DirEntry[str]]:
    """Return a share of the entries in the order of their inodes, many at a time.

    A folder lists them in an order that is as good as random; those of neighbouring inodes change the same
    blocks on the disk, which one folder of a million files otherwise writes again and again.
    """
    entries, at_a_time = iter(listing), _BATCH
    if share is not None:
        entries = (entry for entry in listing if entry.inode() // _STRIPE % share.of == share.number)
        at_a_time = max(1, _BATCH // share.of)  # all shares together remember no more than one would
    while batch := list(itertools.islice(entries, at_a_time)):
        batch.sort(key=os.DirEntry.inode, reverse=True)
        while batch:
            yield batch.pop()  # it keeps its status, so it is to go when it is done with


def _below(label: str, name: str) -> str:
    """Return the label of an entry; a deep one is cut, or labels alone would cost the square of the depth."""
    return shortened(f"{label}/{name}", 400)


def _unlink_one_of_many(
    fd: int, name: str, inode: int, tally: RemovalStats, controls: DeletionControls
) -> None:
    """Remove one link of an inode that has several: its space is free when the last one goes."""
    with controls.link_lock(inode):  # of two who do so at once, one must see that it is the last
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        os.unlink(name, dir_fd=fd)
    tally.files += 1
    if status.st_nlink == 1:
        tally.bytes_freed += status.st_blocks * _BLOCK_BYTES


def unlink_entry(
    item_fd: int, name: str, label: str, tally: RemovalStats, controls: DeletionControls
) -> None:
    """Remove an entry of an item that is no folder; a big file in steps, where that is wanted."""
    try:
        status = os.stat(name, dir_fd=item_fd, follow_symlinks=False)
        size = status.st_blocks * _BLOCK_BYTES
        if status.st_nlink == 1 and 0 < controls.chunk_bytes < size:
            freed = truncate_gradually(item_fd, name, controls)
            tally.bytes_freed += freed
            size -= freed
        if controls.stop.is_set() or not controls.acquire(size // max(1, status.st_nlink)):
            return
        if status.st_nlink > 1:
            _unlink_one_of_many(item_fd, name, status.st_ino, tally, controls)
            return
        os.unlink(name, dir_fd=item_fd)
        tally.bytes_freed += size
        tally.files += 1
    except FileNotFoundError:
        pass
    except OSError as error:
        tally.fail(label, error)


def _open_folder(parent_fd: int, name: str) -> int:
    """Open a folder; one of ours that forbids it to ourselves is allowed first."""
    try:
        fd = os.open(name, FOLDER_FLAGS, dir_fd=parent_fd)
    except PermissionError:
        _allow(parent_fd, name)
        fd = os.open(name, FOLDER_FLAGS, dir_fd=parent_fd)
    status = os.fstat(fd)
    if status.st_mode & stat.S_IRWXU != stat.S_IRWXU and status.st_uid == os.geteuid():
        # Refused on an immutable folder; then its entries tell that, each by itself.
        with contextlib.suppress(OSError):
            os.fchmod(fd, stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
    return fd


def _allow(parent_fd: int, name: str) -> None:
    """Give ourselves all rights on a folder that we own and cannot open.

    chmod(2) follows links, so the entry is pinned first (O_PATH, which needs no right on it) and changed
    through its descriptor.
    """
    pin = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        status = os.fstat(pin)
        if stat.S_ISDIR(status.st_mode):
            # No Path: a helper that starts need not import it.
            os.chmod(f"/proc/self/fd/{pin}", stat.S_IMODE(status.st_mode) | stat.S_IRWXU)  # noqa: PTH101
    finally:
        os.close(pin)


def _move_up(fd: int, name: str, item_fd: int, fresh: str) -> None:
    """Rename a child folder up into the item; that writes its ``..``, which needs a right on it."""
    try:
        os.rename(name, fresh, src_dir_fd=fd, dst_dir_fd=item_fd)
    except PermissionError:
        _allow(fd, name)
        os.rename(name, fresh, src_dir_fd=fd, dst_dir_fd=item_fd)
