"""SQL that finds the rows of table ``jobs`` that need a retention decision.

The filter compares times as text and is deliberately wide.  ``policy`` then decides exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, tzinfo

from eemtcleanupd.model import JobClass
from eemtcleanupd.policy.retention import TERMINAL, Policy
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.timestamps import local_timestamp

NEEDS_DECISION = 2**32
"""Added to the verdict of a row that needs a decision."""

# A time with its own zone can differ from the local time by up to 26 hours, the distance of the farthest
# zones.  Without a zone only a clock change can make a difference.
_ANY_ZONE = timedelta(hours=27)
_CLOCK_CHANGE = timedelta(hours=2)
_LENGTHS_WITHOUT_ZONE = "(19, 23, 26)"  # seconds, milliseconds, microseconds


class ExpiryFilter:
    """SQL expressions over the columns ``status`` and ``completed_at``, with their parameters."""

    def __init__(self, database: Database, policy: Policy, zone: tzinfo | None) -> None:
        self._database = database
        self._policy = policy
        self._zone = zone

    @property
    def verdict(self) -> str:
        """SQL: 0 no decision needed, 1 terminal but not expired, plus 2**32 if a decision is needed."""
        ended = f"coalesce({self._database.as_text('completed_at')}, '')"
        cases = " ".join(
            f"WHEN {self.status_is(job_class)} THEN CASE"
            f" WHEN {ended} BETWEEN :surely_{job_class} AND :latest THEN 1"
            f" WHEN {ended} BETWEEN :young_{job_class} AND :latest"
            f" AND length({ended}) IN {_LENGTHS_WITHOUT_ZONE} THEN 1 ELSE {NEEDS_DECISION + 1} END"
            for job_class in TERMINAL
        )
        return f"CASE {cases} WHEN {self.status_is(JobClass.LIVE)} THEN 0 ELSE {NEEDS_DECISION} END"

    def status_is(self, job_class: JobClass) -> str:
        """Return SQL that is true for a row whose status has this class."""
        # SQLite evaluates IN with a lookup table.  OR is faster, as the first comparison matches most rows.
        status = self._database.as_text("status")
        names = [f"{status} = :{job_class}{index}" for index, _ in enumerate(self.statuses(job_class))]
        return f"({' OR '.join(names)})" if names else "false"

    def parameters(self, now: datetime) -> Mapping[str, object]:
        """Return the parameters of all expressions.  A job that ended after these times is not expired.

        The times contain a ``T``.  A time of the same day with a space orders before them, so it gets a
        decision.
        """
        # No job can have ended 50 years ahead, and text beyond that ("23/11/2026") is not an ISO time.
        values: dict[str, object] = {"latest": str(now.year + 50)}
        for job_class in TERMINAL:
            due = now - self._policy.shortest(job_class)
            values[f"young_{job_class}"] = local_timestamp(due + _CLOCK_CHANGE, self._zone)[:19]
            values[f"surely_{job_class}"] = local_timestamp(due + _ANY_ZONE, self._zone)[:19]
        for job_class in (*TERMINAL, JobClass.LIVE):
            values |= {f"{job_class}{index}": name for index, name in enumerate(self.statuses(job_class))}
        return values

    def statuses(self, job_class: JobClass) -> list[str]:
        """Return the statuses of a class."""
        return [status for status, status_class in self._policy.statuses.items() if status_class is job_class]
