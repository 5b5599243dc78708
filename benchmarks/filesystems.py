"""Filesystems that only one measurement uses, so that no contender inherits the work of another."""

from __future__ import annotations

import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_IMAGE_BYTES = 16 << 30  # sparse: only what is written takes space
_MKFS = ("mkfs.ext4", "-q", "-F", "-i", "8192", "-J", "size=64", "-E", "lazy_itable_init=1")
_MEMORY = Path("/dev/shm")

Build = Callable[[Path], None]


class Filesystem(ABC):
    """Gives job stores that are all built in the same way.

    Args:
        folder: where images and mount points are made.
        build: builds the store in a folder that does not exist.
    """

    def __init__(self, folder: Path, build: Build) -> None:
        self._folder = folder
        self._build = build

    @abstractmethod
    @contextmanager
    def fresh(self) -> Iterator[Path]:
        """Yield a store that nobody has used, on the disk and with warm caches."""


class DiskImage(Filesystem):
    """An ext4 in a file on the disk, built once and copied for each measurement."""

    def __init__(self, folder: Path, build: Build) -> None:
        super().__init__(folder, build)
        self._template = folder / "template.img"
        self._template.unlink(missing_ok=True)  # of the shape before
        with self._template.open("wb") as image:
            image.truncate(_IMAGE_BYTES)
        subprocess.run([*_MKFS, self._template], check=True)
        with self._mounted(self._template) as place:
            build(place / "store")

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        copy = self._folder / "round.img"
        subprocess.run(["cp", "--sparse=auto", self._template, copy], check=True)
        try:
            with self._mounted(copy) as place:
                _warm(place)
                yield place / "store"
        finally:
            copy.unlink()

    @contextmanager
    def _mounted(self, image: Path) -> Iterator[Path]:
        # Direct: what a contender has to wait for is the disk, not the page cache below the image.
        losetup = ["losetup", "--find", "--show", "--direct-io=on", str(image)]
        device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
        try:
            with _mount(self._folder, "-o", "noinit_itable", device) as place:
                yield place
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)


class Memory(Filesystem):
    """A tmpfs for each measurement."""

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        with _mount(self._folder, "-t", "tmpfs", "-o", "size=80%,nr_inodes=0", "tmpfs") as place:
            self._build(place / "store")
            yield place / "store"


class Folder(Filesystem):
    """A folder for each measurement, where filesystems cannot be mounted."""

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        store = self._folder / "store"
        self._build(store)
        _warm(store)
        try:
            yield store
        finally:
            subprocess.run(["rm", "-rf", store], check=True)  # shutil.rmtree cannot remove deep trees


@contextmanager
def disk(folder: Path, build: Build) -> Iterator[Filesystem]:
    """Give filesystems on the disk of a folder."""
    yield DiskImage(folder, build) if can_mount(folder) else Folder(folder, build)


@contextmanager
def memory(folder: Path, build: Build) -> Iterator[Filesystem]:
    """Give filesystems in memory."""
    if can_mount(folder):
        yield Memory(folder, build)
        return
    place = _MEMORY / folder.name
    place.mkdir()
    try:
        yield Folder(place, build)
    finally:
        shutil.rmtree(place)


def can_mount(folder: Path) -> bool:
    """Tell whether this process can create and mount ext4 images in a folder."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("mkfs.ext4", "losetup", "mount"))):
        return False
    try:
        DiskImage(folder, Path.mkdir)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@contextmanager
def _mount(folder: Path, *arguments: str) -> Iterator[Path]:
    place = folder / "mount"
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", *arguments, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def _warm(place: Path) -> None:
    """Read all folders and inodes, and wait until the disk has nothing left to do."""
    subprocess.run(["find", place, "-size", "+1", "-false"], check=True)  # -size needs each inode
    os.sync()
