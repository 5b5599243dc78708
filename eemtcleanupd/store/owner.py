"""The owner of a job store, whose rights every process that opens it works with.

SQLite deletes the file that a journal beside the database names as its super-journal
(https://www.sqlite.org/fileformat2.html, "The Rollback Journal"), and the owner of the database or of its
folder writes such a journal at will.  A process must therefore have no more rights than the owner.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from pathlib import Path

from eemtcleanupd.config import Config
from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.errors import ConfigError, StoreError
from eemtcleanupd.files import grants_write, places_on_the_way
from eemtcleanupd.formatting import printable
from eemtcleanupd.privileges import User, has_file_access, is_unknown

OWNER = "owner"
"""The value of ``run_as`` for the owner of the job store."""


def store_owner(config: Config) -> User | None:
    """Return the owner of the SQLite file, or of the first root that exists if the database is on a server.

    A file of root in a folder of another user belongs to that user, who can replace it.

    Returns:
        None if the store does not exist.
    """
    file = DatabaseAddress(config.paths.database).file
    if file is not None:
        return owner_of(file)
    roots = (config.paths.results, config.paths.uploads, config.paths.temp)
    return next(filter(None, map(owner_of, roots)), None)


def owner_of(path: Path) -> User | None:
    """Return who can replace a file or folder, root only if nobody else can; None if it does not exist.

    The owners of links and of the folders above count.
    """
    uids = _owners(path)
    return User.of(next((uid for uid in uids if uid != 0), 0)) if os.path.lexists(path) else None


def user_to_become(config: Config) -> User | None:
    """Return the user that a process of root must become before it opens the store; None if it is right.

    Raises:
        ConfigError: ``run_as`` names no user, or another one than the caller, who is not root.
    """
    is_root, named = os.geteuid() == 0, config.run_as
    if named == OWNER:
        owner = store_owner(config) if is_root else None
        return owner if owner is not None and owner.uid != 0 else None
    user = _named(named)
    if not is_root and user.uid != os.geteuid():
        raise ConfigError(
            f"run_as is {printable(named)}, but this process is user {User.of(os.geteuid())}. Only root can "
            f"become another user."
        )
    return user if is_root and user.uid != 0 else None


def risk_of_root(config: Config) -> str | None:
    """Return what a process of root risks in a store of another user; None if it risks nothing."""
    owner = store_owner(config) if os.geteuid() == 0 else None
    if owner is None or owner.uid == 0:
        return None
    return (
        f"This process works as root on the job store of user {owner}, who can make it delete or overwrite "
        "any file of this machine. Use run_as: owner unless you trust that user like root."
    )


def user_of_run() -> str:
    """Return as whom this process works on the store, and what else it can do, as a sentence."""
    more = "It can also read, move and delete files of other owners in the roots."
    return f"A run works as user {User.of(os.geteuid())}. {more if has_file_access() else ''}".rstrip()


def require_owner(file: Path, run_as: str) -> None:
    """Refuse to open a SQLite file of which another user controls the journal, unless ``run_as`` says so.

    Raises:
        StoreError: the file or its folder belongs to another user than this process.
    """
    if run_as != OWNER:
        return
    own = os.geteuid()
    strangers = [uid for uid in _owners(file) if uid not in {own, 0}]
    if strangers:
        owner, this = User.of(strangers[0]), User.of(own)
        raise StoreError(
            f"The job database {file} or a folder above it belongs to user {owner}, and this process is user "
            f"{this}. The owner could make it delete files of {this.name}. Run it as {owner.name} (sudo -u "
            f"{owner.name} …), or accept the risk with --run-as {this.name}."
        )
    if own == 0 and file.exists() and _is_shared(file):
        raise StoreError(
            f"Other users can write to the folder of the job database {file}, so they could make root delete "
            "any file. Move the database, or accept the risk with --run-as root."
        )


def _owners(path: Path) -> list[int]:
    uids: dict[int, None] = {}
    near = {path, path.absolute().parent, _resolved(path), _resolved(path).parent}
    for place in _places(path):
        with contextlib.suppress(OSError):
            uid = place.lstat().st_uid
            # In a user namespace, / belongs to nobody who is known there.
            if place in near or not is_unknown(uid):
                uids[uid] = None
    return list(uids)


def _places(path: Path) -> list[Path]:
    return [path, *places_on_the_way(path)]


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))  # a loop of links is no error here


def _is_shared(file: Path) -> bool:
    """Return whether users other than root can write to the folder of a file, or replace a folder above."""
    folder = _resolved(file).parent
    modes = [(place, place.stat()) for place in (folder, *folder.parents)]
    return any(
        status.st_mode & stat.S_IWOTH
        or (status.st_mode & stat.S_IWGRP and status.st_gid != 0)
        or grants_write(place, status, {0})
        for place, status in modes
        if place == folder or not status.st_mode & stat.S_ISVTX
    )


def _named(name: str) -> User:
    try:
        return User.of(int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid)
    except KeyError:
        raise ConfigError(
            f"run_as is {printable(name)}, but this machine has no such user. Give a name, a uid, or owner."
        ) from None
