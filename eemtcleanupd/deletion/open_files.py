"""Processes that have files open, as far as this user can see them (proc(5))."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eemtcleanupd.deletion.filesystem import Mount, mounts
from eemtcleanupd.deletion.truncate import BLOCK_BYTES
from eemtcleanupd.formatting import printable

_DELETED: Final = " (deleted)"
_LISTING: Final = os.O_DIRECTORY | os.O_NOFOLLOW
# O_TMPFILE contains O_DIRECTORY, and a descriptor with O_PATH cannot list.
_NOT_LISTING: Final = os.O_ACCMODE | (os.O_TMPFILE & ~os.O_DIRECTORY) | os.O_PATH


@dataclass(frozen=True, slots=True)
class Held:
    """A deleted file that still uses disk space, and the process that has it open (``name[pid]``)."""

    process: str
    size_bytes: int


def deleted_but_open(folders: list[Path]) -> Iterator[Held]:
    """Yield the deleted files of these folders that processes have open, each file once."""
    seen = set()
    for process in open_processes():
        for target, (link, *_) in process.targets.items():
            path = target.removesuffix(_DELETED)
            if path == target or not any(Path(path).is_relative_to(folder) for folder in folders):
                continue
            try:
                status = os.stat(link)  # noqa: PTH116
            except OSError:
                continue
            if not stat.S_ISREG(status.st_mode) or status.st_nlink or (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            yield Held(process.label, status.st_blocks * BLOCK_BYTES)


def users_of(path: Path) -> list[str]:
    """Return the other processes (``name[pid]``) that have a file open."""
    resolved = str(path.resolve())
    return sorted({process.label for process in open_processes() if resolved in process.targets})


@dataclass(frozen=True, slots=True)
class OpenProcess:
    """Another process with its open files: links in ``/proc`` by target, as its mount namespace names it."""

    pid: str
    label: str
    namespace: str
    targets: Mapping[str, Sequence[str]]

    def uses(self, target: str) -> bool:
        """Return whether the process still has a path open for more than to list it.

        Our own plans, ``find`` and ``rm`` only list.  Their descriptors have ``O_DIRECTORY`` and
        ``O_NOFOLLOW`` (proc(5): fdinfo), are for reading only, and often closed a moment later.
        """
        return any(_uses(link, target) for link in self.targets[target])

    def mounts(self) -> list[Mount]:
        """Return the mounts that the process sees, none when it has ended."""
        try:
            return mounts(self.pid)
        except OSError:
            return []


def open_processes() -> Iterator[OpenProcess]:
    """Yield all visible other processes that have files open."""
    own = str(os.getpid())
    with os.scandir("/proc") as processes:
        for folder in processes:
            if not folder.name.isdecimal() or folder.name == own:
                continue
            try:
                with os.scandir(f"{folder.path}/fd") as links:
                    targets: dict[str, list[str]] = {}
                    for target, link in _targets(links):
                        targets.setdefault(target, []).append(link)
                if targets:
                    namespace = os.readlink(f"{folder.path}/ns/mnt")  # noqa: PTH115
                    name = Path(folder.path, "comm").read_text(encoding="utf-8", errors="replace").strip()
                    yield OpenProcess(folder.name, f"{printable(name)}[{folder.name}]", namespace, targets)
            except OSError:
                continue


def _targets(links: Iterator[os.DirEntry[str]]) -> Iterator[tuple[str, str]]:
    """Yield the paths that descriptors lead to; sockets and pipes have none."""
    for link in links:
        with contextlib.suppress(OSError):
            target = os.readlink(link.path)  # noqa: PTH115
            if target.startswith("/"):
                yield target, link.path


def _uses(link: str, target: str) -> bool:
    """Return whether a descriptor uses a path; in doubt it does."""
    try:
        is_listing = _flags(link) & (_LISTING | _NOT_LISTING) == _LISTING
        return not is_listing and os.readlink(link) == target  # noqa: PTH115  (its number may be another's now)
    except (FileNotFoundError, ProcessLookupError):  # it was closed
        return False
    except (OSError, KeyError, ValueError):
        return True


def _flags(link: str) -> int:
    """Return the flags with which a descriptor was opened.

    Raises:
        OSError: it was closed.
    """
    info = Path(link.replace("/fd/", "/fdinfo/")).read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    return int(fields["flags"], 8)
