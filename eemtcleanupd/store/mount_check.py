"""Detection of a database file that is mounted without its folder.

``docker run -v ./jobs.db:/app/jobs.db`` mounts only the file.  SQLite's journal and our locks lie beside it,
in a folder that no other program sees.  After a crash other programs do not find the journal and read half a
transaction (https://sqlite.org/howtocorrupt.html, 1.4).  In WAL mode each program has its own database.
"""

from __future__ import annotations

import os
from pathlib import Path

from eemtcleanupd.errors import StoreError
from eemtcleanupd.installation import Page
from eemtcleanupd.store.database import Database

_ADVICE = f"Mount its folder instead. See {Page.DOCKER.reference()}."


def is_mounted_alone(file: Path) -> bool:
    """Return whether a file is itself a mount point.

    Raises:
        StoreError: the file or its folder is not accessible.
    """
    try:
        resolved = file.resolve(strict=True)
        return _mount_id(resolved) != _mount_id(resolved.parent)
    except OSError as error:
        raise StoreError(f"Cannot access {file}: {error.strerror}.") from error


def check_journal(database: Database, *, to_write: bool) -> str | None:
    """Check where the journal of a database is.

    Args:
        database: any database.  One on a server has no journal on this host.
        to_write: whether the caller is going to write.

    Returns:
        A warning if other programs do not see the journal, otherwise None.

    Raises:
        StoreError: the data might be outdated (WAL), or the journal cannot be written.
    """
    file = database.file
    if file is None or not is_mounted_alone(file):
        return None
    with database.read() as connection:
        mode = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())
    if mode == "wal":
        raise StoreError(
            f"{file} is mounted without its folder, and its journal mode is WAL. Changes by other programs "
            f"are in a WAL file that is not visible here. {_ADVICE}"
        )
    if to_write and not os.access(file.parent, os.W_OK | os.X_OK):
        raise StoreError(
            f"{file} is mounted without its folder, and {file.parent} is not writable. SQLite's journal and "
            f"the lock file are beside the database. {_ADVICE}"
        )
    return (
        f"{file} is mounted without its folder. Other programs do not see SQLite's journal or our lock "
        f"beside it, so a crash during a write can damage the database. {_ADVICE}"
    )


def _mount_id(path: Path) -> str:
    # O_PATH: closing any other descriptor of the file would drop SQLite's locks on it (fcntl(2)).
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        info = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    finally:
        os.close(descriptor)
    return dict(line.split(":\t", 1) for line in info.splitlines())["mnt_id"]
