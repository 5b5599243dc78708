"""Room that is set aside for a full disk: a run writes down what it is about to do before it deletes.

On a disk that is wholly full it could do neither.  So a file takes up some room in better times, and a run
that finds none gives it back first, as the ballast files of databases do.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eemtcleanupd.config import Config
from eemtcleanupd.model import TRASH_NAME
from eemtcleanupd.store.location import Location
from eemtcleanupd.units import human_size

log = logging.getLogger(__name__)

_IN_TRASH = ".ballast"
# Where there is less than this many times its size, the room is of more use to others.
_TIMES = 4


@dataclass(frozen=True, slots=True)
class Ballast:
    """A file that takes up room, ``size`` bytes of it where all is well."""

    path: Path
    size: int

    def give_back(self, most_bytes: int | None = None) -> str | None:
        """Free the file's room, or so much of it, where less than that is free.

        Returns:
            What was done, in words; None when nothing was.
        """
        try:
            held = self.held_bytes
            freed = held if most_bytes is None else min(held, most_bytes)
            free = _free_bytes(self.path.parent)
            if free >= freed:
                return None
            if freed == held:
                self.path.unlink()
            else:
                self._shorten(held - freed)
        except OSError as error:
            log.debug("%s is not given back: %s", self.path, error.strerror)
            return None
        return (
            f"the disk of {self.path.parent} is full ({human_size(free)} free): {human_size(freed)} that "
            f"were set aside (safety.ballast) are given back, so that what is done can be written down"
        )

    @property
    def held_bytes(self) -> int:
        """How much room the file takes up now."""
        with suppress(OSError):
            status = self.path.lstat()
            return status.st_size if stat.S_ISREG(status.st_mode) else 0
        return 0

    def take(self) -> None:
        """Make the file, where there is room enough; one of another size is made anew."""
        try:
            held = self.held_bytes
            if held == self.size or (held < self.size and _free_bytes(self.path.parent) < _TIMES * self.size):
                return
            self.path.unlink(missing_ok=True)
            if self.size:
                self._fill()
        except OSError as error:  # no run fails for want of it
            log.debug("%s is not set aside: %s", self.path, error.strerror)

    def _shorten(self, size: int) -> None:
        """Cut the file that we made, and nothing that somebody has put in its place."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not (stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid()):
                raise PermissionError(errno.EPERM, "it is not ours")
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def _fill(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size)
        except OSError:
            self.path.unlink()
            raise
        finally:
            os.close(descriptor)


def ballasts(config: Config) -> Iterable[Ballast]:
    """Return those of a job store: beside the database, and where the results are if that is another disk."""
    beside = Location.of(config).own_file("ballast")
    trash = config.paths.results / TRASH_NAME
    yield Ballast(beside, config.safety.ballast)
    if trash.is_dir() and _device(trash) != _device(beside.parent):
        yield Ballast(trash / _IN_TRASH, config.safety.ballast)


def _device(folder: Path) -> int | None:
    try:
        return folder.stat().st_dev
    except OSError:
        return None


def _free_bytes(folder: Path) -> int:
    figures = os.statvfs(folder)
    return figures.f_bavail * figures.f_frsize
