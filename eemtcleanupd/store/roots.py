"""The identity of each root at the last run, to detect a replaced folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, insert, select

from eemtcleanupd.model import RootName
from eemtcleanupd.store.base import Repository, corruption_guard
from eemtcleanupd.store.tables import ROOTS


@dataclass(frozen=True, slots=True)
class RootRecord:
    """The identity of a root.  ``marker`` is a random name in its trash, ``job_rows`` counts the jobs."""

    name: RootName
    path: str
    device: int
    inode: int
    marker: str
    job_rows: int | None = None


class Roots(Repository):
    """``cleanup_roots``."""

    def roots(self) -> dict[RootName, RootRecord]:
        """Return the roots as they were at the last run."""
        with self._database.read() as connection:
            rows = connection.execute(select(ROOTS)).mappings().all()
        with corruption_guard("cleanup_roots"):
            return {
                RootName(row["name"]): RootRecord(
                    RootName(row["name"]),
                    str(row["path"]),
                    row["device"],
                    row["inode"],
                    row["marker"],
                    row["job_rows"],
                )
                for row in rows
            }

    def forget_roots(self) -> None:
        """Forget all roots."""
        self._database.write(lambda connection: connection.execute(delete(ROOTS)))

    def save_roots(self, roots: Iterable[RootRecord]) -> None:
        """Save the identity of these roots."""
        rows = [asdict(root) for root in roots]

        def work(connection: Connection) -> None:
            connection.execute(delete(ROOTS).where(ROOTS.c.name.in_([row["name"] for row in rows])))
            if rows:
                connection.execute(insert(ROOTS), rows)

        self._database.write(work)
