"""Reading a live tree: by descriptors, never through a link, never onto another filesystem.

Whoever owns the tree may change it meanwhile, so nothing that is seen here is relied on for deleting.
Depth is bounded by memory alone: only the deepest few folders stay open, those above are reopened through
``..`` and must be the ones they were.  Width costs nothing: an open folder is read as the walk goes on.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.tree import FOLDER_FLAGS

_OPEN_FOLDERS = 32  # two descriptors each: the folder's and its listing's
_BLOCK_BYTES = 512  # the unit of st_blocks (stat(2))
# Errors that say that an entry is not (or no longer) a folder that may be entered.
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


@dataclass(frozen=True, slots=True)
class Measured:
    """Allocated bytes of a tree, its files, the newest modification (seconds of the epoch), and errors."""

    bytes: int = 0
    files: int = 0
    newest_mtime: float = 0.0
    errors: int = 0


class Listing(Protocol):
    """What ``os.scandir`` returns."""

    def __next__(self) -> os.DirEntry[str]: ...

    def __iter__(self) -> Iterator[os.DirEntry[str]]: ...

    def close(self) -> None:
        """Close its descriptor."""


@dataclass(slots=True, eq=False)
class Folder:
    """A folder on the way down; ``fd`` is open while the folder is entered and its entries are visited.

    ``listing`` and ``unentered`` (folders read but not entered yet) are the walk's own.
    """

    name: str
    above: Folder | None
    fd: int
    status: os.stat_result
    listing: Listing | None = None
    unentered: list[str] = field(default_factory=list)

    @property
    def parts(self) -> list[str]:
        """The names on the way here, from the entry of the root down.

        They are put together only when asked for: kept with each folder, they would cost the square of
        the depth.
        """
        names = []
        folder: Folder | None = self
        while folder is not None:
            names.append(folder.name)
            folder = folder.above
        return names[::-1]

    @property
    def path(self) -> str:
        """The path from the root."""
        return "/".join(self.parts)


Visit = Callable[[Folder, os.DirEntry[str]], None]


def walk(
    root: Root,
    name: str,
    visit: Visit,
    *,
    stop: StopFlag | None = None,
    enter: Callable[[Folder], None] | None = None,
) -> int:
    """Visit every entry below a folder of a root.

    Args:
        root: the root.
        name: one of its entries; when it is no folder, nothing is visited.
        visit: is called for each entry that is no folder, while its folder is open; what it raises ends
            the walk.
        stop: ends the walk early.
        enter: is called for each folder, the first one included, when it is open.

    Returns:
        How many folders could not be read, or not whole; the walk goes on without them.
    """
    return _Walk(root, visit, stop or StopFlag(), enter).run(name)


class _Walk:
    def __init__(
        self, root: Root, visit: Visit, stop: StopFlag, enter: Callable[[Folder], None] | None
    ) -> None:
        self._root = root
        self._visit = visit
        self._stop = stop
        self._enter = enter
        self._folders: list[Folder] = []
        self._errors = 0

    def run(self, name: str) -> int:
        folders = self._folders
        try:
            self._descend(self._root.fd, name, None)
            while folders and not self._stop.is_set():
                folder = folders[-1]
                child = self._next_child(folder)
                if child is not None:
                    self._descend(folder.fd, child, folder)
                    continue
                # The folder above may have been closed on the way down; its way back is this one's "..".
                if folder.above is not None and folder.above.fd < 0 and not _reopen(folder.above, folder.fd):
                    self._errors += 1
                    break  # the tree was moved under our feet
                _close(folders.pop())
        finally:
            for folder in folders:
                _close(folder)
        return self._errors

    def _descend(self, parent_fd: int, name: str, above: Folder | None) -> None:
        try:
            fd = os.open(name, FOLDER_FLAGS, dir_fd=parent_fd)
        except OSError as error:
            self._errors += error.errno not in _NO_FOLDER
            return
        folder = Folder(name, above, fd, os.fstat(fd))
        if folder.status.st_dev != self._root.device:
            _close(folder)
            return
        self._folders.append(folder)
        if self._enter is not None:
            self._enter(folder)
        try:
            folder.listing = os.scandir(fd)
        except OSError:
            self._errors += 1
        if len(self._folders) > _OPEN_FOLDERS:
            self._set_aside(self._folders[-_OPEN_FOLDERS - 1])

    def _set_aside(self, folder: Folder) -> None:
        """Read a folder to its end and close it, so that descriptors do not grow with the depth."""
        below = []
        while folder.listing is not None and (child := self._next_child(folder)) is not None:
            below.append(child)
        folder.unentered += below
        _close(folder)

    def _next_child(self, folder: Folder) -> str | None:
        """Visit a folder's entries up to the next one that is a folder; None when there are no more."""
        while folder.listing is not None and not self._stop.is_set():
            try:
                entry = next(folder.listing, None)
                is_folder = entry is not None and entry.is_dir(follow_symlinks=False)
            except OSError:
                self._errors += 1
                entry = None
            if entry is None:
                _close_listing(folder)
            elif is_folder:
                return entry.name
            else:
                self._visit(folder, entry)
        return folder.unentered.pop() if folder.unentered else None


def _close_listing(folder: Folder) -> None:
    if folder.listing is not None:
        folder.listing.close()
        folder.listing = None


def _close(folder: Folder) -> None:
    _close_listing(folder)
    if folder.fd >= 0:
        os.close(folder.fd)
        folder.fd = -1


def _reopen(folder: Folder, child_fd: int) -> bool:
    """Reopen a folder through its child's ``..``; False when that is another folder by now."""
    try:
        fd = os.open("..", FOLDER_FLAGS, dir_fd=child_fd)
    except OSError:
        return False
    if not os.path.samestat(os.fstat(fd), folder.status):
        os.close(fd)
        return False
    folder.fd = fd
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
        total += folder.status.st_blocks * _BLOCK_BYTES
        newest = max(newest, folder.status.st_mtime)

    failed += walk(root, name, visit, stop=stop, enter=enter)
    return Measured(total, files, newest, failed)


def _share(status: os.stat_result) -> int:
    return status.st_blocks * _BLOCK_BYTES // max(1, status.st_nlink)
