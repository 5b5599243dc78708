"""Comparison of the files on disk with the job table, in temporary tables.

A store can have a hundred thousand entries.  Their names are paged through temporary tables of this
connection, so memory does not grow with them.  Every method can raise TempTablesLostError: then the inventory
must be restarted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Integer,
    MetaData,
    Row,
    Select,
    Table,
    bindparam,
    insert,
    not_,
    select,
    text,
)

from eemtcleanupd.batches import batched
from eemtcleanupd.store.base import MOST_VALUES
from eemtcleanupd.store.database import SCRATCH, Database
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.tables import SIZES
from eemtcleanupd.store.values import RawName, RawText

_METADATA = MetaData(schema=SCRATCH)
_UPLOADS = Table("cleanup_uploads", _METADATA, Column("name", RawName, primary_key=True))
_NAMED = Table(
    "cleanup_named",
    _METADATA,
    Column("name", RawName, primary_key=True),
    Column("uncleaned", Integer, nullable=False),
    Column("job_id", RawText),
)
_SEEN = Table(
    "cleanup_seen",
    _METADATA,
    Column("job_id", RawText, primary_key=True),
    Column("upload_bytes", BigInteger, nullable=False),
)


def _is_missing(key: Column[Any], other: Column[Any]) -> ColumnElement[bool]:
    """Return SQL that is true for the keys that another table lacks.

    For NOT IN, PostgreSQL reads that table again for every key, if it is too large for ``work_mem``.
    """
    return not_(select(other).where(other == key).exists())


class _Pages:
    """A query in pages, in the order of a key, its first column.

    It is built once, because building takes longer than executing.
    """

    def __init__(self, statement: Select[Any], key: Column[Any], size: int) -> None:
        self.size = size
        self.statement = statement.where(key > bindparam("after")).order_by(key).limit(size)


_REFERENCED_PAGES = _Pages(select(_NAMED), _NAMED.c.name, 500)
_UNREFERENCED_PAGES = _Pages(
    select(_UPLOADS.c.name).where(_is_missing(_UPLOADS.c.name, _NAMED.c.name)), _UPLOADS.c.name, 2000
)
_SEEN_PAGES = _Pages(select(_SEEN), _SEEN.c.job_id, 100)
_UNSEEN_PAGES = _Pages(
    select(SIZES.c.job_id).where(_is_missing(SIZES.c.job_id, _SEEN.c.job_id)), SIZES.c.job_id, 500
)


class InventoryTables:
    """The jobs and uploads seen on the disk.  A new object is empty."""

    def __init__(self, database: Database, job_table: JobTable) -> None:
        self._database = database
        self._job_table = job_table
        self._schema = database.scratch_schema
        self._add_seen = text(
            f"INSERT INTO {self._schema}.cleanup_seen (job_id, upload_bytes)"
            " VALUES (CAST(:id AS TEXT), :bytes) ON CONFLICT (job_id)"
            " DO UPDATE SET upload_bytes = cleanup_seen.upload_bytes + excluded.upload_bytes"
        ).bindparams(bindparam("id", type_=RawText()))
        with database.scratch() as connection:
            database.create_scratch(connection, _UPLOADS, _NAMED, _SEEN)
            connection.commit()
            self._session = database.session

    def add_seen(self, ids: Iterable[str], upload_bytes: int = 0) -> None:
        """Add jobs that have data on the disk.  Upload bytes are summed."""
        rows = [{"id": job_id, "bytes": upload_bytes} for job_id in ids]
        if rows:
            with self._database.scratch(self._session) as connection:
                connection.execute(self._add_seen, rows)
                connection.commit()

    def add_uploads(self, names: Sequence[str]) -> None:
        """Add entries of the uploads folder."""
        with self._database.scratch(self._session) as connection:
            connection.execute(insert(_UPLOADS), [{"name": name} for name in names])
            connection.commit()

    def referenced_uploads(self) -> Iterator[tuple[str, int, str | None]]:
        """Yield the uploads that rows name: name, number of uncleaned rows that name it, id of one of them.

        The jobs of these rows count as seen.  SQLite keeps the order of a CROSS JOIN, which is fastest here:
        the uploads have an index on the name, and the job table has none.
        """
        if not self._job_table.has_uploads:
            return
        key = f"CAST({self._database.as_text(self._job_table.id_column)} AS TEXT)"
        named = (
            f"{self._schema}.cleanup_uploads AS u WHERE u.name = {self._database.as_raw_name('dem_filename')}"
        )
        with self._database.scratch(self._session) as connection:
            connection.exec_driver_sql(
                f"INSERT INTO {self._schema}.cleanup_named (name, uncleaned, job_id)"
                f" SELECT u.name, sum(CASE WHEN {self._job_table.uncleaned} THEN 1 ELSE 0 END),"
                f" max(CASE WHEN {self._job_table.uncleaned} THEN {key} END)"
                f" FROM jobs CROSS JOIN {named} GROUP BY u.name"
            )
            connection.exec_driver_sql(
                f"INSERT INTO {self._schema}.cleanup_seen (job_id, upload_bytes)"
                f" SELECT {key}, 0 FROM jobs CROSS JOIN {named} AND {key} IS NOT NULL"
                " ON CONFLICT (job_id) DO NOTHING"
            )
            connection.commit()
        for rows in self._read(_REFERENCED_PAGES):
            for row in rows:
                yield row.name, row.uncleaned, row.job_id

    def named_by_uncleaned(self, names: Sequence[str]) -> set[str]:
        """Return those uploads that uncleaned rows name.  Read :meth:`referenced_uploads` first."""
        statement = select(_NAMED.c.name).where(_NAMED.c.uncleaned > 0)
        named: set[str] = set()
        for page in batched(names, MOST_VALUES):
            with self._database.scratch(self._session) as connection:
                rows = connection.execute(statement.where(_NAMED.c.name.in_(page)))
                named |= {row.name for row in rows}
        return named

    def unreferenced_uploads(self) -> Iterator[list[str]]:
        """Yield, in pages, the uploads that no row names.  Read :meth:`referenced_uploads` first."""
        for rows in self._read(_UNREFERENCED_PAGES):
            yield [name for (name,) in rows]

    def seen(self) -> Iterator[list[tuple[str, int]]]:
        """Yield, in pages, the jobs seen on the disk, with the bytes of their unshared uploads."""
        for rows in self._read(_SEEN_PAGES):
            yield [(row.job_id, row.upload_bytes) for row in rows]

    def measured_unseen(self) -> Iterator[list[str]]:
        """Yield, in pages, the jobs that have a measured size but no data on the disk."""
        for rows in self._read(_UNSEEN_PAGES):
            yield [row.job_id for row in rows]

    def _read(self, pages: _Pages) -> Iterator[Sequence[Row[Any]]]:
        after = ""
        while True:
            with self._database.scratch(self._session) as connection:
                found = connection.execute(pages.statement, {"after": after})
                # Skip rows whose id is bytes: another program wrote them.  SQLite puts bytes behind all text.
                rows = [row for row in found if isinstance(row[0], str)]
            if not rows:
                return
            after = rows[-1][0]
            yield rows
            if len(rows) < pages.size:
                return
