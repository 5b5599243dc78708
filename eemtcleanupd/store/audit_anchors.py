"""The anchor of each audit log: number and hash of a line that the log must contain."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, delete, insert, select

from eemtcleanupd.errors import StoreError
from eemtcleanupd.events import AuditAnchor
from eemtcleanupd.store.base import Repository, corruption_guard
from eemtcleanupd.store.tables import AUDIT_ANCHORS
from eemtcleanupd.store.values import utc_timestamp

_HIGHEST = 10**15
_HASH = re.compile(r"[0-9a-f]{64}")


class AuditAnchors(Repository):
    """``cleanup_audit_anchors``, by the path of the log, and by its host if the database is a server's."""

    def find_audit_anchor(self, log: Path) -> AuditAnchor | None:
        """Return the anchor of an audit log, None if it has none, or if there is no table of anchors yet.

        Raises:
            StoreError: the row is invalid.
        """
        with self._database.read() as connection:
            return self.audit_anchor(connection, log) if self._has_anchors(connection) else None

    def audit_anchor(self, connection: Connection, log: Path) -> AuditAnchor | None:
        """Return the anchor of an audit log, None if it has none; the tables must exist.

        Raises:
            StoreError: the row is invalid.
        """
        statement = select(AUDIT_ANCHORS.c.seq, AUDIT_ANCHORS.c.hash)
        row = connection.execute(statement.where(AUDIT_ANCHORS.c.log == self._key(log))).first()
        if row is None:
            return None
        with corruption_guard(AUDIT_ANCHORS.name):
            if not (0 < int(row.seq) < _HIGHEST and _HASH.fullmatch(row.hash)):
                raise ValueError("no line of an audit log")
            return AuditAnchor(int(row.seq), row.hash)

    def save_audit_anchor(
        self, connection: Connection, log: Path, anchor: AuditAnchor, now: datetime
    ) -> None:
        """Move the anchor of an audit log to another line."""
        key = self._key(log)
        connection.execute(delete(AUDIT_ANCHORS).where(AUDIT_ANCHORS.c.log == key))
        values = {"log": key, "seq": anchor.seq, "hash": anchor.hash, "updated_at": utc_timestamp(now)}
        connection.execute(insert(AUDIT_ANCHORS).values(values))

    def move_audit_anchor(self, move: Callable[[Connection], None]) -> None:
        """Call ``move`` in a transaction of its own, if there is a table of anchors.

        The anchor can stay where it is: a database that is not writable now is no error.
        """
        with suppress(StoreError):
            with self._database.read() as connection:
                has_anchors = self._has_anchors(connection)
            if has_anchors:
                self._database.write(move)

    def _has_anchors(self, connection: Connection) -> bool:
        # An earlier version created the ledger if no run has added the table yet.
        return any(table == AUDIT_ANCHORS.name for table, _ in self._database.ledger_columns(connection))

    def _key(self, log: Path) -> str:
        # Hosts that share a server's database write one audit log each, often at the same path.
        return str(log) if self._database.file is not None else f"{socket.gethostname()}:{log}"
