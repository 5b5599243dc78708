"""The uploads whose names start with an id (``<id>_*``), indexed once instead of listed for every batch."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence

from eemtcleanupd.batches import batched
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.model import Artifact, Found, RootName
from eemtcleanupd.policy.ownership import possible_owner_ids

_MOST_VALUES = 500


class UploadIndex:
    """Finds the uploads of a job by its id.  It shows the folder as it was when it was first asked.

    A later upload stays for the next run.  The index is in a temporary file, so that memory does not grow
    with the number of uploads.
    """

    def __init__(self, root: Root | None) -> None:
        self._root = root
        self._table: sqlite3.Connection | None = None

    def named_after(self, ids: Sequence[str]) -> Iterator[tuple[str, Found]]:
        """Yield each id with each upload that is named after it."""
        if self._root is None or not ids:
            return
        if self._table is None:
            self._table = _build(self._root)
        for page in batched(map(os.fsencode, filter(_is_encodable, ids)), _MOST_VALUES):
            marks = ", ".join("?" * len(page))
            rows = self._table.execute(
                f"SELECT owner, name, is_folder FROM uploads WHERE owner IN ({marks}) ORDER BY rowid", page
            )
            for owner, name, is_folder in rows:
                artifact = Artifact(RootName.UPLOADS, os.fsdecode(name))
                yield os.fsdecode(owner), Found(artifact, bool(is_folder), is_small=not is_folder)

    def close(self) -> None:
        """Remove the index."""
        if self._table is not None:
            self._table.close()


def _build(root: Root) -> sqlite3.Connection:
    table = sqlite3.connect("")  # a temporary file, which is removed with the connection
    table.execute("CREATE TABLE uploads (owner BLOB, name BLOB, is_folder INTEGER)")
    with os.scandir(root.fd) as listing:
        table.executemany(
            "INSERT INTO uploads VALUES (?, ?, ?)",
            (
                (os.fsencode(owner), os.fsencode(entry.name), entry.is_dir(follow_symlinks=False))
                for entry in listing
                if "_" in entry.name
                for owner in possible_owner_ids(Artifact(RootName.UPLOADS, entry.name))
            ),
        )
    table.execute("CREATE INDEX by_owner ON uploads (owner)")
    return table


def _is_encodable(job_id: str) -> bool:
    try:
        os.fsencode(job_id)
    except UnicodeEncodeError:
        return False
    return True
