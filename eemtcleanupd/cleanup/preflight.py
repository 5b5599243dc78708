"""Before anything is touched: the folders are the ones they were, and the clock can be trusted."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from eemtcleanupd.config import Config
from eemtcleanupd.deletion.roots import Root, check_roots, open_root
from eemtcleanupd.deletion.trash import MARKER_NAME, Trash, read_marker
from eemtcleanupd.errors import RootError
from eemtcleanupd.model import TRASH_NAME, Artifact, RootName
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.mount_check import check_journal
from eemtcleanupd.store.roots import RootRecord
from eemtcleanupd.store.timestamps import zone_named


def open_roots(
    config: Config, known: Mapping[RootName, RootRecord], stack: ExitStack
) -> dict[RootName, Root]:
    """Open the roots of a job store and insist that they are what they were at the last run.

    ``temp`` may be absent as long as no run has ever seen it: the web interface makes it when a job runs.

    Raises:
        RootError: a root is missing, replaced, or not fit to delete in.
    """
    roots: dict[RootName, Root] = {}
    for name in RootName:
        path: Path = getattr(config.paths, name)
        if name is RootName.TEMP and name not in known and not path.exists():
            continue
        roots[name] = open_root(name, path)
        stack.callback(roots[name].close)
    check_roots(list(roots.values()), StoreAddress.of(config).file)
    for name, record in known.items():
        if name in roots:
            _require_same_folder(roots[name], record)
    return roots


def open_trashes(roots: Mapping[RootName, Root], stack: ExitStack) -> dict[RootName, Trash]:
    """Open, and lock, the trash of each root.

    Raises:
        RootError: one is not safe to use.
        LockHeldError: another run has one.
    """
    trashes = {}
    for name, root in roots.items():
        trashes[name] = Trash(root)
        stack.callback(trashes[name].close)
    return trashes


def _require_same_folder(root: Root, record: RootRecord) -> None:
    """Refuse a folder that is not the one of the last run: an unmounted disk must not look like cleaned.

    A device number may change when a machine restarts, so there the inode together with the marker that
    lies in the trash is proof enough.
    """
    if (root.device, root.inode) == (record.device, record.inode):
        return
    if root.inode == record.inode and read_marker(root) == record.marker:
        return
    raise RootError(
        f"{root.name} at {root.path} is not the folder of the last run ({record.path}): is a disk not "
        f"mounted? If it was moved or replaced on purpose, say so with `eemtcleanupd roots --accept`"
    )


def record_root(root: Root, trash: Trash) -> RootRecord:
    """Leave a marker in the root's trash, unless there is one, and return what to remember of the root."""
    marker = read_marker(root)
    if not marker:
        marker = secrets.token_hex(16)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(MARKER_NAME, flags, 0o600, dir_fd=trash.fd), "w") as file:
                file.write(marker)
        except OSError as error:
            place = root.path / TRASH_NAME / MARKER_NAME
            raise RootError(f"the marker {place} cannot be written: {error.strerror}; remove it") from error
    return RootRecord(root.name, str(root.path), root.device, root.inode, marker)


def reserved_entries(config: Config, roots: Mapping[RootName, Root]) -> frozenset[Artifact]:
    """Return entries of roots that hold something of ours (logs, say), which no job can own."""
    ours = [config.paths.logs, config.logging.file, config.backup.path, StoreAddress.of(config).file]
    reserved = set()
    for name, root in roots.items():
        for path in filter(None, ours):
            resolved = path.resolve()
            if root.path in resolved.parents:
                reserved.add(Artifact(name, resolved.relative_to(root.path).parts[0]))
    return frozenset(reserved)


def check_store(config: Config) -> None:
    """Look whether a run could begin: the database is an EEMT job database, the folders are the right ones.

    Raises:
        StoreError, RootError: it could not, and why; nothing was changed.
    """
    database = StoreAddress.of(config).open()
    with ExitStack() as stack:
        stack.callback(database.close)
        check_journal(database, to_write=True)
        JobTable(database, Policy.from_config(config.retention), zone_named(config.database.timezone))
        ledger = Ledger(database)
        open_roots(config, ledger.roots() if ledger.exists() else {}, stack)
