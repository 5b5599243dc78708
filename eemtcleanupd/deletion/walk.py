"""Reading a live tree: by descriptors, never through a link, never onto another filesystem.

Whoever owns the tree may change it meanwhile, so nothing that is seen here is relied on for deleting.
Depth is bounded by memory alone: only the deepest few folders stay open, those above are reopened through
``..`` and must be the ones they were.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from eemtcleanupd.deletion.roots import FOLDER_FLAGS, Root
from eemtcleanupd.stop import StopFlag

_OPEN_FOLDERS = 64
_BLOCK_BYTES = 512  # the unit of st_blocks (stat(2))


@dataclass(frozen=True, slots=True)
class Measured:
    """Allocated bytes of a tree, its files, the newest modification (seconds of the epoch), and errors."""

    bytes: int = 0
    files: int = 0
    newest_mtime: float = 0.0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of a live tree while its entries are read; ``fd`` is open only then."""

    fd: int
    path: str
    device: int
    inode: int


@dataclass(slots=True)
class _Level:
    """A folder on the way down: open with its listing, or closed with the names still to be entered."""

    path: str
    device: int
    inode: int
    fd: int
    pending: Iterator[str]


def walk(
    root: Root,
    name: str,
    visit: Callable[[Folder, os.DirEntry[str]], None],
    *,
    stop: StopFlag | None = None,
    enter: Callable[[Folder], None] | None = None,
) -> int:
    """Visit every entry below a folder of a root.

    Args:
        root: the root.
        name: one of its entries; when it is no folder, nothing is visited.
        visit: is called for each entry that is no folder, while its folder is open.
        stop: ends the walk early.
        enter: is called for each folder, the first one included, when it is open.

    Returns:
        How many folders could not be read, or not whole; the walk goes on without them.
    """
    return _Walk(root, visit, stop or StopFlag(), enter).run(name)


class _Walk:
    def __init__(
        self,
        root: Root,
        visit: Callable[[Folder, os.DirEntry[str]], None],
        stop: StopFlag,
        enter: Callable[[Folder], None] | None,
    ) -> None:
        self._root = root
        self._visit = visit
        self._stop = stop
        self._enter = enter
        self._levels: list[_Level] = []
        self._errors = 0

    def run(self, name: str) -> int:
        levels = self._levels
        try:
            self._descend(self._root.fd, name, name)
            while levels:
                level = levels[-1]
                child = None if self._stop.is_set() else next(level.pending, None)
                if child is not None:
                    self._descend(level.fd, child, f"{level.path}/{child}")
                    continue
                # The folder above may have been closed on the way down; its way back is this one's "..".
                if len(levels) > 1 and levels[-2].fd < 0 and not _reopen(levels[-2], level.fd):
                    self._errors += 1
                    break  # the tree was moved under our feet
                os.close(levels.pop().fd)
        finally:
            for level in levels:
                if level.fd >= 0:
                    os.close(level.fd)
        return self._errors

    def _descend(self, parent_fd: int, name: str, path: str) -> None:
        try:
            fd = os.open(name, FOLDER_FLAGS, dir_fd=parent_fd)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                self._errors += 1
            return
        status = os.fstat(fd)
        if status.st_dev != self._root.device:
            os.close(fd)
            return
        children: list[str] = []
        level = _Level(path, status.st_dev, status.st_ino, fd, iter(children))
        self._levels.append(level)
        if len(self._levels) > _OPEN_FOLDERS:
            above = self._levels[-_OPEN_FOLDERS - 1]
            if above.fd >= 0:
                os.close(above.fd)
                above.fd = -1
        try:
            self._read(Folder(fd, path, status.st_dev, status.st_ino), children)
        except OSError:
            self._errors += 1

    def _read(self, folder: Folder, children: list[str]) -> None:
        if self._enter is not None:
            self._enter(folder)
        with os.scandir(folder.fd) as listing:
            for entry in listing:
                if self._stop.is_set():
                    return
                if entry.is_dir(follow_symlinks=False):
                    children.append(entry.name)
                else:
                    self._visit(folder, entry)


def _reopen(level: _Level, child_fd: int) -> bool:
    """Reopen a folder through its child's ``..``; False when that is another folder by now."""
    try:
        fd = os.open("..", FOLDER_FLAGS, dir_fd=child_fd)
    except OSError:
        return False
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) != (level.device, level.inode):
        os.close(fd)
        return False
    level.fd = fd
    return True


def measure(root: Root, name: str, stop: StopFlag) -> Measured:
    """Return what an entry of a root and everything below it occupies.

    Each link of a file counts its share of the file's blocks, so that all links together count once and
    memory does not grow with them.  What is missing counts nothing.
    """
    try:
        status = os.stat(name, dir_fd=root.fd, follow_symlinks=False)
    except FileNotFoundError:
        return Measured()
    except OSError:
        return Measured(errors=1)
    if not stat.S_ISDIR(status.st_mode):
        return Measured(_share(status), 1, status.st_mtime)
    total, files, newest, failed = 0, 0, 0.0, 0

    def visit(_folder: Folder, entry: os.DirEntry[str]) -> None:
        nonlocal total, files, newest, failed
        try:
            seen = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return
        except OSError:
            failed += 1
            return
        total += _share(seen)
        files += 1
        newest = max(newest, seen.st_mtime)

    def enter(folder: Folder) -> None:
        nonlocal total, newest
        seen = os.fstat(folder.fd)
        total += seen.st_blocks * _BLOCK_BYTES
        newest = max(newest, seen.st_mtime)

    failed += walk(root, name, visit, stop=stop, enter=enter)
    return Measured(total, files, newest, failed)


def _share(status: os.stat_result) -> int:
    return status.st_blocks * _BLOCK_BYTES // max(1, status.st_nlink)
