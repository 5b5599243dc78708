"""Who has files open, as far as this user may see it (proc(5))."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eemtcleanupd.formatting import printable

_DELETED: Final = " (deleted)"
_BLOCK_BYTES = 512  # the unit of st_blocks (stat(2))


@dataclass(frozen=True, slots=True)
class Held:
    """A deleted file that takes space: the process that holds it (``name[pid]``) and its bytes."""

    process: str
    size_bytes: int


def deleted_but_open(folders: list[Path]) -> Iterator[Held]:
    """Yield deleted files of these folders that processes hold open, each file once."""
    seen = set()
    for process, link, target in _open_descriptors():
        place = target.removesuffix(_DELETED)
        if place == target or not any(Path(place).is_relative_to(folder) for folder in folders):
            continue
        try:
            status = link.stat()
        except OSError:
            continue
        if not stat.S_ISREG(status.st_mode) or status.st_nlink or (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        yield Held(process, status.st_blocks * _BLOCK_BYTES)


def users_of(path: Path) -> list[str]:
    """Return the other processes that have a file open."""
    resolved = str(path.resolve())
    return sorted({process for process, _, target in _open_descriptors() if target == resolved})


def _open_descriptors() -> Iterator[tuple[str, Path, str]]:
    """Yield what all other processes, as far as we may see them, have open: process, link, target."""
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
