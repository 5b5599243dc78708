"""The three root folders of a job store, opened once, and an index of the uploads by job id.

All other access is relative to the descriptors of the roots.  The uploads whose names start with an id
(``<id>_*``) are indexed, instead of listed for every batch.
"""

from __future__ import annotations

import errno
import os
import pwd
import sqlite3
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eemtcleanupd.batches import batched
from eemtcleanupd.deletion.filesystem import locate, mounts
from eemtcleanupd.errors import RootError
from eemtcleanupd.files import open_folder
from eemtcleanupd.model import Artifact, Found, RootName
from eemtcleanupd.policy.ownership import possible_owner_ids
from eemtcleanupd.privileges import can_exceed_rights


@dataclass(frozen=True, slots=True)
class Root:
    """An open root; ``path`` is resolved, and used only in messages and to look up mounts."""

    name: RootName
    path: Path
    fd: int
    device: int
    inode: int

    def has(self, name: str, *, in_doubt: bool = True) -> bool:
        """Return whether an entry of this name exists; a dangling link exists.

        ``in_doubt`` is returned if the entry cannot be read.
        """
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError:
            return in_doubt
        return True

    def listed(self, names: Set[str]) -> set[str]:
        """Return those of these names that the folder contains, compared byte for byte."""
        with os.scandir(self.fd) as listing:
            return {entry.name for entry in listing if entry.name in names}

    def ignores_case(self) -> bool:
        """Return whether an entry can be opened under a name in another case (ext4 casefold, NTFS, APFS)."""
        with os.scandir(self.fd) as listing:
            for entry in listing:
                if (other := entry.name.swapcase()) != entry.name and other.isascii():
                    try:
                        status = os.stat(other, dir_fd=self.fd, follow_symlinks=False)
                    except OSError:
                        return False
                    return status.st_ino == entry.inode()
        return False

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def open_root(name: RootName, path: Path) -> Root:
    """Open a root.

    A link is followed only if no other user can redirect it.  Otherwise that user could direct the first run,
    which has no recorded roots, to any folder.

    Raises:
        RootError: the root is missing, is not a folder, or cannot be opened.  Or it belongs to another user,
            and this process has capabilities to delete the files of all users.
    """
    try:
        with open_folder(path) as folder:
            fd = os.dup(folder)
    except FileNotFoundError as error:
        raise RootError(
            f"The {name} folder {path} does not exist. Mount its disk or correct paths.{name}."
        ) from error
    except NotADirectoryError as error:
        raise RootError(f"paths.{name} is {path}, which is not a folder.") from error
    except OSError as error:
        reason = "symlink loop" if error.errno == errno.ELOOP else error.strerror
        advice = f" Set paths.{name} to the folder that it leads to." if error.errno == errno.EPERM else ""
        raise RootError(f"Cannot open the {name} folder {path}: {reason}.{advice}") from error
    status = os.fstat(fd)
    # The owner of the store could redirect a configured path, for example to /etc.
    if can_exceed_rights(status):
        os.close(fd)
        # No command to run: advice to change the owner would help the user who put a link there.
        raise RootError(
            f"The {name} folder {path} belongs to user {status.st_uid}. This process works as user "
            f"{os.geteuid()} and can delete the files of all users, so it uses only folders of user "
            f"{os.geteuid()}. Check where the path leads: another user might have put a link there."
        )
    resolved = Path(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115  (the folder that is open)
    return Root(name, resolved, fd, status.st_dev, status.st_ino)


def check_roots(roots: Sequence[Root], database: Path | None) -> None:
    """Refuse roots in which a mistake could delete unrelated data.

    Args:
        roots: all roots.
        database: the file of the job database; None when the database is on a server.

    Raises:
        RootError: a root is ``/``, a home folder, another root or its parent, or holds the database.
    """
    # Some system accounts have a folder such as /var/www as their home.  Refusing it too is safe.
    homes = {home for entry in pwd.getpwall() if (home := identity(Path(entry.pw_dir))) is not None}
    database_parents = [] if database is None else _chain(database.resolve().parent)
    all_mounts = mounts()
    for root in roots:
        own = (root.device, root.inode)
        chain = _chain(root.path)
        advice = f"Set it to a folder that holds nothing but {root.name}."
        if len(chain) == 1:
            raise RootError(f"paths.{root.name} is /. {advice}")
        if own in homes:
            raise RootError(f"paths.{root.name} is {root.path}, a home folder. {advice}")
        if own in database_parents:
            raise RootError(
                f"paths.{root.name} is {root.path}, which holds the job database {database}. {advice}"
            )
        for other in roots:
            if other is root:
                continue
            below = locate(root.path, all_mounts).inside(locate(other.path, all_mounts))
            if below is not None or (other.device, other.inode) in chain:
                relation = "the same folder as" if other.inode == root.inode else "inside"
                raise RootError(
                    f"paths.{root.name} ({root.path}) is {relation} paths.{other.name} ({other.path}). "
                    "Each root needs its own folder."
                )


def identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a path, None if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def _chain(path: Path) -> list[tuple[int, int] | None]:
    """Return the identities of a folder and of all its parents."""
    return [identity(folder) for folder in (path, *path.parents)]


_MOST_VALUES = 500


class UploadIndex:
    """Finds the uploads of a job by its id.  The index is built at the first query and not updated.

    A later upload stays for the next run.  The index is in a temporary file, so that memory does not grow
    with the number of uploads.
    """

    def __init__(self, root: Root | None) -> None:
        self._root = root
        self._table: sqlite3.Connection | None = None

    def named_after(self, ids: Sequence[str]) -> Iterator[tuple[str, Found]]:
        """Yield each id with each upload that is named after it."""
        for owner, name, is_folder in self._select("owner, name, is_folder", ids):
            artifact = Artifact(RootName.UPLOADS, _as_name(name))
            yield _as_name(owner), Found(artifact, bool(is_folder), is_small=not is_folder)

    def names(self, ids: Sequence[str]) -> set[str]:
        """Return the names of the uploads that are named after any of these ids."""
        return {_as_name(name) for (name,) in self._select("name", ids)}

    def _select(self, columns: str, ids: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        if self._root is None or not ids:
            return
        if self._table is None:
            self._table = _build(self._root)
        for page in batched(map(_as_value, ids), _MOST_VALUES):
            marks = ", ".join("?" * len(page))
            yield from self._table.execute(
                f"SELECT {columns} FROM uploads WHERE owner IN ({marks}) ORDER BY rowid", page
            )

    def close(self) -> None:
        """Remove the index."""
        if self._table is not None:
            self._table.close()


def _build(root: Root) -> sqlite3.Connection:
    table = sqlite3.connect("")  # a temporary file, which is removed with the connection
    table.execute("CREATE TABLE uploads (owner, name, is_folder)")  # columns without a type convert nothing
    with os.scandir(root.fd) as listing:
        table.executemany(
            "INSERT INTO uploads VALUES (?, ?, ?)",
            (
                (_as_value(owner), _as_value(entry.name), entry.is_dir(follow_symlinks=False))
                for entry in listing
                if "_" in entry.name
                for owner in possible_owner_ids(Artifact(RootName.UPLOADS, entry.name))
            ),
        )
    table.execute("CREATE INDEX by_owner ON uploads (owner)")
    return table


def _as_value(name: str) -> str | bytes:
    """Return a name for SQLite, whose text is UTF-8; a name that is not becomes bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass")
    return name


def _as_name(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "surrogatepass")
