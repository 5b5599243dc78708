"""The three folders of a job store, opened once; all else is relative to their descriptors."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eemtcleanupd.deletion.tree import FOLDER_FLAGS
from eemtcleanupd.errors import RootError
from eemtcleanupd.model import RootName


@dataclass(frozen=True, slots=True)
class Root:
    """An open root; ``path`` is resolved and only for messages and for looking up mounts."""

    name: RootName
    path: Path
    fd: int
    device: int
    inode: int

    def has(self, name: str) -> bool:
        """Tell whether there is an entry of this name, be it a dangling link."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def open_root(name: RootName, path: Path) -> Root:
    """Open a root.

    Raises:
        RootError: it is missing, is no folder, or may not be opened.
    """
    try:
        resolved = path.resolve(strict=True)
        fd = os.open(resolved, FOLDER_FLAGS)
    except FileNotFoundError as error:
        raise RootError(
            f"there is no {name} folder at {path}; is a disk not mounted, or paths.{name} wrong?"
        ) from error
    except NotADirectoryError as error:
        raise RootError(f"paths.{name} is {path}, which is not a folder") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symlinks
        reason = error.strerror if isinstance(error, OSError) else "a loop of symlinks"
        raise RootError(f"the {name} folder {path} cannot be opened: {reason}") from error
    status = os.fstat(fd)
    return Root(name, resolved, fd, status.st_dev, status.st_ino)


def check_roots(roots: Sequence[Root], database: Path | None) -> None:
    """Refuse roots in which a mistake could delete something else.

    Args:
        roots: all roots.
        database: the job database's file, None when it is on a server.

    Raises:
        RootError: a root is ``/``, somebody's home, another root or its parent, or holds the database.
    """
    homes = {identity for entry in pwd.getpwall() if (identity := _identity(Path(entry.pw_dir))) is not None}
    # Some system accounts have a folder such as /var/www as their home; nobody lives there, but to refuse
    # it is the safe side.
    database_parents = [] if database is None else _chain(database.resolve().parent)
    for root in roots:
        mine = (root.device, root.inode)
        chain = _chain(root.path)
        if len(chain) == 1:
            raise RootError(f"paths.{root.name} is /: name the folder that holds nothing but {root.name}")
        if mine in homes:
            raise RootError(f"paths.{root.name} is {root.path}, a home folder: name a folder inside it")
        if mine in database_parents:
            raise RootError(
                f"paths.{root.name} is {root.path}, which holds the job database {database}: "
                f"name the folder that holds nothing but {root.name}"
            )
        for other in roots:
            if other is not root and (other.device, other.inode) in chain:
                relation = "the same folder as" if other.inode == root.inode else "inside"
                raise RootError(
                    f"paths.{root.name} ({root.path}) is {relation} paths.{other.name} ({other.path}): "
                    f"each needs a folder of its own"
                )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def _chain(path: Path) -> list[tuple[int, int] | None]:
    """Return the identities of a folder and of all its parents."""
    return [_identity(each) for each in (path, *path.parents)]
