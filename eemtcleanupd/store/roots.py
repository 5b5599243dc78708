"""What each root was at the last run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from eemtcleanupd.model import RootName
from eemtcleanupd.store.book import Book, making_sense
from eemtcleanupd.store.tables import ROOTS


@dataclass(frozen=True, slots=True)
class RootRecord:
    """What a root was at the last run; ``marker`` is the random name that lies in its trash."""

    name: RootName
    path: str
    device: int
    inode: int
    marker: str


class Roots(Book):
    """``cleanup_roots``."""

    def roots(self) -> dict[RootName, RootRecord]:
        """Return what each root was at the last run."""
        with self._database.read() as connection:
            rows = connection.execute(select(ROOTS)).all()
        with making_sense("cleanup_roots"):
            return {
                RootName(row.name): RootRecord(
                    RootName(row.name), str(row.path), row.device, row.inode, row.marker
                )
                for row in rows
            }

    def save_roots(self, roots: Iterable[RootRecord]) -> None:
        """Remember what each root is."""

        def work(connection: Connection) -> None:
            for root in roots:
                connection.execute(delete(ROOTS).where(ROOTS.c.name == root.name))
                connection.execute(
                    insert(ROOTS).values(
                        name=root.name,
                        path=root.path,
                        device=root.device,
                        inode=root.inode,
                        marker=root.marker,
                    )
                )

        self._database.write(work)
