"""Logs that outlive their job: kept before anything of the job is moved."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from eemtcleanupd.deletion.roots import FOLDER_FLAGS, Root
from eemtcleanupd.deletion.walk import Folder, walk

_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


def keep_logs(root: Root, name: str, patterns: Sequence[str], destination: Path) -> int:
    """Keep the log files of a folder of a root.

    A log is linked to its new place where that is possible, so that its space is not counted as freed;
    else it is copied, written through to the disk and renamed into place.  Where an earlier attempt has
    kept the same log already nothing happens; a different file of that name is left alone, and the log
    gets a number behind its name.

    Args:
        root: the root.
        name: a folder in it.
        patterns: shell patterns of file names (``retention.log_patterns``).
        destination: the folder that gets them, at their paths below ``name``; it is made.

    Returns:
        How many logs are kept.

    Raises:
        OSError: one could not be kept; nothing of the job was changed.
    """
    kept = 0

    def visit(folder: Folder, entry: os.DirEntry[str]) -> None:
        nonlocal kept
        if not any(fnmatchcase(entry.name, pattern) for pattern in patterns):
            return
        if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            return
        relative = folder.path.split("/")[1:]
        target_fd = _make_folders(destination, relative)
        try:
            _keep(folder.fd, entry.name, target_fd)
        except OSError as error:
            cause = OSError(error.errno, f"the log could not be kept: {error.strerror}", folder.path)
            raise _KeepError(cause) from error
        finally:
            os.close(target_fd)
        kept += 1

    try:
        errors = walk(root, name, visit)
    except _KeepError as error:
        raise error.cause from error
    if errors:
        raise OSError(errno.EIO, "a folder could not be read whole, so its logs cannot be kept", name)
    return kept


class _KeepError(Exception):
    """Carries an error out of the walk, which goes on after those that are its own."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _make_folders(base: Path, relative: Sequence[str]) -> int:
    """Make folders below a base, never through a link, and return a descriptor of the last."""
    base.mkdir(mode=0o750, parents=True, exist_ok=True)
    fd = os.open(base, FOLDER_FLAGS)
    for name in relative:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o750, dir_fd=fd)
        try:
            below = os.open(name, FOLDER_FLAGS, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _keep(source_fd: int, name: str, target_fd: int) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    source = os.open(name, flags, dir_fd=source_fd)
    try:
        status = os.fstat(source)
        number = 0
        while True:
            target = name if number == 0 else f"{name}.{number}"
            try:
                os.link(name, target, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
                return
            except FileExistsError:
                if _is_same(target_fd, target, status):
                    return
                number += 1
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                _copy(source, status, target_fd, target)
                return
    finally:
        os.close(source)


def _is_same(target_fd: int, target: str, source: os.stat_result) -> bool:
    """Tell whether a file is the log itself, or a copy of it that an interrupted attempt made."""
    there = os.stat(target, dir_fd=target_fd, follow_symlinks=False)
    is_link = (there.st_dev, there.st_ino) == (source.st_dev, source.st_ino)
    return is_link or (there.st_size, there.st_mtime_ns) == (source.st_size, source.st_mtime_ns)


def _copy(source: int, status: os.stat_result, target_fd: int, target: str) -> None:
    part = f".{target}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    copy = os.open(part, flags, 0o640, dir_fd=target_fd)
    try:
        with os.fdopen(source, "rb", closefd=False) as reader, os.fdopen(copy, "wb", closefd=False) as writer:
            shutil.copyfileobj(reader, writer)
        os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(copy)
    finally:
        os.close(copy)
    os.rename(part, target, src_dir_fd=target_fd, dst_dir_fd=target_fd)
    os.fsync(target_fd)
