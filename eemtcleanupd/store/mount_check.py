"""A database file that is mounted without its folder, as ``docker run -v ./jobs.db:/app/jobs.db`` does it.

SQLite's journal, and our locks, lie beside the database.  There they are in a folder that nobody else sees:
a journal that a crash left is not found by the other programs, which then read half a transaction
(https://sqlite.org/howtocorrupt.html, 1.4), and in the mode WAL each of them has a database of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

from eemtcleanupd.errors import StoreError
from eemtcleanupd.store.database import Database

_ADVICE = "mount the folder that it lies in instead (docs/deploy-docker.md)"


def is_mounted_alone(file: Path) -> bool:
    """Tell whether a file is a mount point by itself.

    Raises:
        StoreError: it, or its folder, cannot be looked at.
    """
    try:
        resolved = file.resolve(strict=True)
        return _mount_id(resolved) != _mount_id(resolved.parent)
    except OSError as error:
        raise StoreError(f"{file} cannot be looked at: {error.strerror}") from error


def check_journal(database: Database, *, to_write: bool) -> str | None:
    """Look where the journal of a database lies.

    Args:
        database: any; one on a server has no journal here.
        to_write: whether something is to be written.

    Returns:
        A warning when nobody else sees the journal, None when all is well.

    Raises:
        StoreError: what is read here may be old (WAL), or nothing could be written.
    """
    file = database.file
    if file is None or not is_mounted_alone(file):
        return None
    with database.read() as connection:
        mode = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())
    if mode == "wal":
        raise StoreError(
            f"{file} is mounted without its folder, and its journal mode is WAL: what other programs wrote "
            f"is in a file beside theirs, which is not seen here; {_ADVICE}"
        )
    if to_write and not os.access(file.parent, os.W_OK | os.X_OK):
        raise StoreError(
            f"{file} is mounted without its folder, and {file.parent} cannot be written here: SQLite's "
            f"journal and our lock lie beside the database; {_ADVICE}"
        )
    return (
        f"{file} is mounted without its folder: other programs do not see SQLite's journal beside it, so a "
        f"crash amid a write can damage the database, nor who holds our lock there; {_ADVICE}"
    )


def _mount_id(path: Path) -> str:
    # O_PATH: closing any other descriptor of the file would drop SQLite's locks on it (fcntl(2)).
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        told = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    finally:
        os.close(descriptor)
    return dict(line.split(":\t", 1) for line in told.splitlines())["mnt_id"]
