"""Safety breakers: test whether a run is probably a mistake; ``cleanup/run.py`` then refuses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from eemtcleanupd.formatting import human_age, human_size, plural, printable, shortened
from eemtcleanupd.model import RootName

# Time services occasionally step a clock back by seconds, which is harmless.
BACKWARDS_TOLERANCE = timedelta(minutes=5)
MIN_ENTRIES = 20
"""Up to so many rows or entries, a fraction says little, and the breakers for orphans are off."""
_ZONE_TOLERANCE = timedelta(minutes=1)
_ZONE_STEP = timedelta(minutes=15)  # all offsets of zones are multiples of it
_ROWS_OF_PROOF = 3
_NAMED_ENTRIES = 3


@dataclass(frozen=True, slots=True)
class ObservedStart:
    """A job's start, which shows the zone of the application that wrote it.

    Attributes:
        difference: ``started_at`` (local) minus ``created_at`` (UTC): the application's UTC offset and the
            time that the job waited.
        our_offset: the UTC offset of the zone in which we read local times, at that time.
    """

    difference: timedelta
    our_offset: timedelta


@dataclass(frozen=True, slots=True)
class ZoneEvidence:
    """The row that limits the application's UTC offset most, and how many rows were compared.

    Attributes:
        rows: the number of rows.
        start: the start that limits it most.
    """

    rows: int
    start: ObservedStart

    @classmethod
    def of(cls, starts: Sequence[ObservedStart]) -> ZoneEvidence | None:
        """Return the evidence of these rows, or None if there are none."""
        if not starts:
            return None
        shortest = min(starts, key=lambda start: start.difference - start.our_offset)
        return cls(len(starts), shortest)

    @property
    def application_offset(self) -> timedelta:
        """The application's UTC offset is this or further west."""
        return (self.start.difference + _ZONE_TOLERANCE) // _ZONE_STEP * _ZONE_STEP

    @property
    def problem(self) -> str | None:
        """Why our zone is wrong: it is further east, so jobs seem older than they are.  Otherwise None."""
        ours, theirs = self.start.our_offset, self.application_offset
        if ours <= self.start.difference + _ZONE_TOLERANCE:
            return None
        return (
            f"times of jobs are read as UTC{format_offset(ours)}, but the web interface wrote them at "
            f"UTC{format_offset(theirs)} or further west (started_at and created_at of "
            f"{plural(self.rows, 'job')}). Jobs seem {human_age(ours - theirs)} older than they are"
        )

    @property
    def is_proof(self) -> bool:
        """Whether there are enough rows to refuse a run."""
        return self.rows >= _ROWS_OF_PROOF


def format_offset(offset: timedelta) -> str:
    """Return a UTC offset as ``+05:30``."""
    minutes = round(offset.total_seconds() / 60)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def clock_problem(now: datetime, last_run: datetime | None, max_leap_days: float) -> str | None:
    """Return why the clock cannot be trusted, or None if it can.  The times are aware."""
    if last_run is None:
        return None
    elapsed = now - last_run
    if elapsed < -BACKWARDS_TOLERANCE:
        return (
            f"the clock moved backwards: it shows {now:%Y-%m-%d %H:%M} UTC, but the last run was at "
            f"{last_run:%Y-%m-%d %H:%M} UTC"
        )
    if elapsed > timedelta(days=max_leap_days):
        return (
            f"the clock is {human_age(elapsed)} after the last run ({last_run:%Y-%m-%d %H:%M} UTC), more "
            f"than safety.max_clock_leap_days ({max_leap_days:g})"
        )
    return None


def table_problem(rows: int, rows_before: int | None, job_folders: Sequence[str] = ()) -> str | None:
    """Return why the job table cannot be trusted, or None if it can.

    Args:
        rows: how many rows it has.
        rows_before: how many it had at the last run, None before the first.  0 if the operator has accepted
            an empty table.
        job_folders: the entries of the results folder that only jobs create; they matter for an empty table.
    """
    before = rows_before or 0
    if before > MIN_ENTRIES and 2 * rows < before:
        return (
            f"the job table has {plural(rows, 'row')}, and it had {before:,} at the last run. "
            "The files of the missing jobs would look like orphans."
        )
    if rows == 0 and rows_before != 0 and job_folders:
        names = ", ".join(shortened(printable(name), 60) for name in job_folders[:_NAMED_ENTRIES])
        more = " …" if len(job_folders) > _NAMED_ENTRIES else ""
        return (
            f"the job table is empty, but the results folder contains {plural(len(job_folders), 'item')} of "
            f"jobs: {names}{more}. Is this the database of the web interface?"
        )
    return None


class Census(Protocol):
    """The entries of a root, and the orphans that are due for deletion."""

    entries: int
    due: int
    due_bytes: int


def orphans_problem(census: Mapping[RootName, Census], held_bytes: int, max_fraction: float) -> str | None:
    """Return why so many orphans cannot be right, or None if they can.

    Args:
        census: the entries of each root.
        held_bytes: the measured size of all jobs, 0 if it is unknown.
        max_fraction: ``safety.max_orphan_fraction``, 0 to 1.
    """
    for name, root in census.items():
        if root.entries > MIN_ENTRIES and root.due > max_fraction * root.entries:
            return f"{root.due:,} of {root.entries:,} entries in {name} are orphans."
        if (
            held_bytes
            and root.entries > MIN_ENTRIES
            and root.due_bytes > max_fraction * (held_bytes + root.due_bytes)
        ):
            return (
                f"the orphans in {name} have {human_size(root.due_bytes)}, and all jobs together "
                f"{human_size(held_bytes)}."
            )
    return None


def is_too_many(would_clean: int, uncleaned: int, max_fraction: float, min_jobs: int) -> bool:
    """Return whether a run would clean a suspiciously large share of the uncleaned terminal jobs.

    Up to ``min_jobs`` uncleaned jobs (``safety.max_fraction_min_jobs``) the breaker is off.
    """
    return uncleaned > min_jobs and would_clean > max_fraction * uncleaned
