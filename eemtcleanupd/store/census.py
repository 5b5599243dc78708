"""What is on the disk against what is in the table, with sets that live in temporary tables.

A store may hold a hundred thousand entries; their names go through temporary tables of this connection in
pages, so that memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Column, Integer, MetaData, Table, insert, select, text

from eemtcleanupd.store.catalog import Catalog
from eemtcleanupd.store.database import Database, RawText

_METADATA = MetaData()
_UPLOADS = Table("cleanup_uploads", _METADATA, Column("name", RawText, primary_key=True), prefixes=["TEMP"])
_SEEN = Table(
    "cleanup_seen",
    _METADATA,
    Column("job_id", RawText, primary_key=True),
    Column("upload_bytes", Integer, nullable=False),
    prefixes=["TEMP"],
)


class CensusTables:
    """The jobs seen on the disk, and the uploads there; empty when made."""

    def __init__(self, database: Database, catalog: Catalog) -> None:
        self._database = database
        self._catalog = catalog
        with database.read() as connection:
            for table in (_UPLOADS, _SEEN):
                connection.exec_driver_sql(f"DROP TABLE IF EXISTS temp.{table.name}")
                table.create(connection)
            connection.commit()

    def add_seen(self, ids: Iterable[str], upload_bytes: int = 0) -> None:
        """Remember jobs of which something was seen; upload bytes add up."""
        statement = text(
            "INSERT INTO temp.cleanup_seen (job_id, upload_bytes) VALUES (CAST(:id AS TEXT), :bytes)"
            " ON CONFLICT (job_id) DO UPDATE SET upload_bytes = upload_bytes + excluded.upload_bytes"
        )
        rows = [{"id": job_id.encode("utf-8", "surrogateescape"), "bytes": upload_bytes} for job_id in ids]
        if rows:
            with self._database.read() as connection:
                connection.execute(statement, rows)
                connection.commit()

    def add_uploads(self, names: Sequence[str]) -> None:
        """Remember entries of the uploads folder."""
        with self._database.read() as connection:
            connection.execute(insert(_UPLOADS), [{"name": name} for name in names])
            connection.commit()

    def named_uploads(self) -> Iterator[tuple[str, int, str | None]]:
        """Yield the uploads that rows name: name, uncleaned rows that name it, the id of one of these.

        The jobs of these rows count as seen.  The order of the join is fixed (CROSS JOIN), since
        the job table has no index on the name and the uploads have one.
        """
        if not self._catalog.has_uploads:
            return
        uncleaned = self._catalog.uncleaned
        with self._database.read() as connection:
            connection.exec_driver_sql("DROP TABLE IF EXISTS temp.cleanup_named")
            connection.exec_driver_sql(
                "CREATE TEMP TABLE cleanup_named AS SELECT u.name AS name, sum(j.uncleaned) AS uncleaned,"
                " max(CASE WHEN j.uncleaned THEN j.id END) AS job_id FROM (SELECT dem_filename,"
                f" {self._catalog.id_column} AS id, ({uncleaned}) AS uncleaned FROM jobs) AS j"
                " CROSS JOIN temp.cleanup_uploads AS u ON u.name = j.dem_filename GROUP BY u.name"
            )
            connection.exec_driver_sql(
                "INSERT OR IGNORE INTO temp.cleanup_seen (job_id, upload_bytes)"
                f" SELECT j.{self._catalog.id_column}, 0 FROM jobs AS j"
                " CROSS JOIN temp.cleanup_uploads AS u ON u.name = j.dem_filename"
            )
            connection.commit()
        after = 0
        while True:
            with self._database.read() as connection:
                rows = connection.execute(
                    text(
                        "SELECT rowid AS at, name, uncleaned, job_id FROM temp.cleanup_named"
                        " WHERE rowid > :after ORDER BY rowid LIMIT 500"
                    ),
                    {"after": after},
                ).all()
            if not rows:
                return
            after = rows[-1].at
            for row in rows:
                yield row.name, row.uncleaned, row.job_id

    def unnamed_uploads(self) -> Iterator[list[str]]:
        """Yield, in pages, the uploads that no row names; :meth:`named_uploads` has been read before."""
        condition = (
            "WHERE name NOT IN (SELECT name FROM temp.cleanup_named)" if self._catalog.has_uploads else ""
        )
        after = 0
        while True:
            with self._database.read() as connection:
                rows = connection.execute(
                    text(
                        f"SELECT rowid AS at, name FROM temp.cleanup_uploads {condition}"
                        f" {'AND' if condition else 'WHERE'} rowid > :after ORDER BY rowid LIMIT 500"
                    ),
                    {"after": after},
                ).all()
            if not rows:
                return
            after = rows[-1].at
            yield [row.name for row in rows]

    def seen(self) -> Iterator[list[tuple[str, int]]]:
        """Yield, in pages, the jobs seen on the disk with the bytes of uploads that are theirs alone."""
        after = ""
        while True:
            statement = (
                select(_SEEN.c.job_id, _SEEN.c.upload_bytes)
                .where(_SEEN.c.job_id > after)
                .order_by(_SEEN.c.job_id)
                .limit(100)
            )
            with self._database.read() as connection:
                rows = connection.execute(statement).all()
            if not rows:
                return
            after = rows[-1].job_id
            yield [(row.job_id, row.upload_bytes) for row in rows]
