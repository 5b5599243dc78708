"""Remedies that ``doctor`` advises: commands in backticks, and settings as ``Set KEY to VALUE``.

The owner of the job store can put a link in place of anything there.  So a command of root changes the owner
of what has the name, never of what a link leads to, and modes change with the rights of the owner.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from eemtcleanupd.config import Loaded
from eemtcleanupd.files import places_on_the_way
from eemtcleanupd.formatting import printable, quoted
from eemtcleanupd.privileges import User, became

_SYSTEM_CONFIG = Path("/etc/eemtcleanupd/cleanup_config.yaml")
_SYSTEMD = Path("/run/systemd/system")
_SHARED_FOLDERS = frozenset(
    map(Path, ("/", "/etc", "/home", "/mnt", "/opt", "/run", "/srv", "/usr", "/var", "/var/lib", "/var/log"))
)


def run(*commands: str) -> str:
    """Return commands as a sentence."""
    return f"Run {', then '.join(f'`{command}`' for command in commands)}."


def run_as_root(*commands: str) -> str:
    """Return commands that only root can execute as a sentence."""
    return f"As root, run {', then '.join(f'`{command}`' for command in commands)}."


def program(loaded: Loaded, command: str) -> str:
    """Return a command of this program that reads the same configuration in any folder."""
    return program_with(loaded.file, command)


def program_with(file: Path | None, command: str) -> str:
    """Return a command of this program that reads a configuration file in any folder."""
    named = "" if file in {None, _SYSTEM_CONFIG} else f" --config {quoted(file)}"
    return f"eemtcleanupd {command}{named}"


def start_daemon(loaded: Loaded) -> str:
    """Return the command that starts the daemon."""
    return "systemctl start eemtcleanupd" if _SYSTEMD.is_dir() else program(loaded, "run --detach")


def restart_daemon(loaded: Loaded) -> tuple[str, ...]:
    """Return the commands that restart the daemon."""
    if _SYSTEMD.is_dir():
        return ("systemctl restart eemtcleanupd",)
    return program(loaded, "stop"), program(loaded, "run --detach")


def set_key(loaded: Loaded, key: str, value: object) -> str:
    """Return how to change a value where it was set."""
    origin = loaded.origins.get(key, "default")
    if origin.startswith("--"):
        return f"Omit {origin}."
    if origin.startswith("EEMT_"):
        return f"Remove {origin} from the environment."
    return f"Set {key} to {value}."


def end_processes(labels: Iterable[str]) -> str:
    """Return the command that ends processes, which are given as ``name[pid]``."""
    return f"kill {' '.join(label.rpartition('[')[2].rstrip(']') for label in labels)}"


def give(path: Path, *, recursive: bool = False) -> str:
    """Return how to make this user, who is the service's, the owner of a path."""
    if (link := _planted_link(path)) is not None:
        return link
    return run_as_root(_chown(path, recursive=recursive))


def make_private(path: Path) -> str:
    """Return how to make this user the owner of a folder and the only one who can change it."""
    if (link := _planted_link(path)) is not None:
        return link
    owner, mode = os.geteuid(), f"chmod 700 {quoted(path)}"
    if path.lstat().st_uid != owner:
        return run_as_root(_chown(path, recursive=True), _with_rights_of_this_user(mode))
    return run(with_own_rights(mode))


def give_log(path: Path, key: str) -> str:
    """Return how to let this user write a log, given the configured path and the key of its configuration."""
    existing = next(place for place in (path, *path.parents) if os.path.lexists(place))
    folder = path if not path.suffix else path.parent
    if existing in _SHARED_FOLDERS and existing == folder:
        folder = folder / "eemtcleanupd"
        moved = folder if path == existing else folder / path.name
        return f"{run_as_root(_create(folder))} Set {key} to {printable(str(moved))}."
    if existing not in {path, folder}:
        return run_as_root(_create(folder))
    return give(existing)


def with_own_rights(command: str) -> str:
    """Return a command that has only the rights of this user, also if root executes it."""
    return _with_rights_of_this_user(command) if became() is not None else command


def _chown(path: Path, *, recursive: bool) -> str:
    return f"chown {'-Rh' if recursive else '-h'} {os.geteuid()} {quoted(path)}"


def _create(folder: Path) -> str:
    user = User.of(os.geteuid())
    return f"install -d -m 750 -o {user.uid} -g {user.gid} {quoted(folder)}"


def _with_rights_of_this_user(command: str) -> str:
    user = User.of(os.geteuid())
    if user.uid == 0:
        return command
    return f"setpriv --reuid={user.uid} --regid={user.gid} --clear-groups {command}"


def _planted_link(path: Path) -> str | None:
    """Return what to inspect if a path leads through a link that another user than root made."""
    for place in (path, *places_on_the_way(path)):
        if place.is_symlink() and (place == path or place.lstat().st_uid != 0):
            owner, target = User.of(place.lstat().st_uid), os.readlink(place)  # noqa: PTH115
            return (
                f"{printable(str(place))} is a link to {printable(target)} of user {owner}. Inspect why. "
                f"Nothing here follows it, so remove it before you change any owner or mode."
            )
    return None
