"""Preservation of job logs: copies or links them before anything of the job is moved."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.copying import data_segments, remove_inherited_access, require_free_space, write_at
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.tree import FOLDER_FLAGS
from eemtcleanupd.deletion.truncate import BLOCK_BYTES
from eemtcleanupd.deletion.walk import Folder, walk
from eemtcleanupd.files import create_new, open_folder

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PART = ".eemtcleanupd.part"  # a constant name, because a long log name has no room for a suffix
_BLOCK_BYTES = 1 << 20
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


def keep_logs(
    root: Root, name: str, patterns: Sequence[str], destination: Path, *, stop: StopFlag | None = None
) -> int:
    """Keep the log files of a folder of a root.

    A log is hard-linked to its new place if possible, so that its space is not counted as freed.  Otherwise
    it is copied with its holes, flushed to the disk and renamed into place.  No copy starts on a disk that
    has no room for it, and a copy that fails or is stopped leaves nothing.  A log that an earlier attempt
    kept is skipped.  If the place has a different file of that name, the log gets a number after its name.

    Args:
        root: the root.
        name: a folder in it.
        patterns: shell patterns of file names (``retention.log_patterns``).
        destination: the folder for the logs, at their paths below ``name``; it is created.
        stop: ends a copy between two blocks.

    Returns:
        The number of kept logs.

    Raises:
        InterruptedError: ``stop`` was set, so logs can be missing.
        OSError: a log could not be kept; nothing of the job was changed.
    """
    count = 0
    stop = stop or StopFlag()

    def visit(folder: Folder, entry: os.DirEntry[str]) -> None:
        nonlocal count
        if not any(fnmatchcase(entry.name, pattern) for pattern in patterns):
            return
        if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            return
        try:
            target_fd = _make_folders(destination, folder.parts[1:])
            try:
                _remove_part(target_fd)  # of an attempt that was killed: it takes space
                _keep_file(folder.fd, entry.name, target_fd, stop)
            finally:
                os.close(target_fd)
        except OSError as error:
            path = f"{folder.path}/{entry.name}"
            raise OSError(error.errno, f"cannot keep the log: {error.strerror}", path) from error
        count += 1

    failed = walk(root, name, visit, stop=stop)
    _check_stop(stop)
    if failed:
        raise OSError(errno.EIO, "cannot keep the logs: a folder cannot be read completely", name)
    return count


def _check_stop(stop: StopFlag) -> None:
    if stop.is_set():
        raise InterruptedError(errno.EINTR, "the run was stopped")


def _remove_part(target_fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_PART, dir_fd=target_fd)


def _make_folders(base: Path, relative: Sequence[str]) -> int:
    """Create a base and folders below it, never through a link, and return a descriptor of the last.

    The parent of the base (``jobs``, which has one folder per job) also belongs to this program and is no
    link.  Links above it are followed as :func:`open_folder` does.
    """
    with open_folder(base.parent.parent, create=0o750) as folder:
        fd = os.dup(folder)
    for name in (base.parent.name, base.name, *relative):
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o750, dir_fd=fd)
        try:
            child_fd = os.open(name, FOLDER_FLAGS, dir_fd=fd)
        finally:
            os.close(fd)
        fd = child_fd
    return fd


def _keep_file(source_fd: int, name: str, target_fd: int, stop: StopFlag) -> None:
    source = os.open(name, _READ, dir_fd=source_fd)
    try:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            return  # replaced after the check of its type
        for number in itertools.count():
            target = name if number == 0 else f"{name}.{number}"
            try:
                # By descriptor, because the name might have become a link to another file.
                os.link(f"/proc/self/fd/{source}", target, dst_dir_fd=target_fd, follow_symlinks=True)
                return
            except FileExistsError:
                if _is_same(source, target_fd, target, stop):
                    return
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                _copy(source, target_fd, target, stop)
                return
    finally:
        os.close(source)


def _is_same(source: int, target_fd: int, target: str, stop: StopFlag) -> bool:
    """Tell whether a file is the log itself, or a copy that an interrupted attempt created."""
    status = os.fstat(source)
    target_status = os.stat(target, dir_fd=target_fd, follow_symlinks=False)
    if os.path.samestat(status, target_status):
        return True
    if not stat.S_ISREG(target_status.st_mode) or target_status.st_size != status.st_size:
        return False
    kept = os.open(target, _READ, dir_fd=target_fd)
    try:
        # What is a hole in both is the same.
        segments = sorted({*data_segments(source), *data_segments(kept)})
        return all(block == os.pread(kept, len(block), at) for at, block in _blocks(source, segments, stop))
    finally:
        os.close(kept)


def _blocks(fd: int, segments: Sequence[tuple[int, int]], stop: StopFlag) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of parts of a file, each with its offset."""
    for start, length in segments:
        position, end = start, start + length
        while position < end:
            _check_stop(stop)
            block = os.pread(fd, min(_BLOCK_BYTES, end - position), position)
            if not block:
                raise OSError(errno.EAGAIN, "it changed during the copy")
            yield position, block
            position += len(block)


def _copy(source: int, target_fd: int, target: str, stop: StopFlag) -> None:
    before = os.fstat(source)
    require_free_space(target_fd, before.st_blocks * BLOCK_BYTES)
    copy = create_new(Path(_PART), before.st_mode & 0o640, dir_fd=target_fd)
    try:
        _restrict(copy, before)
        for position, block in _blocks(source, data_segments(source), stop):
            # A block of zeros stays a hole, also where the filesystem of the log does not report holes.
            if block.count(0) < len(block):
                write_at(copy, block, position)
        os.ftruncate(copy, before.st_size)
        _require_unchanged(source, before)
        os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.fsync(copy)
        os.rename(_PART, target, src_dir_fd=target_fd, dst_dir_fd=target_fd)
    except BaseException:
        _remove_part(target_fd)
        raise
    finally:
        os.close(copy)
    os.fsync(target_fd)


def _restrict(copy: int, log: os.stat_result) -> None:
    """Let nobody read a copy who cannot read the log: that can be a hard link to a file of others."""
    remove_inherited_access(copy)
    if log.st_mode & stat.S_IROTH or os.fstat(copy).st_gid == log.st_gid:
        return
    try:
        os.fchown(copy, -1, log.st_gid)
    except PermissionError:
        os.fchmod(copy, log.st_mode & 0o600)


def _require_unchanged(fd: int, before: os.stat_result) -> None:
    after = os.fstat(fd)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise OSError(errno.EAGAIN, "it changed during the copy")
