"""The newest jobs of a table whose times are text, in pages, without a sort by moments in the database."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from datetime import datetime, tzinfo
from typing import Any

from sqlalchemy import RowMapping, Select, and_, literal, literal_column, or_, text
from sqlalchemy.sql.elements import ColumnElement

from eemtcleanupd.model import Job
from eemtcleanupd.policy.retention import FIRST_YEAR, end_problem
from eemtcleanupd.store.expiry_filter import is_zoneless
from eemtcleanupd.store.values import ANY_ZONE, CLOCK_CHANGE, RawText, local_timestamp

_MAX_TIME_LENGTH = 64
_MAX_ID_LENGTH = 255


class NewestJobs:
    """Keeps the ``count`` newest of the jobs that it is given, and says which rows can hold a newer one.

    Pages come in descending order of the time as text.  Once there are ``count`` jobs, only rows follow whose
    text can mean a later moment than the oldest of them.

    Args:
        count: how many jobs to keep, at least 1.
        page_size: how many rows to read at once.
        now: the current time, aware.
        zone: zone of times without one, or None for the machine's.
        ended: SQL of the time as text, with a space and not a ``T``.
        key: SQL of the id as text.
    """

    def __init__(
        self, count: int, page_size: int, now: datetime, zone: tzinfo | None, *, ended: str, key: str
    ) -> None:
        self._count = count
        self._page_size = page_size
        self._now = now
        self._zone = zone
        self._ended: ColumnElement[str] = literal_column(ended, RawText())
        self._key: ColumnElement[str] = literal_column(f"coalesce({key}, '')", RawText())
        self._without_zone = is_zoneless(ended)
        # Longer values are no times and no ids of jobs with data; they would only use memory.
        self._usable = text(
            f"length({ended}) <= {_MAX_TIME_LENGTH} AND length(coalesce({key}, '')) <= {_MAX_ID_LENGTH}"
        )
        self._heap: list[tuple[datetime, str]] = []
        self._last: tuple[str, str] | None = None
        self.is_complete = False

    @property
    def ids(self) -> frozenset[str]:
        """The ids of the newest jobs so far."""
        return frozenset(job_id for _, job_id in self._heap)

    def next_page(self, statement: Select[Any]) -> Select[Any]:
        """Limit a statement over the jobs to the next page of rows that can be among the newest."""
        ended, key = self._ended, self._key
        latest = self._bound(self._now + ANY_ZONE)
        statement = statement.add_columns(ended.label("ended_key"), key.label("id_key")).where(
            ended.between(literal(str(FIRST_YEAR - 1), RawText()), latest), self._usable
        )
        if self._last is not None:
            last_ended, last_key = (literal(value, RawText()) for value in self._last)
            statement = statement.where(or_(ended < last_ended, and_(ended == last_ended, key < last_key)))
        if self.is_full:
            oldest = self._heap[0][0]
            statement = statement.where(
                ended >= self._bound(oldest - ANY_ZONE),
                or_(ended >= self._bound(oldest - CLOCK_CHANGE), ~literal_column(f"({self._without_zone})")),
            )
        return statement.order_by(ended.desc(), key.desc()).limit(self._page_size)

    @property
    def is_full(self) -> bool:
        """Whether there are ``count`` jobs."""
        return len(self._heap) == self._count

    def take(self, jobs: Iterable[Job]) -> None:
        """Take some jobs into account."""
        for job in jobs:
            if job.completed_at is None or end_problem(job, self._now) is not None:
                continue
            self._add(job.completed_at, job.id)

    def add(self, page: Sequence[RowMapping], jobs: Iterable[Job]) -> None:
        """Take the rows of a page, and the jobs in them, into account."""
        self.take(jobs)
        if len(page) < self._page_size:
            self.is_complete = True
        else:
            self._last = (page[-1]["ended_key"], page[-1]["id_key"])

    def _add(self, ended: datetime, job_id: str) -> None:
        if self.is_full and (ended, job_id) <= self._heap[0]:
            return
        same = next((entry for entry in self._heap if entry[1] == job_id), None)
        if same is not None:  # a column job_id might not be unique: the rows take one place
            self._heap.remove(same)
            self._heap.append(max(same, (ended, job_id)))
            heapq.heapify(self._heap)
        elif not self.is_full:
            heapq.heappush(self._heap, (ended, job_id))
        else:
            heapq.heapreplace(self._heap, (ended, job_id))

    def _bound(self, moment: datetime) -> ColumnElement[str]:
        return literal(local_timestamp(moment, self._zone)[:19].replace("T", " "), RawText())
