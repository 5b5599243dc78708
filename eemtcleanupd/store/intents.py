"""Intents: the deletions in progress, and the contents of the trash.

An intent is written before the first file moves, and deleted when the result is recorded.  So the open
intents are exactly the unfinished work of an interrupted run.  The others are in the trash until their grace
ends.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, true, update

from eemtcleanupd.batches import batched
from eemtcleanupd.errors import StoreError
from eemtcleanupd.formatting import plural
from eemtcleanupd.model import TRASH_NAME, Artifact, Found, RootName
from eemtcleanupd.store.base import MOST_VALUES, Repository, corruption_guard, read_utc
from eemtcleanupd.store.tables import HOLDS, INTENTS
from eemtcleanupd.store.values import RawText, utc_timestamp

PART_BACK = ".back-"
"""Follows the id of an intent in the id of another intent that restores a part of it."""


class IntentKind(StrEnum):
    """What an intent deletes."""

    JOB = "job"
    ORPHAN = "orphan"


class IntentState(StrEnum):
    """Progress of an intent: deletion in progress, or cleaned and in the trash."""

    OPEN = "open"
    TRASHED = "trashed"


@dataclass(frozen=True, slots=True)
class Intent:
    """A job or orphan whose artifacts are to be deleted.

    Attributes:
        items: each artifact with the name of its item in its root's trash.
        purge_after: end of the grace in the trash, aware UTC; None if it is deleted at once.
        bytes_freed: what earlier, interrupted attempts freed.
        size_bytes: what is in the trash.
        is_purging: a run has begun to delete it from the trash, so its items can be missing there.
    """

    id: str
    run_id: str
    kind: IntentKind
    job_id: str
    status: str
    items: tuple[tuple[Found, str], ...]
    state: IntentState = IntentState.OPEN
    bytes_freed: int = 0
    purge_after: datetime | None = None
    error: str | None = None
    size_bytes: int = 0
    created_at: datetime | None = None
    is_purging: bool = False

    @property
    def name(self) -> str:
        """The job, or the path of the orphan."""
        return self.job_id or self.items[0][0].label


def with_error(intent: Intent, error: str | None, freed_bytes: int) -> Intent:
    """Return the intent after an incomplete attempt."""
    return replace(intent, error=error, bytes_freed=intent.bytes_freed + freed_bytes)


class Intents(Repository):
    """``cleanup_intents``."""

    def open_intents(self) -> list[Intent]:
        """Return the unfinished work of a run that was interrupted or had errors."""
        return self._intents(select(INTENTS).where(INTENTS.c.state == IntentState.OPEN))

    def has_intents(self) -> bool:
        """Return whether any work is unfinished, or anything is in the trash."""
        with self._database.read() as connection:
            return connection.execute(select(INTENTS.c.id).limit(1)).first() is not None

    def trashed(self, job_id: str | None = None, limit: int | None = None) -> list[Intent]:
        """Return the contents of the trash, of one job or of all, in the order of their deletion."""
        statement = select(INTENTS).where(INTENTS.c.state == IntentState.TRASHED)
        if job_id is not None:
            statement = statement.where(INTENTS.c.job_id == job_id)
        return self._intents(statement.order_by(INTENTS.c.purge_after, INTENTS.c.id).limit(limit))

    def trash_page(self, start: str, after: str | None, limit: int) -> tuple[list[Intent], str | None]:
        """Return a page of the trash, in the order of the deletion, and where the next page starts.

        Args:
            start: the start of the job ids in question.
            after: what the previous page returned, None for the first page.
            limit: the number of items on a page.
        """
        # As one text, because databases do not agree where an absent time is in an order.
        place = func.coalesce(INTENTS.c.purge_after, "") + " " + INTENTS.c.id
        statement = select(INTENTS).where(INTENTS.c.state == IntentState.TRASHED)
        if start:
            beginning = func.substr(func.coalesce(INTENTS.c.job_id, ""), 1, len(start))
            statement = statement.where(beginning == bindparam(None, start, type_=RawText(), unique=True))
        if after is not None:
            statement = statement.where(place > after)
        intents = self._intents(statement.order_by(place).limit(limit + 1))
        if len(intents) <= limit:
            return intents, None
        last = intents[limit - 1]
        deletion = "" if last.purge_after is None else utc_timestamp(last.purge_after)
        return intents[:limit], f"{deletion} {last.id}"

    def trashed_jobs(self, job_ids: Sequence[str]) -> dict[str, Intent]:
        """Return what is in the trash of these jobs, by job id; of several items of a job the newest."""
        intents: dict[str, Intent] = {}
        for page in batched(job_ids, MOST_VALUES):
            statement = select(INTENTS).where(
                INTENTS.c.state == IntentState.TRASHED,
                INTENTS.c.job_id.in_(page),
            )
            found = self._intents(statement.order_by(INTENTS.c.created_at, INTENTS.c.id))
            intents |= {intent.job_id: intent for intent in found}
        return intents

    def expired(
        self,
        now: datetime,
        limit: int,
        *,
        early: bool = False,
        trashed_before: datetime | None = None,
        with_held: bool = False,
    ) -> list[Intent]:
        """Return trashed jobs without a hold whose grace has ended at ``now``, oldest first.

        With ``early``, ignore the grace.  With ``trashed_before``, ignore it for jobs trashed before then.
        With ``with_held``, include held jobs.
        """
        early = early or trashed_before is not None
        since = None if trashed_before is None else utc_timestamp(trashed_before)
        due = utc_timestamp(now)
        held = select(HOLDS.c.job_id).where((HOLDS.c.until.is_(None)) | (HOLDS.c.until > due))
        return self._intents(
            select(INTENTS)
            .where(INTENTS.c.state == IntentState.TRASHED)
            .where(true() if early else INTENTS.c.purge_after <= due)
            .where(true() if since is None else INTENTS.c.created_at <= since)
            .where(true() if with_held else INTENTS.c.job_id.is_(None) | INTENTS.c.job_id.not_in(held))
            .order_by(INTENTS.c.purge_after, INTENTS.c.id)
            .limit(limit)
        )

    def trash_summary(self) -> tuple[int, int, datetime | None]:
        """Return the number of jobs and orphans in the trash, their bytes, and the first end of a grace."""
        statement = select(
            func.count(), func.sum(INTENTS.c.size_bytes), func.min(INTENTS.c.purge_after)
        ).where(INTENTS.c.state == IntentState.TRASHED)
        with self._database.read() as connection:
            count, size, first = connection.execute(statement).one()
        return count, int(size or 0), read_utc(first)

    def exists_intent(self, intent_id: str) -> bool:
        """Return whether the ledger has the intent of this id or group, or one that restores a part of it."""
        if not intent_id.isascii():  # our ids are ASCII, and a database might refuse other text
            return False
        back = INTENTS.c.id.startswith(f"{intent_id}{PART_BACK}", autoescape=True)
        member = INTENTS.c.id.startswith(f"{intent_id}.", autoescape=True)
        statement = select(INTENTS.c.id).where((INTENTS.c.id == intent_id) | back | member).limit(1)
        with self._database.read() as connection:
            return connection.execute(statement).first() is not None

    def add_intents(self, connection: Connection, intents: Sequence[Intent], now: datetime) -> None:
        """Write intents, before the first of their files moves; a part of an earlier one keeps its age."""
        if intents:
            created_at = utc_timestamp(now)
            rows = [
                {
                    **_intent_values(intent),
                    "is_purging": int(intent.is_purging),
                    "created_at": utc_timestamp(intent.created_at) if intent.created_at else created_at,
                }
                for intent in intents
            ]
            connection.execute(insert(INTENTS), rows)

    def delete_intents(self, connection: Connection, ids: Sequence[str]) -> None:
        """Delete intents that are finished or undone."""
        for page in batched(ids, MOST_VALUES):
            connection.execute(delete(INTENTS).where(INTENTS.c.id.in_(page)))

    def close_intents(self, connection: Connection, ids: Sequence[str]) -> None:
        """Delete intents in the transaction that records their results, so that each is recorded only once.

        Raises:
            StoreError: an intent is missing because another run has recorded it.
        """
        if ids:
            closed = connection.execute(delete(INTENTS).where(INTENTS.c.id.in_(ids))).rowcount
            if closed != len(ids):
                raise StoreError(
                    f"Another run has recorded {len(ids) - closed} of {plural(len(ids), 'job')}. "
                    "Nothing was recorded twice."
                )

    def begin_purge(self, connection: Connection, ids: Sequence[str]) -> None:
        """Write down that these are about to be deleted from the trash."""
        for page in batched(ids, MOST_VALUES):
            connection.execute(update(INTENTS).where(INTENTS.c.id.in_(page)).values(is_purging=1))

    def save_intent(self, connection: Connection, intent: Intent) -> None:
        """Save the progress of an intent."""
        connection.execute(update(INTENTS).where(INTENTS.c.id == intent.id).values(_intent_values(intent)))

    def _intents(self, statement: Any) -> list[Intent]:
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        with corruption_guard("cleanup_intents"):
            intents = [
                Intent(
                    id=str(row.id),
                    run_id=str(row.run_id),
                    kind=IntentKind(row.kind),
                    job_id=str(row.job_id or ""),
                    status=str(row.status or ""),
                    items=tuple(
                        (Found(Artifact(RootName(root), _entry(name)), bool(is_folder)), _item(item))
                        for root, name, is_folder, item in json.loads(row.artifacts)
                    ),
                    state=IntentState(row.state),
                    bytes_freed=int(row.bytes_freed),
                    purge_after=read_utc(row.purge_after),
                    error=row.error,
                    size_bytes=int(row.size_bytes),
                    created_at=read_utc(row.created_at),
                    is_purging=bool(row.is_purging),
                )
                for row in rows
            ]
            for intent in intents:
                if not intent.items and (intent.kind is IntentKind.ORPHAN or not intent.job_id):
                    raise ValueError(f"{intent.id} names no job and no artifact")
        return intents


def _intent_values(intent: Intent) -> dict[str, object]:
    # ASCII JSON escapes the bytes of names that are not UTF-8 as lone surrogates.
    artifacts = json.dumps(
        [[found.artifact.root, found.artifact.name, found.is_folder, item] for found, item in intent.items]
    )
    return {
        "id": intent.id,
        "run_id": intent.run_id,
        "kind": intent.kind,
        "state": intent.state,
        "job_id": intent.job_id or None,
        "status": intent.status,
        "artifacts": artifacts,
        "bytes_freed": intent.bytes_freed,
        "purge_after": None if intent.purge_after is None else utc_timestamp(intent.purge_after),
        "error": intent.error,
        "size_bytes": intent.size_bytes,
    }


def _item(name: object) -> str:
    """Return the name of an item: one component, or two if it is in a group."""
    parts = name.split("/", 1) if isinstance(name, str) else [name]
    return "/".join(map(_entry, parts))


def _entry(name: object) -> str:
    # Every name that this program writes is a single path component.
    if not isinstance(name, str) or name in {"", ".", "..", TRASH_NAME} or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a file name")
    return name
