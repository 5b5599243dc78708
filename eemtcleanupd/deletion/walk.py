"""Reading a live tree by descriptors, never through a link and never on another filesystem.

The owner of the tree can change it meanwhile, so no deletion relies on what is read here.  Only memory limits
the depth.  The deepest few folders stay open; the walk reopens the others through ``..`` and checks that they
are the same folders.  Width costs nothing, because an open folder is read step by step.
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
from eemtcleanupd.deletion.truncate import BLOCK_BYTES
from eemtcleanupd.privileges import with_file_access

_MAX_OPEN_FOLDERS = 32  # each has two descriptors: the folder's and its listing's
# Errors of an entry that is not (or no longer) a folder.
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


@dataclass(frozen=True, slots=True)
class Measured:
    """Allocated bytes, number of files, last change (seconds since the epoch) and error count of a tree.

    ``changed_at`` is the newest of all ``mtime`` and ``ctime``: a copy that keeps an old ``mtime`` has a new
    ``ctime``.  ``state`` differs after any change of content, also if another file has a time in the future.
    """

    bytes: int = 0
    files: int = 0
    changed_at: float = 0.0
    errors: int = 0
    state: int = field(default=0, compare=False)


class Listing(Protocol):
    """The type that ``os.scandir`` returns."""

    def __next__(self) -> os.DirEntry[str]: ...

    def __iter__(self) -> Iterator[os.DirEntry[str]]: ...

    def close(self) -> None:
        """Close its descriptor."""


@dataclass(slots=True, eq=False)
class Folder:
    """A folder on the path of the walk; ``fd`` is open while ``enter`` and ``visit`` run for it.

    ``listing`` and ``unentered`` (subfolders that were read but not entered) belong to the walk.
    """

    name: str
    parent: Folder | None
    fd: int
    status: os.stat_result
    listing: Listing | None = None
    unentered: list[str] = field(default_factory=list)

    @property
    def parts(self) -> list[str]:
        """The path components, from the entry of the root down.

        They are computed on demand: stored with each folder, they would need memory quadratic in the depth.
        """
        names = []
        folder: Folder | None = self
        while folder is not None:
            names.append(folder.name)
            folder = folder.parent
        return names[::-1]

    @property
    def path(self) -> str:
        """The path relative to the root."""
        return "/".join(self.parts)


Visit = Callable[[Folder, os.DirEntry[str]], None]


def walk(
    root: Root,
    name: str,
    visit: Visit | None,
    *,
    stop: StopFlag | None = None,
    enter: Callable[[Folder], None] | None = None,
    foreign: Callable[[Folder], None] | None = None,
    skip_leaves: bool = False,
) -> int:
    """Visit every entry below a folder of a root.

    Args:
        root: the root.
        name: an entry of the root; unless it is a folder, nothing is visited.
        visit: called for each entry that is not a folder, while its folder is open; an exception ends the
            walk.
        stop: ends the walk early.
        enter: called for each folder, including the first one, after it was opened.
        foreign: called for each folder of another filesystem or subvolume, which is not entered.
        skip_leaves: do not read folders without subfolders.  They have a link count of 2 on the filesystems
            that count the links of subfolders (find(1), -noleaf).

    Returns:
        How many folders could not be read completely; the walk continues without them.
    """
    return _Walk(root, visit, stop or StopFlag(), enter, foreign, skip_leaves=skip_leaves).run(name)


class _Walk:
    def __init__(
        self,
        root: Root,
        visit: Visit | None,
        stop: StopFlag,
        enter: Callable[[Folder], None] | None,
        foreign: Callable[[Folder], None] | None,
        *,
        skip_leaves: bool,
    ) -> None:
        self._root = root
        self._visit = visit
        self._stop = stop
        self._enter = enter
        self._foreign = foreign
        self._skip_leaves = skip_leaves
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
                # The parent might have been closed on the way down; ".." of this folder leads back to it.
                parent = folder.parent
                if parent is not None and parent.fd < 0 and not _reopen(parent, folder.fd):
                    self._errors += 1
                    break  # the tree was moved during the walk
                _close(folders.pop())
        finally:
            for folder in folders:
                _close(folder)
        return self._errors

    def _descend(self, parent_fd: int, name: str, parent: Folder | None) -> None:
        try:
            fd = os.open(name, FOLDER_FLAGS, dir_fd=parent_fd)
        except OSError as error:
            self._errors += error.errno not in _NO_FOLDER
            return
        folder = Folder(name, parent, fd, os.fstat(fd))
        if folder.status.st_dev != self._root.device:
            if self._foreign is not None:
                self._foreign(folder)
            _close(folder)
            return
        self._folders.append(folder)
        if self._enter is not None:
            self._enter(folder)
        if not self._skip_leaves or folder.status.st_nlink != 2:
            try:
                folder.listing = os.scandir(fd)
            except OSError:
                self._errors += 1
        if len(self._folders) > _MAX_OPEN_FOLDERS:
            self._read_and_close(self._folders[-_MAX_OPEN_FOLDERS - 1])

    def _read_and_close(self, folder: Folder) -> None:
        """Read the rest of a folder and close it, so that descriptors do not grow with the depth."""
        subfolders = []
        while folder.listing is not None and (child := self._next_child(folder)) is not None:
            subfolders.append(child)
        folder.unentered += subfolders
        _close(folder)

    def _next_child(self, folder: Folder) -> str | None:
        """Visit the entries of a folder up to its next subfolder and return that; None at the end."""
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
            elif self._visit is not None:
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
    """Reopen a folder through ``..`` of its child; return False when that is another folder."""
    try:
        fd = os.open("..", FOLDER_FLAGS, dir_fd=child_fd)
    except OSError:
        return False
    if not os.path.samestat(os.fstat(fd), folder.status):
        os.close(fd)
        return False
    folder.fd = fd
    return True


@with_file_access
def measure(root: Root, name: str, stop: StopFlag) -> Measured:
    """Return the size of an entry of a root with everything below it.

    Each link of a file counts its share of the file's blocks.  So all links together count once, without
    memory for each link.  A missing entry counts as empty.
    """
    try:
        status = os.stat(name, dir_fd=root.fd, follow_symlinks=False)
    except FileNotFoundError:
        return Measured()
    except OSError:
        return Measured(errors=1)
    if not stat.S_ISDIR(status.st_mode):
        return Measured(_share(status), 1, _changed_at(status), state=_state(status))
    total, files, failed, state = 0, 0, 0, 0
    changed = 0.0

    def visit(_folder: Folder, entry: os.DirEntry[str]) -> None:
        nonlocal total, files, changed, failed, state
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return
        except OSError:
            failed += 1
            return
        total += _share(status)
        files += 1
        changed = max(changed, _changed_at(status))
        state += _state(status)

    def enter(folder: Folder) -> None:
        nonlocal total, changed, state
        total += folder.status.st_blocks * BLOCK_BYTES
        changed = max(changed, _changed_at(folder.status))
        state += _state(folder.status)

    def foreign(_folder: Folder) -> None:
        nonlocal failed
        failed += 1

    failed += walk(root, name, visit, stop=stop, enter=enter, foreign=foreign)
    return Measured(total, files, changed, failed, state)


def _changed_at(status: os.stat_result) -> float:
    return max(status.st_mtime, status.st_ctime)


def _state(status: os.stat_result) -> int:
    # Without the inode: some network filesystems give a file another one each time that they read it.
    return hash((status.st_size, status.st_mtime_ns))


def _share(status: os.stat_result) -> int:
    return status.st_blocks * BLOCK_BYTES // max(1, status.st_nlink)
