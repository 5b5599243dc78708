"""Room that is set aside for a full disk: a run writes down what it is about to do before it deletes.

On a disk that is wholly full it could do neither.  So files take up some room in better times, and a run
that finds next to none gives them back first, as the ballast files of databases do.  A small one beside the
database is for whatever comes before it is sure that there is a run: a lock, a log, a line of the audit log.
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
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.tree import FOLDER_FLAGS
from eemtcleanupd.formatting import human_size
from eemtcleanupd.model import TRASH_NAME
from eemtcleanupd.store.address import StoreAddress

log = logging.getLogger(__name__)

_IN_TRASH = ".ballast"
_FIRST_BYTES = 1 << 20
# With more than that free a run can begin, however much is set aside.
_LITTLE_BYTES = 16 << 20
# Where there is less than this many times its size, the room is of more use to others.
_TIMES = 4
_BLOCK_BYTES = 512  # the unit of st_blocks (stat(2))


@dataclass(frozen=True, slots=True)
class Ballast:
    """A file that takes up room, ``size`` bytes of it where all is well; ``fd`` is the folder, open."""

    folder: Path
    fd: int
    name: str
    size: int

    @property
    def allocated_bytes(self) -> int:
        """How much room it takes up now, and would give back."""
        try:
            status = os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return 0
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            return 0
        return min(status.st_size, status.st_blocks * _BLOCK_BYTES)

    def release(self) -> str | None:
        """Remove the file where next to nothing is free; returns what was done, in words."""
        held = self.allocated_bytes
        try:
            free = _free_bytes(self.fd)
            if free >= min(held, _LITTLE_BYTES):
                return None
            os.unlink(self.name, dir_fd=self.fd)
        except OSError as error:
            log.debug("%s/%s is not given back: %s", self.folder, self.name, error.strerror)
            return None
        return (
            f"only {human_size(free)} are free on the disk of {self.folder}: {human_size(held)} that were "
            f"set aside (safety.ballast) are given back, so that what is done can be written down"
        )

    def allocate(self) -> None:
        """Make the file, where there is room enough; one of another size is made anew."""
        held = self.allocated_bytes
        try:
            if held == self.size or (held < self.size and _free_bytes(self.fd) < _TIMES * self.size):
                return
            with suppress(FileNotFoundError):
                os.unlink(self.name, dir_fd=self.fd)
            if self.size:
                self._fill()
        except OSError as error:  # no run fails for want of it
            log.debug("%s/%s is not set aside: %s", self.folder, self.name, error.strerror)

    def _fill(self) -> None:
        descriptor = os.open(
            self.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.fd
        )
        try:
            os.posix_fallocate(descriptor, 0, self.size)
        except OSError:
            os.unlink(self.name, dir_fd=self.fd)
            raise
        finally:
            os.close(descriptor)


def release_initial_ballast(config: Config) -> str | None:
    """Give back what is set aside for a lock, a log and the like; returns what was done, in words."""
    with ExitStack() as stack:
        first = next(_beside(config, stack), None)
        return None if first is None else first.release()


def release_ballast(config: Config, roots: Iterable[Root]) -> list[str]:
    """Give back what is set aside on disks that are full; returns what was done, in words."""
    with ExitStack() as stack:
        return [told for each in _all(config, roots, stack) if (told := each.release())]


def allocate_ballast(config: Config, roots: Iterable[Root]) -> None:
    """Set room aside on each disk that a run writes to (``safety.ballast``), where there is enough."""
    with ExitStack() as stack:
        for each in _all(config, roots, stack):
            each.allocate()


def ballast_bytes(config: Config, roots: Iterable[Root]) -> int:
    """Return how much is set aside."""
    with ExitStack() as stack:
        return sum(each.allocated_bytes for each in _all(config, roots, stack))


def _all(config: Config, roots: Iterable[Root], stack: ExitStack) -> Iterator[Ballast]:
    covered = set()
    for each in _beside(config, stack):
        with suppress(OSError):
            covered.add(os.fstat(each.fd).st_dev)
        yield each
    for root in roots:
        fd = _trash_of(root, stack)
        if fd is not None:
            # One that an earlier run left where by now another covers the disk is made away with.
            size = 0 if root.device in covered else config.safety.ballast
            covered.add(root.device)
            yield Ballast(root.path / TRASH_NAME, fd, _IN_TRASH, size)


def _beside(config: Config, stack: ExitStack) -> Iterator[Ballast]:
    """Yield those beside the database (where SQLite's own journal is) or, on a server, in the logs' folder.

    The small one comes first.
    """
    file = StoreAddress.of(config).file
    # Not by host: each container has a name of its own, and they would fill the disk.
    real = config.paths.logs / "eemtcleanupd" if file is None else Path(os.path.realpath(file))
    stem = real.name if file is None else f"{real.name}.eemtcleanupd"
    try:
        fd = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        log.debug("%s cannot be looked at: %s", real.parent, error.strerror)
        return
    stack.callback(os.close, fd)
    size = config.safety.ballast
    yield Ballast(real.parent, fd, f"{stem}.ballast.first", min(size, _FIRST_BYTES))
    yield Ballast(real.parent, fd, f"{stem}.ballast", size)


def _trash_of(root: Root, stack: ExitStack) -> int | None:
    """Open a root's trash as a run does, if it is ours alone; None where it is not, or is not there."""
    try:
        fd = os.open(TRASH_NAME, FOLDER_FLAGS, dir_fd=root.fd)
        stack.callback(os.close, fd)
        status = os.fstat(fd)
    except OSError:
        return None
    is_ours = status.st_uid in {os.geteuid(), 0} and not status.st_mode & 0o022
    return fd if is_ours and status.st_dev == root.device else None


def _free_bytes(fd: int) -> int:
    figures = os.fstatvfs(fd)
    return figures.f_bavail * figures.f_frsize
