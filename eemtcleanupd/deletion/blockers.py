"""What keeps an artifact from being staged: a mount inside it, or a lock that a live process holds on it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.walk import Folder, walk
from eemtcleanupd.formatting import printable, shortened
from eemtcleanupd.model import KEEP_NAME
from eemtcleanupd.policy.pressure import DiskUsage

# In the initial pid namespace /proc/locks shows every lock of this machine; in others only those whose
# holder lives in the same namespace (proc(5), pid_namespaces(7); the number is PROC_PID_INIT_INO).
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
# Filesystems whose locks all are this machine's own and named by the numbers that stat(2) tells.  Not so
# btrfs, where each subvolume has a device number that /proc/locks does not know, and overlay.
_LOCAL_FILESYSTEMS = {"ext2", "ext3", "ext4", "xfs", "tmpfs", "f2fs", "zfs", "jfs"}
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class _Mount:
    path: Path
    device: str
    filesystem: str


@dataclass(frozen=True, slots=True)
class Blockers:
    """Mounts and locks as they are when the snapshot is taken.

    ``mounts`` are those below a root; ``locked`` are the devices and inodes that other processes have
    under an flock, None where the kernel does not tell all of them, so that every file has to be tried.
    """

    mounts: tuple[Path, ...]
    locked: frozenset[tuple[int, int]] | None

    @classmethod
    def snapshot(cls, roots: Iterable[Root]) -> Blockers:
        """Read the mounts and the locks of this machine (proc(5): mountinfo, locks)."""
        opened = list(roots)
        mounts = list(_mounts())
        inside = tuple(
            mount.path for mount in mounts if any(root.path in mount.path.parents for root in opened)
        )
        return cls(inside, _locked_inodes(mounts, opened))

    def reason(self, root: Root, name: str) -> str | None:
        """Return why an entry of a root may not be moved now, None when nothing is in its way."""
        place = root.path / name
        for mount in self.mounts:
            if mount == place or place in mount.parents:
                return f"a filesystem is mounted at {printable(str(mount))}"
        inodes = None
        if self.locked is not None:
            inodes = frozenset(inode for device, inode in self.locked if device == root.device)
            if not inodes:
                return None
        held = _find_lock(root, name, inodes)
        return None if held is None else f"a process holds a lock on {shortened(printable(held))}"


def keep_marker_reason(folder_fd: int, name: str) -> str | None:
    """Return why a results folder must stay, None when there is no marker in it; in doubt it stays.

    Args:
        folder_fd: the folder that it lies in: the root, or an item of the trash.
        name: its name there.
    """
    try:
        os.stat(f"{name}/{KEEP_NAME}", dir_fd=folder_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # then there is no such folder either
            return None
        return f"it cannot be seen whether its results hold {KEEP_NAME} ({error.strerror})"
    return f"held by the file {KEEP_NAME} in its results"


def disk_usage(root_fd: int) -> DiskUsage:
    """Return the bytes of the filesystem that a root lies on (statvfs(3))."""
    figures = os.fstatvfs(root_fd)
    size = figures.f_frsize
    return DiskUsage(
        total_bytes=figures.f_blocks * size,
        used_bytes=(figures.f_blocks - figures.f_bfree) * size,
        free_bytes=figures.f_bavail * size,
    )


def _mounts() -> Iterable[_Mount]:
    with open("/proc/self/mountinfo", "rb") as lines:  # noqa: PTH123  (a file of the kernel, read as bytes)
        for line in lines:
            head, _, tail = line.partition(b" - ")
            fields = head.split()
            path = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), fields[4])
            yield _Mount(Path(os.fsdecode(path)), fields[2].decode(), tail.split()[0].decode())


def _locked_inodes(mounts: Iterable[_Mount], roots: list[Root]) -> frozenset[tuple[int, int]] | None:
    """Return the devices and inodes under an flock of others, or None where that cannot be known."""
    local = {mount.device for mount in mounts if mount.filesystem in _LOCAL_FILESYSTEMS}
    devices = {f"{os.major(root.device)}:{os.minor(root.device)}" for root in roots}
    try:
        in_initial_namespace = os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE  # noqa: PTH116
        if not in_initial_namespace or not devices <= local:
            return None
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    # 1: FLOCK  ADVISORY  WRITE 1234 fd:00:5678 0 EOF; a line of a waiter has "->" in second place.
    fields = [line.replace("-> ", "").split() for line in lines]
    ours = str(os.getpid())  # the lock of a run, which would make every job's names be read
    return frozenset(
        (os.makedev(int(major, 16), int(minor, 16)), int(inode))
        for each in fields
        if len(each) > 5 and each[1] == "FLOCK" and each[4] != ours
        for major, minor, inode in [each[5].split(":")]
    )


def _find_lock(root: Root, name: str, inodes: frozenset[int] | None) -> str | None:
    """Return the first path below an entry on which a live process holds an flock.

    The kernel's list also has locks that let others share them, so a match is only a hint; trying the lock
    is the proof.
    """
    found: list[str] = []
    stop = StopFlag()

    def hit(path: str) -> None:
        found.append(path)
        stop.set()

    listed = inodes is not None

    def visit(folder: Folder, entry: os.DirEntry[str]) -> None:
        if (inodes is None or entry.inode() in inodes) and _is_locked(folder.fd, entry.name, listed=listed):
            hit(f"{folder.path}/{entry.name}")

    def enter(folder: Folder) -> None:
        if (inodes is None or folder.status.st_ino in inodes) and _try(folder.fd):
            hit(folder.path)

    try:
        status = os.stat(name, dir_fd=root.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(status.st_mode):
        may_be = inodes is None or status.st_ino in inodes
        return name if may_be and _is_locked(root.fd, name, listed=listed) else None
    walk(root, name, visit, stop=stop, enter=enter)
    return found[0] if found else None


def _is_locked(folder_fd: int, name: str, *, listed: bool) -> bool:
    """Tell whether a regular file is under an flock; others cannot be opened without side effects.

    One that we may not open counts as locked when the kernel lists a lock on it (in doubt, keep).
    """
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode):
            return False
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        fd = os.open(name, flags, dir_fd=folder_fd)
    except FileNotFoundError:
        return False
    except OSError:
        return listed
    try:
        return _try(fd)
    finally:
        os.close(fd)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False
