"""What other retention periods would keep and free, estimated from the ends and sizes of all jobs.

Ages are counted in whole hours.  All jobs of the table count, cleaned or not, because their rows still have
their size: a period of three days keeps what the last three days produced.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import accumulate

from eemtcleanupd.model import JobClass
from eemtcleanupd.policy.retention import FIRST_YEAR, FUTURE_TOLERANCE, TERMINAL, Policy

HOURS = (6, 12, 24, 48, 72, 120, 168, 336, 720, 1440, 2160)
"""The retention periods that are compared, besides the configured one."""
RATE_DAYS = 30
"""How many days count for the data that jobs produce per day."""

_HOUR = timedelta(hours=1)
_TEN_YEARS = 87_600
_STEPS = 200
_LINE_POINTS = 48

_Key = tuple[JobClass, str | None]


@dataclass(frozen=True, slots=True)
class EndedJobs:
    """Terminal jobs that ended in the same hour, and the bytes of those with a known size.

    ``ended_at`` is None if the end cannot be read.  Negative numbers take jobs out of another group.
    """

    job_class: JobClass
    workflow_type: str | None
    ended_at: datetime | None
    is_cleaned: bool
    jobs: int
    measured: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DiskState:
    """The results filesystem and what changes it besides new jobs.

    Attributes:
        free_bytes: free space now.
        trash_bytes: data that waits in the trash.
        grace: how long data waits there.
        other_bytes_per_day: how fast everything else grows.
    """

    free_bytes: int
    trash_bytes: int = 0
    grace: timedelta = timedelta()
    other_bytes_per_day: float = 0.0


@dataclass(frozen=True, slots=True)
class Point:
    """One retention period of one class, while the other class keeps its own.

    Attributes:
        hours: the retention.
        kept_bytes: data of this class that it keeps.
        total_bytes: data of all jobs that are kept.
        freed_bytes: data of this class that the next run deletes, or moves to the trash.
        disk_full_at: when the disk is full, None if not within ten years, or if the disk is not readable.
    """

    hours: float
    kept_bytes: int
    total_bytes: int
    freed_bytes: int
    disk_full_at: datetime | None


@dataclass(frozen=True, slots=True)
class Curve:
    """The retention periods of one class, the shortest first.

    Attributes:
        job_class: successful or failed.
        hours: the configured retention.
        jobs: jobs that have their data.
        estimated: those of them whose size is not known, so that they count with ``mean_bytes``.
        mean_bytes: mean size of the measured jobs, None if there are none.
        bytes_per_day: data that these jobs produce per day.
        points: the periods of :data:`HOURS` and the configured one, none if no size is known at all.
        line: hours, kept and freed bytes for a drawing.
    """

    job_class: JobClass
    hours: float
    jobs: int
    estimated: int
    mean_bytes: int | None
    bytes_per_day: int
    points: tuple[Point, ...] = ()
    line: tuple[tuple[float, int, int], ...] = ()

    @property
    def current(self) -> Point:
        """The configured period."""
        return next(point for point in self.points if point.hours == self.hours)

    @property
    def alternative(self) -> Point:
        """The longest period of at most half the configured one, or the next longer one."""
        shorter = [point for point in self.points if point.hours <= self.hours / 2 < self.hours]
        return shorter[-1] if shorter else next(point for point in self.points if point.hours > self.hours)


@dataclass(slots=True)
class _Amount:
    jobs: int = 0
    measured: int = 0
    size_bytes: int = 0

    def add(self, group: EndedJobs) -> None:
        self.jobs += group.jobs
        self.measured += group.measured
        self.size_bytes += group.size_bytes

    def estimate(self, mean: float) -> float:
        return max(0.0, self.size_bytes + (self.jobs - self.measured) * mean)


def longest_retention(policy: Policy) -> timedelta:
    """Return how far back cleaned jobs count: the longest retention of the comparison, at most ten years."""
    configured = [policy.successful, policy.failed, *policy.overrides.values()]
    return min(max(_HOUR * HOURS[-1], *(2 * span for span in configured)), _HOUR * _TEN_YEARS)


@dataclass(slots=True)
class JobAges:
    """Collects the jobs by class and age in hours; memory does not grow with the number of jobs.

    Args:
        policy: the retention in force.
        now: the current time, aware.
        measured_until: when the last run began that looked at all jobs.  An earlier job that has no size had
            no files then.
    """

    policy: Policy
    now: datetime
    measured_until: datetime | None
    cleaned_without_size: int = 0
    without_end: dict[JobClass, _Amount] = field(default_factory=lambda: defaultdict(_Amount))
    held: dict[JobClass, _Amount] = field(default_factory=lambda: defaultdict(_Amount))
    kept: dict[JobClass, _Amount] = field(default_factory=lambda: defaultdict(_Amount))
    _due: dict[JobClass, _Amount] | None = None
    _present: dict[_Key, dict[int, _Amount]] = field(default_factory=lambda: defaultdict(dict))
    _cleaned: dict[_Key, dict[int, _Amount]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, group: EndedJobs) -> None:
        """Count a group of jobs."""
        ended, cleaned = group.ended_at, group.is_cleaned
        if ended is None or ended.year < FIRST_YEAR or ended > self.now + _HOUR + FUTURE_TOLERANCE:
            if not cleaned:
                self.without_end[group.job_class].add(group)
            return
        workflow = group.workflow_type or ""
        is_special = (workflow, group.job_class) in self.policy.overrides
        ages = (self._cleaned if cleaned else self._present)[
            group.job_class, workflow if is_special else None
        ]
        if cleaned:
            self.cleaned_without_size += group.jobs - group.measured
        group = self._with_data(group)
        age = min(max(0, math.floor((self.now - ended) / _HOUR)), _TEN_YEARS)
        ages.setdefault(age, _Amount()).add(group)

    def _with_data(self, group: EndedJobs) -> EndedJobs:
        """Leave out the jobs that have no size because they had no data when the last run looked."""
        ended, until = group.ended_at, self.measured_until
        was_measured = until is not None and ended is not None and ended + _HOUR < until
        return replace(group, jobs=group.measured) if group.is_cleaned or was_measured else group

    def hold(self, group: EndedJobs) -> None:
        """Take jobs that are held out of the group that they were counted in."""
        self._take(group, self.held)

    def keep(self, group: EndedJobs) -> None:
        """Take jobs that another rule keeps at any retention out of the group that they were counted in."""
        self._take(group, self.kept)

    def drop(self, group: EndedJobs) -> None:
        """Take jobs that have no data in place out of the group that they were counted in."""
        self._take(group, defaultdict(_Amount))

    def _take(self, group: EndedJobs, amounts: dict[JobClass, _Amount]) -> None:
        if not group.is_cleaned:
            opposite = replace(
                group, jobs=-group.jobs, measured=-group.measured, size_bytes=-group.size_bytes
            )
            amounts[group.job_class].add(group)
            self.add(opposite)

    def set_due(self, groups: Iterable[EndedJobs], measured_bytes: Mapping[JobClass, int]) -> None:
        """Set which of the counted jobs the next run cleans, and the bytes of others that were measured."""
        self._due = {of: _Amount(size_bytes=measured_bytes.get(of, 0)) for of in TERMINAL}
        for group in groups:
            self._due[group.job_class].add(self._with_data(group))

    def freed_when_due(self, job_class: JobClass) -> float | None:
        """Return the bytes of a class that the next run deletes; None unless :meth:`set_due` was called."""
        return None if self._due is None else self._due[job_class].estimate(self.mean(job_class) or 0)

    @property
    def oldest(self) -> timedelta | None:
        """The age of the oldest job that counts, None without jobs."""
        ages = [age for by in (self._present, self._cleaned) for found in by.values() for age in found]
        return max(ages) * _HOUR if ages else None

    def mean(self, job_class: JobClass) -> int | None:
        """Return the mean bytes of the measured jobs of a class, or of all if it has none."""
        for amounts in (self._amounts(job_class), self._amounts()):
            if measured := sum(amount.measured for amount in amounts):
                return round(sum(amount.size_bytes for amount in amounts) / measured)
        return None

    def _amounts(self, job_class: JobClass | None = None) -> list[_Amount]:
        return [
            amount
            for ages in (self._present, self._cleaned)
            for (of, _), by_age in ages.items()
            if job_class in {None, of}
            for amount in by_age.values()
        ] + [
            amount
            for amounts in (self.held, self.kept)
            for of, amount in amounts.items()
            if job_class in {None, of}
        ]

    def curves(self, disk: DiskState | None) -> tuple[Curve, Curve]:
        """Return the curves of successful and of failed jobs."""
        store = _Store(self, disk)
        successful, failed = (self._curve(store, job_class) for job_class in TERMINAL)
        return successful, failed

    def _curve(self, store: _Store, job_class: JobClass) -> Curve:
        policy, mean = self.policy, self.mean(job_class)
        configured = policy.default(job_class) / _HOUR
        longest = max(HOURS[-1], min(configured * 2, _TEN_YEARS))
        step = (longest / HOURS[0]) ** (1 / (_LINE_POINTS - 1))
        periods = sorted({*map(float, HOURS), configured})
        line = sorted({*periods, *(HOURS[0] * step**index for index in range(_LINE_POINTS))})
        present = [
            amount for key, ages in self._present.items() if key[0] is job_class for amount in ages.values()
        ]
        curve = Curve(
            job_class=job_class,
            hours=configured,
            jobs=sum(amount.jobs for amount in present),
            estimated=sum(amount.jobs - amount.measured for amount in present),
            mean_bytes=mean,
            bytes_per_day=round(24 * store.rate(job_class)),
        )
        if mean is None:
            return curve
        return replace(
            curve,
            points=tuple(store.point(job_class, hours) for hours in periods),
            line=tuple(
                (hours, store.kept(job_class, {job_class: hours}), store.freed(job_class, hours))
                for hours in line
            ),
        )


@dataclass(frozen=True, slots=True)
class _Stream:
    """The jobs that share a retention: ``present[i]`` are the bytes of those younger than i hours."""

    job_class: JobClass
    special_hours: float | None
    present: tuple[float, ...]
    all: tuple[float, ...]
    rate: float

    def hours(self, policy: Policy, given: Mapping[JobClass, float]) -> float:
        if self.special_hours is not None:
            return self.special_hours
        return given.get(self.job_class, policy.default(self.job_class) / _HOUR)


def _younger(sums: tuple[float, ...], hours: float) -> float:
    return sums[min(max(0, math.ceil(hours)), len(sums) - 1)]


class _Store:
    """The jobs as streams, with the answers to what a retention keeps."""

    def __init__(self, ages: JobAges, disk: DiskState | None) -> None:
        self._policy, self._now, self._disk = ages.policy, ages.now, disk
        present, cleaned = ages._present, ages._cleaned  # noqa: SLF001  (one idea in two classes)
        keys = sorted({*present, *cleaned}, key=lambda key: (key[0], key[1] or ""))
        oldest = max((age for by in (present, cleaned) for found in by.values() for age in found), default=0)
        window = min(RATE_DAYS * 24, max(24, oldest + 1))
        self._streams = []
        for job_class, workflow in keys:
            mean = ages.mean(job_class) or 0
            sums = [
                _sums([present[job_class, workflow]], mean, oldest),
                _sums([present[job_class, workflow], cleaned[job_class, workflow]], mean, oldest),
            ]
            special = None
            if workflow is not None:
                special = self._policy.overrides[workflow, job_class] / _HOUR
            rate = _younger(sums[1], window) / window
            self._streams.append(_Stream(job_class, special, sums[0], sums[1], rate))
        self._always = sum(
            amount.estimate(ages.mean(of) or 0)
            for amounts in (ages.without_end, ages.held, ages.kept)
            for of, amount in amounts.items()
        )
        self._due = {of: ages.freed_when_due(of) for of in TERMINAL}

    def rate(self, job_class: JobClass) -> float:
        """Return the bytes per hour that jobs of a class produce."""
        return sum(stream.rate for stream in self._streams if stream.job_class is job_class)

    def kept(self, job_class: JobClass | None, given: Mapping[JobClass, float]) -> int:
        """Return the bytes that the given hours, else the configured ones, keep of a class or of all."""
        kept = sum(
            _younger(stream.all, stream.hours(self._policy, given))
            for stream in self._streams
            if job_class in {None, stream.job_class}
        )
        return round(kept + (self._always if job_class is None else 0))

    def freed(self, job_class: JobClass, hours: float) -> int:
        """Return the bytes of a class that a run deletes at once with these hours."""
        due = self._due[job_class]
        if due is not None and hours == self._policy.default(job_class) / _HOUR:
            return round(due)
        streams = [stream for stream in self._streams if stream.job_class is job_class]
        given = {job_class: hours}
        return round(
            sum(
                stream.present[-1] - _younger(stream.present, stream.hours(self._policy, given))
                for stream in streams
            )
        )

    def point(self, job_class: JobClass, hours: float) -> Point:
        """Return what a retention of a class keeps, frees, and when the disk is full."""
        given = {job_class: hours}
        full = self._full_after(given)
        return Point(
            hours=hours,
            kept_bytes=self.kept(job_class, given),
            total_bytes=self.kept(None, given),
            freed_bytes=self.freed(job_class, hours),
            disk_full_at=None if full is None else self._now + full * _HOUR,
        )

    def _full_after(self, given: Mapping[JobClass, float]) -> float | None:
        """Return after how many hours the disk is full, if jobs come as they did."""
        if self._disk is None:
            return None
        grace, other = self._disk.grace / _HOUR, self._disk.other_bytes_per_day / 24
        retention = [(stream, stream.hours(self._policy, given)) for stream in self._streams]
        present = sum(stream.present[-1] for stream in self._streams)

        def free(after: float) -> float:
            assert self._disk is not None  # noqa: S101  (checked above)
            # What expires uses its space until its time in the trash ends.
            kept = sum(
                (stream.present[-1] if after < grace else _younger(stream.present, hours - after + grace))
                + stream.rate * min(after, hours + grace)
                for stream, hours in retention
            )
            purged = self._disk.trash_bytes * (min(1.0, after / grace) if grace else 1.0)
            return self._disk.free_bytes + present - kept + purged - other * after

        steady = min(_TEN_YEARS, max((hours for _, hours in retention), default=0.0) + grace)
        for step in range(_STEPS + 1):
            after = steady * step / _STEPS
            if free(after) <= 0:
                first = math.floor(steady * max(0, step - 1) / _STEPS)
                between = range(first, math.ceil(after))
                return first + bisect_left(between, True, key=lambda hour: free(hour) <= 0)
        if other <= 0:
            return None
        after = steady + free(steady) / other
        return after if after <= _TEN_YEARS else None


def _sums(by_age: Iterable[Mapping[int, _Amount]], mean: float, oldest: int) -> tuple[float, ...]:
    """Return for each number of hours the bytes of the jobs that are younger."""
    sizes = [0.0] * (oldest + 1)
    for ages in by_age:
        for age, amount in ages.items():
            sizes[age] += amount.estimate(mean)
    return tuple(accumulate(sizes, initial=0.0))
