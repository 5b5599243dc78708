"""The trash: artifacts are moved there by a rename, so readers see all of a job's results or none.

An item is a folder in the trash that holds an artifact under its own name.  Its name shows its state:
``<item>`` can be restored, ``<item>.deleting`` is being emptied.  The filesystem itself stores this state, so
a kill between any two system calls leaves no ambiguity.

Small artifacts that are deleted together share the folder of a group: then the item is ``<group>/<name>``,
and one rename of the folder starts the deletion of all.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.tree import FOLDER_FLAGS
from eemtcleanupd.errors import LockHeldError, RootError
from eemtcleanupd.files import open_own
from eemtcleanupd.model import TRASH_NAME
from eemtcleanupd.privileges import can_exceed_rights, with_file_access

MARKER_NAME = ".root-id"
"""A file in the trash that identifies a root."""
UNPACKED = "backup-"
"""How the name of an item begins into which a restore unpacks a backup."""

log = logging.getLogger(__name__)

_DELETING_SUFFIX = ".deleting"
RENAME_NOREPLACE = 1  # renameat2(2)


def deleting_name(item: str) -> str:
    """Return the name of an item after the start of its deletion."""
    folder, slash, name = item.partition("/")
    return f"{folder}{_DELETING_SUFFIX}{slash}{name}"


def is_grouped(item: str) -> bool:
    """Return whether an item is in the folder of a group."""
    return "/" in item


def is_group(folder: str) -> bool:
    """Return whether a folder of the trash is that of a group, see :func:`group_name`."""
    return folder.rpartition(".")[2].startswith("g")


def group_name(run_id: str, number: int) -> str:
    """Return the name of the folder of a group.  Ids of its intents begin with it."""
    return f"{run_id}.g{number}"


def artifact_path(item: str, name: str) -> str:
    """Return where an artifact of an item is in the trash."""
    return item if is_grouped(item) else f"{item}/{name}"


@with_file_access
def read_marker(root: Root) -> str | None:
    """Return the marker that an earlier run wrote into the trash of a root; None if there is none."""
    try:
        trash_fd = os.open(TRASH_NAME, FOLDER_FLAGS, dir_fd=root.fd)
    except OSError:
        return None
    try:
        return marker_in(trash_fd)
    finally:
        os.close(trash_fd)


@with_file_access
def marker_in(trash_fd: int) -> str | None:
    """Return the marker in a trash that is open; None if there is none."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(MARKER_NAME, flags, dir_fd=trash_fd), "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_nlink > 1:  # can be a hard link to a secret of root
                return None
            return (file.read(64) or b"").decode("ascii", "replace")
    except OSError:
        return None


def _has_marker_of(user: int, trash_fd: int) -> bool:
    """Return whether a user wrote the marker in an open trash, in which only that user can write."""
    try:
        return os.stat(MARKER_NAME, dir_fd=trash_fd, follow_symlinks=False).st_uid == user
    except OSError:
        return False


@with_file_access
def write_marker(trash: Trash, marker: str) -> None:
    """Write the marker that identifies a root into its trash, in place of any other.

    Raises:
        OSError: the file cannot be written.
    """
    marker_fd = open_own(
        Path(MARKER_NAME), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode=0o600, dir_fd=trash.fd
    )
    with os.fdopen(marker_fd, "w") as file:
        file.write(marker)


class Trash:
    """The trash of one root, locked for one run.

    The lock of a run is beside the database.  It does not exclude a run that uses the same folders with
    another path or copy of the database, or in a container that mounts only its file.  The lock of the trash
    does.

    Raises:
        RootError: the folder cannot be created, or is not safe to use.
        LockHeldError: another run holds the lock.
    """

    @with_file_access
    def __init__(self, root: Root) -> None:
        self.root = root
        self._groups: dict[str, int] = {}
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(TRASH_NAME, 0o700, dir_fd=root.fd)
            self.fd = os.open(TRASH_NAME, FOLDER_FLAGS, dir_fd=root.fd)
        except OSError as error:
            raise RootError(
                f"Cannot use the trash {root.path / TRASH_NAME}: {error.strerror}. "
                "It must be a folder that the cleanup user owns."
            ) from error
        status = os.fstat(self.fd)
        problem = None
        if status.st_dev != root.device:
            problem = "is on another filesystem"
        elif status.st_uid not in {os.geteuid(), 0}:
            problem = f"belongs to user {status.st_uid}"
        elif status.st_mode & 0o022:
            problem = "is writable by other users"
        elif can_exceed_rights(status) and not _has_marker_of(status.st_uid, self.fd):
            problem = f"belongs to user {status.st_uid}, who did not write its marker"
        self._owner = status.st_uid
        if problem is not None:
            os.close(self.fd)
            raise RootError(
                f"The trash {root.path / TRASH_NAME} {problem}. "
                "Only the cleanup user may have access to it (mode 0700)."
            )
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self.fd)
            raise LockHeldError(
                f"Another run is using {root.path}. It uses another job database or path to it, or hangs."
            ) from error
        except OSError as error:  # NFS cannot lock folders
            log.debug("Cannot lock %s: %s", root.path / TRASH_NAME, error.strerror)

    def close(self) -> None:
        """Close the descriptors."""
        for group in list(self._groups):
            self._close_group(group)
        os.close(self.fd)

    def marker(self) -> str | None:
        """Return the marker in the open folder, whatever another user has put in its place since."""
        return marker_in(self.fd)

    def _open(self, folder: str) -> int:
        """Open an item, or the folder of a group.

        The owner of the trash can put another user's folder in its place, without the right to read it.  What
        is moved out of such a folder could be read by all.

        Raises:
            OSError: the folder cannot be opened, or is of another user than the trash and this process.
        """
        fd = os.open(folder, FOLDER_FLAGS, dir_fd=self.fd)
        status = os.fstat(fd)
        if can_exceed_rights(status) and status.st_uid != self._owner:
            os.close(fd)
            raise OSError(errno.EPERM, f"its folder in the trash belongs to user {status.st_uid}", folder)
        return fd

    @with_file_access
    def create(self, item: str) -> int:
        """Create an empty item and return its descriptor.

        Raises:
            OSError: the item exists or cannot be created.
        """
        _require_single_component(item)
        os.mkdir(item, 0o700, dir_fd=self.fd)
        return self._open(item)

    @with_file_access
    def stage(self, item: str, names: Iterable[str]) -> tuple[str, ...]:
        """Move entries of the root into a new item.

        Args:
            item: the item's name.
            names: entries of the root; missing ones are skipped.  An item in a group holds one entry.

        Returns:
            The names that were moved; if there are none, no item exists.

        Raises:
            OSError: an entry could not be moved (``filename`` names it).  All others were moved back, except
                those whose place is taken; they stay in the item.
        """
        if is_grouped(item):
            return self._stage_in_group(item)
        folder = self.create(item)
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
            # An entry whose place was taken meanwhile stays in the item.
            moved = [name for name in moved if not _move_back(folder, name, self.root.fd)]
            raise
        finally:
            os.close(folder)
            if not moved:
                os.rmdir(item, dir_fd=self.fd)
        return tuple(moved)

    @with_file_access
    def restore(self, item: str) -> tuple[str, ...]:
        """Move everything in an item back to its original place, without replacing anything.

        What is no folder is no item: the owner of the store can have put it there.

        Returns:
            The names whose places are taken; they stay in the item.  If there are none, the item is removed.
        """
        _require_item(item)
        if is_grouped(item):
            return self._restore_from_group(item)
        try:
            folder = self._open(item)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        try:
            conflicts = [
                name
                for name in os.listdir(folder)  # noqa: PTH208  (a descriptor)
                if not _move_back(folder, name, self.root.fd)
            ]
        finally:
            os.close(folder)
        if not conflicts:
            os.rmdir(item, dir_fd=self.fd)
        return tuple(conflicts)

    def _stage_in_group(self, item: str) -> tuple[str, ...]:
        _require_item(item)
        group, _, name = item.partition("/")
        if group not in self._groups:
            with contextlib.suppress(FileExistsError):
                os.mkdir(group, 0o700, dir_fd=self.fd)
            # The owner of the store can put a link in its place at any time.
            self._groups[group] = self._open(group)
        try:
            os.rename(name, name, src_dir_fd=self.root.fd, dst_dir_fd=self._groups[group])
        except FileNotFoundError:
            return ()
        return (name,)

    def _close_group(self, group: str) -> None:
        if (folder := self._groups.pop(group, None)) is not None:
            os.close(folder)

    def _restore_from_group(self, item: str) -> tuple[str, ...]:
        group, _, name = item.partition("/")
        try:
            folder = self._open(group)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        try:
            return () if _move_back(folder, name, self.root.fd) else (name,)
        except FileNotFoundError:
            return ()
        finally:
            os.close(folder)
            self.remove_if_empty(group)

    @with_file_access
    def remove_if_empty(self, folder: str) -> None:
        """Remove the folder of a group unless something is in it; a later run removes one that stays."""
        self._close_group(folder)
        try:
            os.rmdir(folder, dir_fd=self.fd)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
                log.warning("Cannot remove the empty folder %s of the trash: %s", folder, error.strerror)

    @with_file_access
    def mark_deleting(self, item: str) -> str:
        """Start the irreversible deletion of an item, and of all that share its group; return its new name.

        An item that is missing, or whose deletion has started, is not an error.
        """
        _require_item(item)
        deleting = deleting_name(item)
        self._close_group(item.partition("/")[0])
        with contextlib.suppress(FileNotFoundError):
            folders = (item.partition("/")[0], deleting.partition("/")[0])
            os.rename(*folders, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        return deleting

    @with_file_access
    def holds_only(self, group: str, names: Collection[str]) -> bool:
        """Return whether the folder of a group has no other entries than these; a missing one has none."""
        _require_item(group)
        try:
            folder = os.open(group, FOLDER_FLAGS, dir_fd=self.fd)
        except FileNotFoundError:
            return True
        try:
            return set(names).issuperset(os.listdir(folder))  # noqa: PTH208  (a descriptor)
        finally:
            os.close(folder)

    @with_file_access
    def isolate(self, item: str) -> None:
        """Start the deletion of one entry of a group alone: move it to where the deletion of all would.

        An entry that is missing, or whose deletion has started, is not an error.
        """
        _require_item(item)
        group, _, name = item.partition("/")
        with contextlib.ExitStack() as stack:
            try:
                source = self._open(group)
            except FileNotFoundError:
                return
            stack.callback(os.close, source)
            with contextlib.suppress(FileExistsError):
                os.mkdir(deleting_name(group), 0o700, dir_fd=self.fd)
            target = self._open(deleting_name(group))
            stack.callback(os.close, target)
            with contextlib.suppress(FileNotFoundError):
                os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)

    @with_file_access
    def remove_group(self, deleting: str) -> bool:
        """Remove the folder of a deleted group; return False if something is left in it."""
        self.remove_if_empty(deleting)
        return not self.exists(deleting)

    @with_file_access
    def exists(self, item: str) -> bool:
        """Return whether an item of exactly this name exists."""
        _require_item(item)
        folder, _, name = item.partition("/")
        try:
            if not name:
                os.stat(folder, dir_fd=self.fd, follow_symlinks=False)
                return True
            group = os.open(folder, FOLDER_FLAGS, dir_fd=self.fd)
            try:
                os.stat(name, dir_fd=group, follow_symlinks=False)
            finally:
                os.close(group)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def items(self) -> Iterator[tuple[str, bool]]:
        """Yield the name of each item, without its suffix, and whether its deletion has started."""
        with os.scandir(self.fd) as listing:
            for entry in listing:
                if entry.is_dir(follow_symlinks=False):
                    yield entry.name.removesuffix(_DELETING_SUFFIX), entry.name.endswith(_DELETING_SUFFIX)

    def sync(self) -> None:
        """Flush the renames and removals in root and trash to the disk (fsync(2)).

        Raises:
            RootError: the flush failed, so no record may rely on it.
        """
        try:
            os.fsync(self.root.fd)
            os.fsync(self.fd)
        except OSError as error:
            raise RootError(
                f"Cannot flush changes of {self.root.path} to its disk: {error.strerror}. "
                "The next run continues from here."
            ) from error


def _require_item(item: str) -> None:
    for part in item.split("/", 1):
        _require_single_component(part)


def _require_single_component(name: str) -> None:
    """Refuse a name that is not one entry of a root: a second check after that of the policy."""
    if name in {"", ".", ".."} or "/" in name or "\0" in name or name.startswith(TRASH_NAME):
        raise OSError(errno.EINVAL, "not a valid entry name", name)
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise OSError(errno.EINVAL, "not a valid file name", name) from error


def _move_back(source_fd: int, name: str, target_fd: int) -> bool:
    """Move an entry unless its place is taken; plain rename(2) would replace a file or an empty folder."""
    encoded = os.fsencode(name)
    if _renameat2(source_fd, encoded, target_fd, encoded, RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return False
    if code not in {errno.EINVAL, errno.ENOSYS}:
        raise OSError(code, os.strerror(code), name)
    # The filesystem (NFS, for example) does not support the flag.  Check first; the race is a few
    # microseconds.
    try:
        os.stat(name, dir_fd=target_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        return True
    return False


def _renameat2(*arguments: int | bytes) -> int:
    """Call renameat2(2), which is missing from the standard library and from older musl versions."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        ctypes.set_errno(errno.ENOSYS)
        return -1
    return int(function(*arguments))
