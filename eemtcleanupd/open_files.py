"""Processes that have files open, as far as this user can see them (proc(5))."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eemtcleanupd.deletion.truncate import BLOCK_BYTES
from eemtcleanupd.formatting import printable

_DELETED: Final = " (deleted)"


@dataclass(frozen=True, slots=True)
class Held:
    """A deleted file that still uses disk space, and the process that has it open (``name[pid]``)."""

    process: str
    size_bytes: int


def deleted_but_open(folders: list[Path]) -> Iterator[Held]:
    """Yield the deleted files of these folders that processes have open, each file once."""
    seen = set()
    for process, link, target in _open_descriptors():
        path = target.removesuffix(_DELETED)
        if path == target or not any(Path(path).is_relative_to(folder) for folder in folders):
            continue
        try:
            status = link.stat()
        except OSError:
            continue
        if not stat.S_ISREG(status.st_mode) or status.st_nlink or (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        yield Held(process, status.st_blocks * BLOCK_BYTES)


def users_of(path: Path) -> list[str]:
    """Return the other processes (``name[pid]``) that have a file open."""
    resolved = str(path.resolve())
    return sorted({process for process, _, target in _open_descriptors() if target == resolved})


def _open_descriptors() -> Iterator[tuple[str, Path, str]]:
    """Yield the open descriptors of all visible other processes: process, link, target."""
    for folder in Path("/proc").glob("[0-9]*"):
        if folder.name == str(os.getpid()):
            continue
        try:
            name = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
            links = list((folder / "fd").iterdir())
        except OSError:
            continue
        for link in links:
            try:
                target = str(link.readlink())
            except OSError:
                continue
            yield f"{printable(name)}[{folder.name}]", link, target
