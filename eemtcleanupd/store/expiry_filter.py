"""SQL that finds the rows of table ``jobs`` that need a retention decision.

The filter compares times as text and is deliberately wide.  ``policy`` then decides exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, tzinfo

from eemtcleanupd.model import JobClass
from eemtcleanupd.policy.retention import FIRST_YEAR, FUTURE_TOLERANCE, TERMINAL, Policy
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.values import ANY_ZONE, CLOCK_CHANGE, local_timestamp

NEEDS_DECISION = 2**32
"""Added to the verdict of a row that needs a decision."""


def is_zoneless(ended: str) -> str:
    """Return SQL that is true if a time as text has no zone: after the date, only digits, ``:`` and ``.``.

    Only a clock change can make a difference between such a time and our local time.  A time with its own
    zone can differ by ``ANY_ZONE``.
    """
    return f"rtrim(substr({ended}, 12), '0123456789:.') = ''"


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
            f" WHEN {ended} BETWEEN :surely_{job_class} AND :surely_past THEN 1"
            f" WHEN {ended} BETWEEN :young_{job_class} AND :past"
            f" AND ({ended} < :past_with_space OR substr({ended}, 11, 1) = 'T')"
            f" AND {is_zoneless(ended)} THEN 1 ELSE {NEEDS_DECISION + 1} END"
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
        """Return the parameters of all expressions.

        A job that ended after ``young`` (``surely``: whatever its zone) is not expired.  One that ended after
        ``past`` (``surely_past``) might have ended in the future, and gets a decision that reports it.  Text
        beyond that ("23/11/2026") is no time and gets one too.

        The first two contain a ``T``.  A time of the same day with a space orders before them, so it gets a
        decision.  The upper limits must be compared in the form of the time, or contain a space.
        """
        past = local_timestamp(now + FUTURE_TOLERANCE, self._zone)[:19]
        values: dict[str, object] = {
            "past": past,
            "past_with_space": past.replace("T", " "),
            "surely_past": local_timestamp(now - ANY_ZONE, self._zone)[:19].replace("T", " "),
        }
        for job_class in TERMINAL:
            due = now - self._policy.shortest(job_class)
            # A long retention does not make an impossible end young.  Day 3 is 2000 in every zone.
            first = f"{FIRST_YEAR}-01-03"
            values[f"young_{job_class}"] = max(first, local_timestamp(due + CLOCK_CHANGE, self._zone)[:19])
            values[f"surely_{job_class}"] = max(first, local_timestamp(due + ANY_ZONE, self._zone)[:19])
        for job_class in (*TERMINAL, JobClass.LIVE):
            values |= {f"{job_class}{index}": name for index, name in enumerate(self.statuses(job_class))}
        return values

    def statuses(self, job_class: JobClass) -> list[str]:
        """Return the statuses of a class."""
        return [status for status, status_class in self._policy.statuses.items() if status_class is job_class]
