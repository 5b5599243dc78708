"""Mounted filesystems and their disk space, as the kernel reports them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from eemtcleanupd.policy.pressure import DiskUsage

_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount point, its device as ``major:minor``, and the type of its filesystem.

    ``root`` is the folder of the filesystem that is mounted: not ``/`` for a bind mount or a subvolume.
    """

    path: Path
    root: Path
    device: str
    filesystem: str


@dataclass(frozen=True, slots=True)
class Location:
    """A folder or file by its filesystem and its path there: the same, however it is mounted."""

    device: str
    path: Path

    def inside(self, folder: Location) -> tuple[str, ...] | None:
        """Return the path below a folder, empty for the folder itself, or None if it is not in there."""
        if self.device != folder.device or not self.path.is_relative_to(folder.path):
            return None
        return self.path.relative_to(folder.path).parts


def mounts(process: int | str = "self") -> list[Mount]:
    """Return the mounts that a process sees, in the order in which they were mounted (proc(5), mountinfo)."""
    with open(f"/proc/{process}/mountinfo", "rb") as mountinfo:  # noqa: PTH123  (a kernel file, read as bytes)
        return [_mount(line) for line in mountinfo]


@lru_cache(4096)  # the lines are read again before each group of jobs, and hardly ever change
def _mount(line: bytes) -> Mount:
    head, _, tail = line.partition(b" - ")
    fields = head.split()
    root, path = (
        Path(os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))) for field in fields[3:5]
    )
    return Mount(path, root, fields[2].decode(), tail.split()[0].decode())


def locate(path: Path, all_mounts: Sequence[Mount]) -> Location:
    """Return where an absolute path without links lies on its filesystem."""
    text, mount, length = f"{path}/", None, 0
    for other in all_mounts:  # of several mounts at one point, the last is visible
        prefix = f"{str(other.path).rstrip('/')}/"
        if len(prefix) >= length and text.startswith(prefix):
            mount, length = other, len(prefix)
    if mount is None:  # the folder of the mount namespace that is not listed
        return Location("", path)
    return Location(mount.device, mount.root / path.relative_to(mount.path))


def views(location: Location, all_mounts: Sequence[Mount]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the paths under which a folder, or a part of it, is visible.

    Each comes with the components below the folder that it leads to: none if it is the folder itself.
    """
    for mount in all_mounts:
        if mount.device != location.device:
            continue
        if location.path.is_relative_to(mount.root):
            yield str(mount.path / location.path.relative_to(mount.root)), ()
        elif mount.root.is_relative_to(location.path):
            yield str(mount.path), mount.root.relative_to(location.path).parts


def disk_usage(root_fd: int) -> DiskUsage:
    """Return the disk space of the filesystem that holds a root (statvfs(3))."""
    status = os.fstatvfs(root_fd)
    block_bytes = status.f_frsize
    return DiskUsage(
        total_bytes=status.f_blocks * block_bytes,
        used_bytes=(status.f_blocks - status.f_bfree) * block_bytes,
        free_bytes=status.f_bavail * block_bytes,
    )
