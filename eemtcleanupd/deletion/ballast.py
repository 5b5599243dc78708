"""Ballast: files that reserve disk space, so that a run on a full disk can write its records.

A run records each deletion before it starts it, which fails on a full disk.  So ballast files reserve some
space, and a run that finds the disk full removes them first.  A small file beside the database reserves space
for the start of a run: its lock, its log and its first line in the audit log.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from eemtcleanupd.config import Config
from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.tree import FOLDER_FLAGS
from eemtcleanupd.files import create_new
from eemtcleanupd.formatting import human_size
from eemtcleanupd.model import TRASH_NAME
from eemtcleanupd.privileges import with_file_access

log = logging.getLogger(__name__)

_NAME_IN_TRASH = ".ballast"
_INITIAL_BYTES = 1 << 20
# A run can start with more free space than this, whatever the size of the ballast.
_ENOUGH_BYTES = 16 << 20
# Ballast is allocated only if this many times its size is free.
_MIN_FREE_FACTOR = 4
_BLOCK_BYTES = 512  # the unit of st_blocks (stat(2))


@dataclass(frozen=True, slots=True)
class Ballast:
    """A file that reserves ``size`` bytes; ``fd`` is the open folder."""

    folder: Path
    fd: int
    name: str
    size: int

    @property
    def allocated_bytes(self) -> int:
        """The space that the file takes up now."""
        try:
            status = os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return 0
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            return 0
        return min(status.st_size, status.st_blocks * _BLOCK_BYTES)

    def release(self) -> str | None:
        """Remove the file if almost no space is free; return a warning, else None."""
        allocated = self.allocated_bytes
        try:
            free = free_bytes(self.fd)
            if free >= min(allocated, _ENOUGH_BYTES):
                return None
            os.unlink(self.name, dir_fd=self.fd)
        except OSError as error:
            log.debug("Cannot release %s/%s: %s", self.folder, self.name, error.strerror)
            return None
        return (
            f"The disk of {self.folder} is full ({human_size(free)} free). Released {human_size(allocated)} "
            f"of ballast (safety.ballast) so that the run can write its records."
        )

    def allocate(self) -> None:
        """Create the file if there is enough space; replace one of another size."""
        allocated = self.allocated_bytes
        try:
            if allocated == self.size:
                return
            if allocated < self.size and free_bytes(self.fd) < _MIN_FREE_FACTOR * self.size:
                return
            with suppress(FileNotFoundError):
                os.unlink(self.name, dir_fd=self.fd)
            if self.size:
                self._fill()
        except OSError as error:  # no run fails because of missing ballast
            log.debug("Cannot allocate %s/%s: %s", self.folder, self.name, error.strerror)

    def _fill(self) -> None:
        descriptor = create_new(Path(self.name), dir_fd=self.fd)
        try:
            os.posix_fallocate(descriptor, 0, self.size)
        except OSError:
            os.unlink(self.name, dir_fd=self.fd)
            raise
        finally:
            os.close(descriptor)


def release_initial_ballast(config: Config) -> str | None:
    """Release the small file if almost no space is free; return a warning, else None."""
    with ExitStack() as stack:
        first = next(_beside_database(config, stack), None)
        return None if first is None else first.release()


def release_ballast(config: Config, roots: Iterable[Root]) -> list[str]:
    """Release the ballast on full disks; return warnings."""
    with ExitStack() as stack:
        return [message for ballast in _all(config, roots, stack) if (message := ballast.release())]


def allocate_ballast(config: Config, roots: Iterable[Root]) -> None:
    """Allocate ballast (``safety.ballast``) on each disk that a run writes to, if it has enough space."""
    with ExitStack() as stack:
        for ballast in _all(config, roots, stack):
            ballast.allocate()


def ballast_bytes(config: Config, roots: Iterable[Root]) -> int:
    """Return how much ballast is allocated."""
    with ExitStack() as stack:
        return sum(ballast.allocated_bytes for ballast in _all(config, roots, stack))


def _all(config: Config, roots: Iterable[Root], stack: ExitStack) -> Iterator[Ballast]:
    covered = set()
    for ballast in _beside_database(config, stack):
        with suppress(OSError):
            covered.add(os.fstat(ballast.fd).st_dev)
        yield ballast
    for root in roots:
        fd = _open_trash(root, stack)
        if fd is not None:
            # If another file now covers this disk, the file of an earlier run is removed.
            size = 0 if root.device in covered else config.safety.ballast
            covered.add(root.device)
            yield Ballast(root.path / TRASH_NAME, fd, _NAME_IN_TRASH, size)


def _beside_database(config: Config, stack: ExitStack) -> Iterator[Ballast]:
    """Yield the files beside a SQLite database, or in ``paths.logs`` for a server; the small one first."""
    file = DatabaseAddress(config.paths.database).file
    # No host in the name: each container has its own, and their files would fill the disk.
    real = config.paths.logs / "eemtcleanupd" if file is None else Path(os.path.realpath(file))
    stem = real.name if file is None else f"{real.name}.eemtcleanupd"
    try:
        fd = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        log.debug("Cannot open %s: %s", real.parent, error.strerror)
        return
    stack.callback(os.close, fd)
    size = config.safety.ballast
    yield Ballast(real.parent, fd, f"{stem}.ballast.first", min(size, _INITIAL_BYTES))
    yield Ballast(real.parent, fd, f"{stem}.ballast", size)


@with_file_access
def _open_trash(root: Root, stack: ExitStack) -> int | None:
    """Open a root's trash if it exists and only this user can write to it."""
    try:
        fd = os.open(TRASH_NAME, FOLDER_FLAGS, dir_fd=root.fd)
        stack.callback(os.close, fd)
        status = os.fstat(fd)
    except OSError:
        return None
    is_private = status.st_uid in {os.geteuid(), 0} and not status.st_mode & 0o022
    return fd if is_private and status.st_dev == root.device else None


def free_bytes(fd: int) -> int:
    """Return the bytes free for users other than root on the filesystem of an open file."""
    figures = os.fstatvfs(fd)
    return figures.f_bavail * figures.f_frsize
