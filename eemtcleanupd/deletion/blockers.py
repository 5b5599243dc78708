"""Blockers that keep an artifact in place: mounts inside it, locks, open files and recent changes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.filesystem import Mount, locate, mounts, views
from eemtcleanupd.deletion.open_files import open_processes
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.walk import Folder, walk
from eemtcleanupd.formatting import printable, shortened
from eemtcleanupd.model import KEEP_NAME, RootName
from eemtcleanupd.privileges import with_file_access

HELD_BY_MARKER = f"held by the file {KEEP_NAME} in its results"
"""Why a job with a keep marker stays."""

# In the initial PID namespace, /proc/locks shows every lock of this machine.  In other namespaces it shows
# only locks whose holder lives there (proc(5), pid_namespaces(7); the number is PROC_PID_INIT_INO).
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
# Filesystems whose locks are all local and are listed by the numbers that stat(2) returns.  On btrfs and
# overlay, stat(2) returns device numbers that /proc/locks does not use.
_LOCAL_FILESYSTEMS = {"ext2", "ext3", "ext4", "xfs", "tmpfs", "f2fs", "zfs", "jfs"}


class LockList:
    """The kernel's list of file locks (proc(5): locks), read in a thread.

    To list them, the kernel waits for all processors, about ten milliseconds.  Meanwhile the caller works.
    """

    def __init__(self) -> None:
        self._lines: list[str] | None = None
        self._thread: threading.Thread | None = threading.Thread(target=self._read, name="locks", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads can be started
            self._thread = None
            self._read()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            self._lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()

    def lines(self) -> list[str] | None:
        """Return a line for each lock and for each process that waits for one; None if that is unknown."""
        if self._thread is not None:
            self._thread.join()
        return self._lines


@dataclass(frozen=True, slots=True)
class Blockers:
    """A snapshot of mounts, locks and open files.

    Attributes:
        mounts: the mount points below a root.
        locked: the inodes, by device, of the files that another process holds an flock on.  None when the
            kernel does not list all locks; then every file has to be tried.
        opened: the entries of the roots in which other processes have a file open, with one such process.
        counted: the roots whose filesystem counts the links of subfolders, so that leaves need no reading.
        quiet_since: a folder that changed after this time (seconds since the epoch) is in use.  None turns
            the rule off, and ``opened`` is empty then.
    """

    mounts: tuple[Path, ...]
    locked: Mapping[int, Set[int]] | None
    opened: Mapping[tuple[RootName, str], str]
    counted: frozenset[RootName]
    quiet_since: float | None

    @classmethod
    def snapshot(
        cls, roots: Iterable[Root], quiet_since: float | None = None, locks: LockList | None = None
    ) -> Blockers:
        """Read the mounts, locks and open files of this machine (proc(5): mountinfo, locks, fd).

        ``locks`` is a list that was begun a moment ago.
        """
        locks = locks or LockList()
        opened = list(roots)
        all_mounts = mounts()
        inside = tuple(
            mount.path for mount in all_mounts if any(root.path in mount.path.parents for root in opened)
        )
        local = {mount.device for mount in all_mounts if mount.filesystem in _LOCAL_FILESYSTEMS}
        in_use = {} if quiet_since is None else _opened_entries(opened, all_mounts)
        return cls(
            inside,
            _locked_inodes(local, opened, locks),
            in_use,
            frozenset(root.name for root in opened if _device_number(root) in local),
            quiet_since,
        )

    @with_file_access
    def reason(self, root: Root, name: str, *, is_folder: bool = True) -> str | None:
        """Return why an entry of a root cannot be moved now; None when nothing blocks it."""
        path = root.path / name if self.mounts else root.path
        for mount in self.mounts:
            if mount == path or path in mount.parents:
                return f"a filesystem is mounted at {printable(str(mount))}"
        if process := self.opened.get((root.name, name)):
            return f"{process} has a file of {root.name}/{shortened(printable(name))} open"
        return (self._folder_reason(root, name) if is_folder else None) or self._lock_reason(root, name)

    @with_file_access
    def download_reason(self, root: Root, name: str) -> str | None:
        """Return why the zip of a job's results shows that the job is in use; None when it does not."""
        if process := self.opened.get((root.name, name)):
            return f"{process} has {root.name}/{shortened(printable(name))} open"
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=root.fd, follow_symlinks=False)
            return self.change_reason(f"{root.name}/{name}", status.st_mtime)
        return None

    def change_reason(self, label: str, mtime: float) -> str | None:
        """Return why an entry that changed at this time is in use; None when it is not."""
        if self.quiet_since is None or mtime <= self.quiet_since:
            return None
        return f"{shortened(printable(label))} changed less than safety.min_idle_minutes ago"

    def _folder_reason(self, root: Root, name: str) -> str | None:
        """Look at every folder of an entry: for recent changes, and for other filesystems and subvolumes."""
        reasons: list[str] = []
        stop = StopFlag()

        def report(reason: str) -> None:
            reasons.append(reason)
            stop.set()

        def enter(folder: Folder) -> None:
            label = f"{root.name}/{folder.path}"
            if reason := self.change_reason(label, folder.status.st_mtime):
                report(reason)

        def foreign(folder: Folder) -> None:
            path = printable(str(root.path / folder.path))
            report(f"{shortened(path)} is another filesystem or subvolume")

        walk(root, name, None, stop=stop, enter=enter, foreign=foreign, skip_leaves=root.name in self.counted)
        return reasons[0] if reasons else None

    def _lock_reason(self, root: Root, name: str) -> str | None:
        inodes = None if self.locked is None else self.locked.get(root.device, frozenset())
        if inodes is not None and not inodes:
            return None
        locked_path = _find_lock(root, name, inodes)
        if locked_path is None:
            return None
        return f"a process holds a lock on {shortened(printable(locked_path))}"


@with_file_access
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
    return HELD_BY_MARKER


def _device_number(root: Root) -> str:
    return f"{os.major(root.device)}:{os.minor(root.device)}"


def _opened_entries(roots: list[Root], all_mounts: list[Mount]) -> dict[tuple[RootName, str], str]:
    """Return the entries of the roots in which other processes have files open, with one process each."""
    places = {root.name: locate(root.path, all_mounts) for root in roots}
    prefixes: dict[str, list[tuple[RootName, str, tuple[str, ...]]]] = {}
    found: dict[tuple[RootName, str], str] = {}
    for process in open_processes():
        if process.namespace not in prefixes:
            prefixes[process.namespace] = [
                (name, prefix.rstrip("/"), below)
                for name, place in places.items()
                for prefix, below in views(place, process.mounts())
            ]
        for name, prefix, below in prefixes[process.namespace]:
            for target in process.targets:
                if target.startswith(prefix) and target[len(prefix) :][:1] in {"", "/"}:
                    parts = (*below, *target[len(prefix) :].split("/")[1:])
                    if parts and process.uses(target):
                        found[name, parts[0]] = process.label
    return found


def _locked_inodes(local: Set[str], roots: list[Root], listed: LockList) -> Mapping[int, Set[int]] | None:
    """Return the inodes, by device, of files under an flock of other processes; None when that is unknown."""
    devices = {_device_number(root) for root in roots}
    try:
        in_initial_namespace = os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE  # noqa: PTH116
    except OSError:
        return None
    lines = listed.lines()
    if lines is None or not in_initial_namespace or not devices <= local:
        return None
    # 1: FLOCK  ADVISORY  WRITE 1234 fd:00:5678 0 EOF; the line of a waiter has "->" in second place.
    locks = [line.replace("-> ", "").split() for line in lines]
    # With the run's own lock in the list, the names of every job would be read.
    own_pid = str(os.getpid())
    inodes: dict[int, set[int]] = defaultdict(set)
    for fields in locks:
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[4] != own_pid:
            major, minor, inode = fields[5].split(":")
            inodes[os.makedev(int(major, 16), int(minor, 16))].add(int(inode))
    return inodes


def _find_lock(root: Root, name: str, inodes: Set[int] | None) -> str | None:
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
    """Return whether a regular file is under an flock; other kinds cannot be opened without side effects.

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
    """Return whether another process holds an exclusive flock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False
