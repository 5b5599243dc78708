"""Copies of files: their parts with data, access that they must not inherit, and room for them on a disk."""

from __future__ import annotations

import errno
import heapq
import os
from collections.abc import Iterator
from typing import Final

from eemtcleanupd.deletion.filesystem import disk_usage
from eemtcleanupd.deletion.truncate import BLOCK_BYTES
from eemtcleanupd.formatting import human_size

FREE_RESERVE_BYTES: Final = 16 << 20
"""The space that a copy leaves free for the log, the audit log and the database.

A run writes less than 1 KB about each job, so this is room for the records of at least 16,000 jobs.
"""
_MAX_HOLES = 4096
"""A file with more holes keeps its largest ones, so that the list of a file with millions stays short."""


def data_segments(fd: int) -> list[tuple[int, int]]:
    """Return offset and length of each part of a file that is not a hole (lseek(2), SEEK_DATA).

    On a filesystem that does not report holes, the complete file is one part.
    """
    status = os.fstat(fd)
    size = status.st_size
    if status.st_blocks * BLOCK_BYTES >= size:
        return [(0, size)] if size else []
    segments = []
    position = 0
    largest = heapq.nlargest(_MAX_HOLES, ((end - start, start) for start, end in _holes(fd, size)))
    for start, length in sorted((start, length) for length, start in largest):
        if start > position:
            segments.append((position, start - position))
        position = start + length
    if position < size:
        segments.append((position, size - position))
    return segments


def _holes(fd: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_HOLE)
        except OSError:
            return  # the filesystem does not report holes
        if start >= size:
            return
        try:
            end = min(os.lseek(fd, start, os.SEEK_DATA), size)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data after this hole
                return
            end = size
        if end <= start:
            return
        yield start, end


def write_at(fd: int, data: bytes, position: int) -> None:
    """Write all of the data into an open file, from a position on."""
    while data:
        written = os.pwrite(fd, data, position)
        data, position = data[written:], position + written


def remove_inherited_access(fd: int) -> None:
    """Remove the access control lists that a new file or folder has from its folder.

    They can give access to users who have none to the original.

    Raises:
        OSError: they cannot be removed.
    """
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        try:
            os.removexattr(fd, name)
        except OSError as error:
            if error.errno not in {errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS}:
                raise


def require_free_space(fd: int, needed_bytes: int) -> None:
    """Refuse a copy that does not fit on the disk of an open folder, with the reserve left free.

    Raises:
        OSError: the disk has too little space (``ENOSPC``).
    """
    usage = disk_usage(fd)
    if usage.total_bytes and usage.free_bytes < needed_bytes + FREE_RESERVE_BYTES:
        raise OSError(
            errno.ENOSPC,
            f"the copy needs {human_size(needed_bytes)} and {human_size(FREE_RESERVE_BYTES)} must stay free, "
            f"but its disk has only {human_size(usage.free_bytes)}",
        )
