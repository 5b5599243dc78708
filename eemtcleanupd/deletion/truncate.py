"""Gradual truncation of a big file before its unlink, so that a slow filesystem stays responsive.

The unlink of a 100 GB file can keep a filesystem's journal busy for seconds.  Truncation in steps lets other
requests through.  But a reader of a truncated file (such as a running download) hits an early end, while an
unlinked file stays complete until it is closed.  So a file is truncated only while no other process has it
open.  The kernel guarantees that with a write lease (``F_SETLEASE`` in fcntl(2)): it grants the lease only in
that case, and makes a process that opens the file wait until the lease is released.  When in doubt (no lease
on this filesystem, no permission, another link), nothing is truncated and one unlink removes the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat

from eemtcleanupd.deletion.rate_limit import DeletionControls

BLOCK_BYTES = 512
"""The unit of ``st_blocks``, on every filesystem (stat(2))."""
_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def truncate_gradually(item_fd: int, name: str, controls: DeletionControls) -> int:
    """Free the space of a file except the last step, before the caller unlinks it.

    Args:
        item_fd: the item; other users cannot reach its entries by a path.
        name: the entry.
        controls: the size of a step, and the rate limit.

    Returns:
        The number of bytes freed; 0 when the file must be removed by one unlink.
    """
    try:
        fd = os.open(name, _FLAGS, dir_fd=item_fd)
    except OSError:
        return 0
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not _acquire_lease(fd):
            return 0
        with contextlib.suppress(OSError):  # the unlink reports the cause
            _truncate(fd, status, controls)
        return (status.st_blocks - os.fstat(fd).st_blocks) * BLOCK_BYTES
    finally:
        os.close(fd)  # this releases the lease


def _acquire_lease(fd: int) -> bool:
    """Acquire a write lease; return False when another process has the file open, or that is unknown."""
    try:
        # A process that breaks the lease sends a signal to the lease holder.  SIGURG is ignored by default.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    return True


def _truncate(fd: int, status: os.stat_result, controls: DeletionControls) -> None:
    length, allocated_bytes = status.st_size, status.st_blocks * BLOCK_BYTES
    while length and 0 < (chunk := controls.chunk_bytes) < allocated_bytes:
        if controls.stop.is_set() or not controls.acquire_bytes(chunk):
            return
        if os.fstat(fd).st_nlink != 1 or fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK:
            return  # the file has another link, or another process is waiting to open it
        # A sparse file is longer than its allocated space: the space determines the number of steps.
        length -= max(1, length * chunk // allocated_bytes)
        os.ftruncate(fd, length)
        allocated_bytes = os.fstat(fd).st_blocks * BLOCK_BYTES
