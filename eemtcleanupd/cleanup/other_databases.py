"""Other job databases of this machine: where to look if the configured one is missing or has no jobs.

The web interface uses ``/tmp/jobs.db`` wherever ``/tmp`` exists, and its repository contains an empty
``jobs.db``.  So it is easy to configure a file that the web interface does not use.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from eemtcleanupd.clock import file_time
from eemtcleanupd.config import Config
from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.deletion.open_files import open_processes
from eemtcleanupd.deletion.roots import identity
from eemtcleanupd.formatting import printable

_NAME = "jobs.db"
DEFAULT = Path("/tmp", _NAME)  # noqa: S108  (not ours: we only look at it)
"""Where the web interface has its database."""
PRIVATE_FOLDERS = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108
"""Folders that are private to a container, or to a service with ``PrivateTmp=``."""
_FOLDERS = (Path("/app"), Path("/app/db"), Path("/srv/eemt"))
_SUBFOLDERS = ("", "db", "data", "web-interface")


@dataclass(frozen=True, slots=True)
class OtherDatabase:
    """A file that can be the database of the web interface.

    Attributes:
        path: its path, as ``process`` sees it if there is one.
        changed_at: its last change.
        process: the process (``name[pid]``) that has it open, or that has it in a namespace of its own.
        is_of_store: whether the current folder of the process contains our results folder.
    """

    path: str
    changed_at: datetime
    process: str | None = None
    is_of_store: bool = False

    def __str__(self) -> str:
        seen = f", seen by process {self.process}" if self.process else ""
        return f"{printable(self.path)} (changed {self.changed_at.astimezone():%Y-%m-%d %H:%M}{seen})"


def where_to_look(config: Config) -> str:
    """Return, as a sentence, the other job databases that were found."""
    found = "; ".join(map(str, other_databases(config)))
    if found:
        return f"Other job databases on this machine: {found}."
    return f"No other {_NAME} was found. The web interface uses {DEFAULT} wherever {DEFAULT.parent} exists."


def other_databases(config: Config) -> list[OtherDatabase]:
    """Return the databases of running processes, ``/tmp/jobs.db``, and the newest one of the usual places.

    Each file is listed once; empty files and the configured database are not.  No file is opened: another
    user can have made it.  All of ``/proc`` is read, so a run that has no problem must not call this.
    """
    own = DatabaseAddress(config.paths.database).file
    seen = set() if own is None else {identity(own)}
    found = []
    for path, other in _candidates(config, own):
        key = identity(path)
        if key not in seen:
            seen.add(key)
            found.append(other)
    return found


def _candidates(config: Config, own: Path | None) -> Iterator[tuple[Path, OtherDatabase]]:
    """Yield paths with what they are; the same file can be among them several times."""
    yield from _of_processes(config.paths.results)
    yield from _existing([DEFAULT])
    folders = [config.paths.results.parent, config.paths.results.parent.parent]
    if own is not None:
        folders.append(own.parent)
    usual = [*(folder / name for folder in folders for name in _SUBFOLDERS), *_FOLDERS]
    excluded = None if own is None else identity(own)
    places = [place for place in (folder / _NAME for folder in usual) if identity(place) != excluded]
    if existing := list(_existing(places)):
        yield max(existing, key=lambda each: each[1].changed_at)


def _existing(paths: Iterable[Path]) -> Iterator[tuple[Path, OtherDatabase]]:
    for path in paths:
        if (changed_at := _changed_at(path)) is not None:
            yield path, OtherDatabase(str(path), changed_at)


def _of_processes(results: Path) -> Iterator[tuple[Path, OtherDatabase]]:
    """Yield the databases that processes have open, and those of a web interface with a ``/tmp`` of its own.

    The web interface opens its database for moments only.  Its working folder contains our results folder,
    in a container too: a bind mount keeps device and inode.
    """
    our_results, our_namespace = identity(results), os.readlink("/proc/self/ns/mnt")  # noqa: PTH115
    for process in open_processes():
        folder = Path("/proc", process.pid)
        is_of_store = our_results is not None and identity(folder / "cwd/results") == our_results
        places = [(target, Path(links[0])) for target, links in process.targets.items()]
        places = [(target, link) for target, link in places if Path(target).name == _NAME]
        if is_of_store and process.namespace != our_namespace:
            places.append((str(DEFAULT), folder / "root" / DEFAULT.relative_to("/")))
        for target, link in places:
            if (changed_at := _changed_at(link)) is not None:
                yield link, OtherDatabase(target, changed_at, process.label, is_of_store)


def _changed_at(path: Path) -> datetime | None:
    """Return when a file changed last, None if there is none or it is empty."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return None
    return file_time(status.st_mtime)
