"""Mounted filesystems and their disk space, as the kernel reports them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eemtcleanupd.policy.pressure import DiskUsage

_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount point, its device as ``major:minor``, and the type of its filesystem."""

    path: Path
    device: str
    filesystem: str


def mounts() -> Iterator[Mount]:
    """Yield the mounts that this process sees (proc(5), mountinfo)."""
    with open("/proc/self/mountinfo", "rb") as mountinfo:  # noqa: PTH123  (a kernel file, read as bytes)
        for line in mountinfo:
            head, _, tail = line.partition(b" - ")
            fields = head.split()
            path = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), fields[4])
            yield Mount(Path(os.fsdecode(path)), fields[2].decode(), tail.split()[0].decode())


def disk_usage(root_fd: int) -> DiskUsage:
    """Return the disk space of the filesystem that holds a root (statvfs(3))."""
    status = os.fstatvfs(root_fd)
    block_bytes = status.f_frsize
    return DiskUsage(
        total_bytes=status.f_blocks * block_bytes,
        used_bytes=(status.f_blocks - status.f_bfree) * block_bytes,
        free_bytes=status.f_bavail * block_bytes,
    )
