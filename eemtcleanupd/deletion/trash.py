"""The trash: where artifacts go first, by one rename, so that readers see all of a job's results or none.

An item is a folder in the trash that holds one or more artifacts under their own names.  Its name says how
far it is: ``<item>`` can be put back, ``<item>.deleting`` is being emptied.  Since the file system itself
holds this state, a kill between any two calls leaves nothing to guess.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
from collections.abc import Iterable, Iterator

from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.tree import FOLDER_FLAGS
from eemtcleanupd.errors import LockHeldError, RootError
from eemtcleanupd.model import TRASH_NAME

MARKER_NAME = ".root-id"
"""A file in the trash by which a root is known again."""

log = logging.getLogger(__name__)

_DELETING_SUFFIX = ".deleting"
_RENAME_NOREPLACE = 1  # renameat2(2)


def deleting_name(item: str) -> str:
    """Return the name of an item once its deletion has begun."""
    return item + _DELETING_SUFFIX


def read_marker(root: Root) -> str | None:
    """Return the marker that an earlier run left in a root's trash, None when there is none."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(f"{TRASH_NAME}/{MARKER_NAME}", flags, dir_fd=root.fd)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            return (file.read(64) or b"").decode("ascii", "replace")
    except OSError:
        return None


class Trash:
    """The trash of one root, which only one at a time has.

    The run's own lock lies beside the database, so it does not keep out who reaches the same folders by
    another path of it, a copy, or a container into which the file alone is mounted: this one does.

    Raises:
        RootError: the folder cannot be made, or is not safe to use.
        LockHeldError: another run has it.
    """

    def __init__(self, root: Root) -> None:
        self.root = root
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(TRASH_NAME, 0o700, dir_fd=root.fd)
            self.fd = os.open(TRASH_NAME, FOLDER_FLAGS, dir_fd=root.fd)
        except OSError as error:
            raise RootError(
                f"the trash {root.path / TRASH_NAME} cannot be used: {error.strerror}; "
                f"the user that cleans must own it, and it must be a folder"
            ) from error
        status = os.fstat(self.fd)
        fault = None
        if status.st_dev != root.device:
            fault = "is on another filesystem"
        elif status.st_uid not in {os.geteuid(), 0}:
            fault = f"belongs to user {status.st_uid}"
        elif status.st_mode & 0o022:
            fault = "can be written by others"
        if fault is not None:
            os.close(self.fd)
            raise RootError(f"the trash {root.path / TRASH_NAME} {fault}: it must be ours alone (mode 0700)")
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self.fd)
            raise LockHeldError(
                f"another run works on {root.path}: it has another job database or path to it, or is frozen"
            ) from error
        except OSError as error:  # NFS locks no folders
            log.debug("%s cannot be locked: %s", root.path / TRASH_NAME, error.strerror)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def stage(self, item: str, names: Iterable[str]) -> tuple[str, ...]:
        """Move entries of the root into a new item.

        Args:
            item: the item's name.
            names: entries of the root; one that does not exist is left out.

        Returns:
            The names that were moved; with none there is no item.

        Raises:
            OSError: an entry could not be moved (``filename`` names it); all others are back in their
                places, or still in the item where somebody has taken their place.
        """
        os.mkdir(item, 0o700, dir_fd=self.fd)
        folder = os.open(item, FOLDER_FLAGS, dir_fd=self.fd)
        moved: list[str] = []
        try:
            for name in names:
                _require_single_component(name)
                try:
                    os.rename(name, name, src_dir_fd=self.root.fd, dst_dir_fd=folder)
                except FileNotFoundError:
                    continue
                moved.append(name)
        except OSError:
            # What cannot go back, because its place was taken meanwhile, stays in the item.
            moved = [name for name in moved if not _moves_back(folder, name, self.root.fd)]
            raise
        finally:
            os.close(folder)
            if not moved:
                os.rmdir(item, dir_fd=self.fd)
        return tuple(moved)

    def restore(self, item: str) -> tuple[str, ...]:
        """Move everything in an item back to where it was, never over something that is there now.

        Returns:
            The names whose places are taken; they stay in the item.  Otherwise the item is gone.
        """
        _require_single_component(item)
        try:
            folder = os.open(item, FOLDER_FLAGS, dir_fd=self.fd)
        except FileNotFoundError:
            return ()
        try:
            conflicts = [
                name
                for name in os.listdir(folder)  # noqa: PTH208  (a descriptor)
                if not _moves_back(folder, name, self.root.fd)
            ]
        finally:
            os.close(folder)
        if not conflicts:
            os.rmdir(item, dir_fd=self.fd)
        return tuple(conflicts)

    def mark_deleting(self, item: str) -> str:
        """Begin an item's deletion, from which there is no way back; returns its new name.

        An item that is doomed already, or gone, is no error.
        """
        _require_single_component(item)
        doomed = deleting_name(item)
        with contextlib.suppress(FileNotFoundError):
            os.rename(item, doomed, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        return doomed

    def exists(self, item: str) -> bool:
        """Tell whether there is an item of exactly this name."""
        _require_single_component(item)
        try:
            os.stat(item, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def items(self) -> Iterator[tuple[str, bool]]:
        """Yield the name of each item, without its ending, and whether it is doomed."""
        with os.scandir(self.fd) as listing:
            for entry in listing:
                if entry.is_dir(follow_symlinks=False):
                    yield entry.name.removesuffix(_DELETING_SUFFIX), entry.name.endswith(_DELETING_SUFFIX)

    def sync(self) -> None:
        """Wait until the renames and removals in root and trash are on the disk (fsync(2)).

        Raises:
            RootError: that cannot be known, so nothing may be recorded that relies on it.
        """
        try:
            os.fsync(self.root.fd)
            os.fsync(self.fd)
        except OSError as error:
            raise RootError(
                f"changes of {self.root.path} cannot be flushed to its disk: {error.strerror}; "
                "the next run goes on"
            ) from error


def _require_single_component(name: str) -> None:
    """Refuse what is not one entry of a root; policy has refused it before, this is the last line."""
    if name in {"", ".", ".."} or "/" in name or "\0" in name or name.startswith(TRASH_NAME):
        raise OSError(errno.EINVAL, "not the name of an entry", name)
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise OSError(errno.EINVAL, "not a name that a file can have", name) from error


def _moves_back(source_fd: int, name: str, target_fd: int) -> bool:
    """Move an entry unless its place is taken: rename(2) alone would replace a file or an empty folder."""
    encoded = os.fsencode(name)
    if _renameat2(source_fd, encoded, target_fd, encoded, _RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return False
    if code not in {errno.EINVAL, errno.ENOSYS}:
        raise OSError(code, os.strerror(code), name)
    # A filesystem (NFS, say) that does not know the flag: look first, the window is a few microseconds.
    try:
        os.stat(name, dir_fd=target_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        return True
    return False


def _renameat2(*arguments: int | bytes) -> int:
    """Call renameat2(2), which the standard library lacks and so did musl until lately."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        ctypes.set_errno(errno.ENOSYS)
        return -1
    return int(function(*arguments))
