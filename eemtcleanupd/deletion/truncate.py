"""Freeing a big file in steps, so that a filesystem that is slow at it serves others in between.

To unlink a file of 100 GB may keep a filesystem's journal busy for seconds.  Truncating it step by step gives
others their turn, but it is no unlink: whoever still reads the file (a download that goes on) would find
its end, where an unlinked file stays whole until it is closed.  So a file is only truncated while the
kernel vouches that nobody else has it open: a write lease (``F_SETLEASE`` in fcntl(2)) is granted only
then, and whoever opens the file waits until we have let go of it.  In doubt (no lease on this filesystem,
no right to one, another link by now) nothing is truncated, and the file goes by one unlink as ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat

from eemtcleanupd.deletion.rate_limit import DeletionControls

_BLOCK_BYTES = 512
_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def truncate_gradually(item_fd: int, name: str, controls: DeletionControls) -> int:
    """Free a file's space down to the last step, for the caller to unlink.

    Args:
        item_fd: the item; nobody else can reach its entries by a path.
        name: its entry.
        controls: how large a step is, and how fast they may follow each other.

    Returns:
        The bytes that were freed; 0 where the file must go as a whole.
    """
    try:
        fd = os.open(name, _FLAGS, dir_fd=item_fd)
    except OSError:
        return 0
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not _take_lease(fd):
            return 0
        with contextlib.suppress(OSError):  # what is wrong with it, unlinking will tell
            _truncate(fd, status, controls)
        return (status.st_blocks - os.fstat(fd).st_blocks) * _BLOCK_BYTES
    finally:
        os.close(fd)  # and with it goes the lease


def _take_lease(fd: int) -> bool:
    """Take a write lease; False where somebody has the file open, or nobody can know."""
    try:
        # Who breaks the lease sends us a signal; this one is ignored unless somebody asks for it.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    return True


def _truncate(fd: int, status: os.stat_result, controls: DeletionControls) -> None:
    length, left = status.st_size, status.st_blocks * _BLOCK_BYTES
    while length and 0 < (chunk := controls.chunk_bytes) < left:
        if controls.stop.is_set() or not controls.acquire_bytes(chunk):
            return
        if os.fstat(fd).st_nlink != 1 or fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK:
            return  # it has got another name, or somebody waits to open it
        # A file with holes is longer than its space is large: as many steps as its space is worth.
        length -= max(1, length * chunk // left)
        os.ftruncate(fd, length)
        left = os.fstat(fd).st_blocks * _BLOCK_BYTES
