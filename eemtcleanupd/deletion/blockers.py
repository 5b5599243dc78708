"""Blockers that keep an artifact in place: mounts inside it, and locks that other processes hold on it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.filesystem import Mount, mounts
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.walk import Folder, walk
from eemtcleanupd.formatting import printable, shortened
from eemtcleanupd.model import KEEP_NAME

# In the initial PID namespace, /proc/locks shows every lock of this machine.  In other namespaces it shows
# only locks whose holder lives there (proc(5), pid_namespaces(7); the number is PROC_PID_INIT_INO).
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
# Filesystems whose locks are all local and are listed by the numbers that stat(2) returns.  On btrfs and
# overlay, stat(2) returns device numbers that /proc/locks does not use.
_LOCAL_FILESYSTEMS = {"ext2", "ext3", "ext4", "xfs", "tmpfs", "f2fs", "zfs", "jfs"}


@dataclass(frozen=True, slots=True)
class Blockers:
    """A snapshot of mounts and locks.

    Attributes:
        mounts: the mount points below a root.
        locked: device and inode of each file that another process holds an flock on.  None when the kernel
            does not list all locks; then every file has to be tried.
    """

    mounts: tuple[Path, ...]
    locked: frozenset[tuple[int, int]] | None

    @classmethod
    def snapshot(cls, roots: Iterable[Root]) -> Blockers:
        """Read the mounts and the locks of this machine (proc(5): mountinfo, locks)."""
        opened = list(roots)
        all_mounts = list(mounts())
        inside = tuple(
            mount.path for mount in all_mounts if any(root.path in mount.path.parents for root in opened)
        )
        return cls(inside, _locked_inodes(all_mounts, opened))

    def reason(self, root: Root, name: str) -> str | None:
        """Return why an entry of a root cannot be moved now; None when nothing blocks it."""
        path = root.path / name
        for mount in self.mounts:
            if mount == path or path in mount.parents:
                return f"a filesystem is mounted at {printable(str(mount))}"
        inodes = None
        if self.locked is not None:
            inodes = frozenset(inode for device, inode in self.locked if device == root.device)
            if not inodes:
                return None
        locked_path = _find_lock(root, name, inodes)
        if locked_path is None:
            return None
        return f"a process holds a lock on {shortened(printable(locked_path))}"


def keep_marker_reason(folder_fd: int, name: str) -> str | None:
    """Return why a results folder must stay, or None when it has no keep marker; when in doubt, it stays.

    Args:
        folder_fd: the folder that contains it: the root, or an item of the trash.
        name: its name in that folder.
    """
    try:
        os.stat(f"{name}/{KEEP_NAME}", dir_fd=folder_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # then there is no such folder either
            return None
        return f"the file {KEEP_NAME} in its results cannot be checked ({error.strerror})"
    return f"held by the file {KEEP_NAME} in its results"


def _locked_inodes(all_mounts: Iterable[Mount], roots: list[Root]) -> frozenset[tuple[int, int]] | None:
    """Return device and inode of files under an flock of other processes; None when that is unknown."""
    local = {mount.device for mount in all_mounts if mount.filesystem in _LOCAL_FILESYSTEMS}
    devices = {f"{os.major(root.device)}:{os.minor(root.device)}" for root in roots}
    try:
        in_initial_namespace = os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE  # noqa: PTH116
        if not in_initial_namespace or not devices <= local:
            return None
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    # 1: FLOCK  ADVISORY  WRITE 1234 fd:00:5678 0 EOF; the line of a waiter has "->" in second place.
    locks = [line.replace("-> ", "").split() for line in lines]
    # The run's own lock would make every job's names be read.
    own_pid = str(os.getpid())
    return frozenset(
        (os.makedev(int(major, 16), int(minor, 16)), int(inode))
        for fields in locks
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[4] != own_pid
        for major, minor, inode in [fields[5].split(":")]
    )


def _find_lock(root: Root, name: str, inodes: frozenset[int] | None) -> str | None:
    """Return the first path at or below an entry that another process holds an flock on.

    The kernel's list also contains shared locks, so a match is only a hint.  Trying the lock is the proof.
    """
    locked_paths: list[str] = []
    stop = StopFlag()
    is_listed = inodes is not None

    def report(path: str) -> None:
        locked_paths.append(path)
        stop.set()

    def visit(folder: Folder, entry: os.DirEntry[str]) -> None:
        if (inodes is None or entry.inode() in inodes) and _is_locked(
            folder.fd, entry.name, is_listed=is_listed
        ):
            report(f"{folder.path}/{entry.name}")

    def enter(folder: Folder) -> None:
        if (inodes is None or folder.status.st_ino in inodes) and _is_flocked(folder.fd):
            report(folder.path)

    try:
        status = os.stat(name, dir_fd=root.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(status.st_mode):
        is_candidate = inodes is None or status.st_ino in inodes
        return name if is_candidate and _is_locked(root.fd, name, is_listed=is_listed) else None
    walk(root, name, visit, stop=stop, enter=enter)
    return locked_paths[0] if locked_paths else None


def _is_locked(folder_fd: int, name: str, *, is_listed: bool) -> bool:
    """Tell whether a regular file is under an flock; other kinds cannot be opened without side effects.

    A file that cannot be opened counts as locked when the kernel lists a lock on it (when in doubt, keep).
    """
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode):
            return False
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        fd = os.open(name, flags, dir_fd=folder_fd)
    except FileNotFoundError:
        return False
    except OSError:
        return is_listed
    try:
        return _is_flocked(fd)
    finally:
        os.close(fd)


def _is_flocked(fd: int) -> bool:
    """Tell whether another process holds an exclusive flock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False
