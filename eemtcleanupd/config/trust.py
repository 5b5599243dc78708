"""Refuses configuration, plugins and secrets that another user can change.

Who can change them decides what this process deletes, and runs code in it.
"""

from __future__ import annotations

import grp
import importlib.util
import os
import pwd
import stat
from collections.abc import Iterator, Set
from importlib.machinery import ModuleSpec
from pathlib import Path

import eemtcleanupd
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.files import grants_write, places_on_the_way
from eemtcleanupd.formatting import printable
from eemtcleanupd.privileges import exceeds_user, is_unknown

# Read now: a process that later works as another user might not reach its own program any more.
_PROGRAM_OWNER = Path(eemtcleanupd.__file__).parent.stat().st_uid
_CODE = {".py", ".pyc", ".so"}


def require_trusted(path: Path, advice: str) -> None:
    """Refuse a file unless root or this process's user owns it, and nobody else can change or replace it.

    Raises:
        ConfigError: another user can change it, or a folder above it.
    """
    if (problem := _problem(path, {0, os.geteuid(), _PROGRAM_OWNER})) is not None:
        raise ConfigError(f"{printable(str(path))} is not used, because {problem}. {advice}")


def require_not_public(path: Path) -> None:
    """Refuse a file that the operator names and that every user can change or replace.

    Raises:
        ConfigError: its mode, or that of its folder, lets everybody write.
    """
    for place in (path, Path(os.path.realpath(path)).parent):
        try:
            mode = place.stat().st_mode
        except OSError:  # reading it explains the problem
            return
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX and not _is_read_only(place):
            raise ConfigError(
                f"{printable(str(path))} is not used, because every user can write to "
                f"{printable(str(place))}. Run: chmod o-w {printable(str(place))}"
            )


def require_trusted_module(name: str) -> None:
    """Refuse to import a module that another user can change; packages above it are imported.

    Raises:
        ConfigError: another user can change the module, its compiled form, or its package.
        ImportError, ValueError: there is no such module, or a package above it cannot be imported.
    """
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        spec = importlib.util.find_spec(".".join(parts[:length]))
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        require_trusted_code(spec)


def require_trusted_code(spec: ModuleSpec) -> None:
    """Refuse to import a module that was found, if another user can change it.

    In a process of root that became another user, that user is another one too: code reaches the
    capabilities that are set aside.

    Raises:
        ConfigError: another user can change the module, its compiled form, or code of its package.
    """
    trusted = {0, _PROGRAM_OWNER} | (set() if exceeds_user() else {os.geteuid()})
    for place in _code_of(spec):
        if not os.path.lexists(place):
            continue
        if (problem := _problem(place, trusted)) is not None:
            raise ConfigError(
                f"{printable(str(place))} is not used, because {problem}. Its code would run with the rights "
                "of this process."
            )


def _code_of(spec: ModuleSpec) -> Iterator[Path]:
    """Yield what a module is read from; a package imports the rest of itself, now or later."""
    if spec.has_location and spec.origin:
        yield Path(spec.origin)
    if spec.cached:
        yield from (Path(spec.cached), Path(spec.cached).parent)
    for folder in map(Path, spec.submodule_search_locations or ()):
        yield folder
        yield from (path for path in folder.rglob("*") if path.suffix in _CODE or path.is_dir())


def _problem(path: Path, trusted: Set[int]) -> str | None:
    """Return why a path is not safe; links and folders on the way count."""
    resolved = Path(os.path.realpath(path))  # a loop of links is no error here
    for place, is_above in _places(path.absolute(), resolved):
        try:
            status = place.lstat()
        except OSError:  # reading it explains the problem
            continue
        if _is_read_only(place):
            continue
        name = printable(str(place))
        # In a user namespace, / belongs to nobody who is known there.
        if status.st_uid not in trusted and not (is_above and is_unknown(status.st_uid)):
            return f"{name} belongs to user {_user(status.st_uid)}"
        can_replace = not (is_above and status.st_mode & stat.S_ISVTX)
        is_shared = not stat.S_ISLNK(status.st_mode) and (
            _has_other_writers(status) or grants_write(place, status, trusted)
        )
        if can_replace and is_shared:
            return f"other users can write to {name}"
    return None


def _places(path: Path, resolved: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the file, its folder, and the folders above that, with whether each is one of the last."""
    for each in dict.fromkeys((path, resolved)):
        yield each, False
        yield each.parent, False
    for place in places_on_the_way(path):
        yield place, True


def _has_other_writers(status: os.stat_result) -> bool:
    """Return whether users other than the owner can write; a group of the owner's name has no others.

    Debian and others give each user a group of the same name (adduser(8), USERGROUPS).  A container often has
    no names, and then the numbers are compared.
    """
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    try:
        group, owner = grp.getgrgid(status.st_gid), _user(status.st_uid)
    except KeyError:
        return status.st_gid != status.st_uid
    return group.gr_name != owner or bool(set(group.gr_mem) - {owner})


def _is_read_only(place: Path) -> bool:
    """Return whether a place is on a read-only mount, as secrets and configurations of containers are."""
    return bool(os.statvfs(place).f_flag & os.ST_RDONLY) if place.exists() else False


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
