"""When something is due: cron expressions and fixed intervals, as jobs of the library ``schedule``.

``schedule`` keeps the list and calls what is due; it has no cron, and its own times are naive local ones
that lose an hour at a clock change.  So the jobs here compute their times themselves, aware and in UTC.
An occurrence is due when it lies between the last look and now: a machine that slept, or a clock that leapt
ahead, makes up for all that it missed by one call.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import schedule
from cronsim import CronSim

from eemtcleanupd.clock import Clock, elapsed_seconds, local_zone
from eemtcleanupd.config.schema import ScheduleConfig

Schedule = Callable[[datetime], datetime]
"""Returns the first occurrence after a time; both are aware, in UTC."""


def cron_schedule(expressions: Sequence[str], zone: Callable[[], tzinfo]) -> Schedule:
    """Return the timetable of cron expressions together.

    ``zone`` is asked anew for each occurrence, since the machine's may be changed.
    """

    def following(moment: datetime) -> datetime:
        local = moment.astimezone(zone())
        return min(next(CronSim(each, local)) for each in expressions).astimezone(UTC)

    return following


def interval_schedule(interval: timedelta) -> Schedule:
    """Return the timetable of a fixed interval."""
    return lambda moment: moment + interval


class Timer(schedule.Job):
    """Calls its function once when one or more occurrences have passed since it was last looked at.

    A clock that is set back neither repeats nor skips: times are computed anew from where the clock is, and
    an occurrence that has been called already counts as a repetition as long as less than half a period has
    really elapsed.  ``next_run`` is aware, in UTC.
    """

    next_run: datetime

    def __init__(
        self,
        scheduler: schedule.Scheduler,
        timetable: Schedule,
        call: Callable[[], None],
        *,
        since: datetime,
        clock: Clock,
        elapsed: Callable[[], float],
        jitter_seconds: float = 0,
    ) -> None:
        super().__init__(1, scheduler)
        self._call = call
        self._timetable = timetable
        self._seen = since
        self._clock = clock
        self._elapsed = elapsed
        self._jitter_seconds = jitter_seconds
        self._called: tuple[datetime, float] | None = None
        self.do(call)

    def update(self) -> None:
        """Notice the present; times are computed anew when it lies before the one seen last."""
        now = self._clock()
        is_back = now < self._seen
        if is_back or now < self.next_run:
            self._seen = now
        if is_back:
            self._schedule_next_run()

    @property
    def should_run(self) -> bool:
        """Whether the next occurrence has passed."""
        return self._clock() >= self.next_run

    def run(self) -> Any:
        """Call the function, unless this occurrence was called already, and go on from the present."""
        occurrence, elapsed = self._occurrence, self._elapsed()
        self._seen = self._clock()
        if not self._is_repetition(occurrence, elapsed):
            self._called = (occurrence, elapsed)
            self._call()
        self._schedule_next_run()

    def _is_repetition(self, occurrence: datetime, elapsed: float) -> bool:
        if self._called is None:
            return False
        last, at = self._called
        period = (self._timetable(occurrence) - occurrence).total_seconds()
        return occurrence <= last and elapsed - at < period / 2

    def _schedule_next_run(self) -> None:
        self._occurrence = self._timetable(self._seen)
        # So that many machines do not start as one; nothing secret depends on it.
        jitter = timedelta(seconds=random.uniform(0, self._jitter_seconds))  # noqa: S311
        self.next_run = self._occurrence + jitter


class Timers:
    """All timers of the daemon.

    Args:
        clock: the time of day.
        elapsed: seconds that really passed.
    """

    def __init__(self, clock: Clock, elapsed: Callable[[], float] = elapsed_seconds) -> None:
        self._clock = clock
        self._elapsed = elapsed
        self._scheduler = schedule.Scheduler()
        self._looked_at = clock()
        self._cron: Timer | None = None
        self._schedule: ScheduleConfig | None = None

    def add(self, timetable: Schedule, call: Callable[[], None]) -> None:
        """Call something by a timetable from now on."""
        self._timer(timetable, call, since=self._clock())

    def follow_cron(
        self, config: ScheduleConfig, call: Callable[[], None], *, since: datetime | None = None
    ) -> None:
        """Call something by the configured schedule, in place of an earlier one.

        Args:
            config: the block ``schedule``; without ``since`` one that says the same changes nothing.
            call: is called when an occurrence has passed.
            since: occurrences after this time count; by default those after the last look.
        """
        if config == self._schedule and since is None:
            return
        if self._cron is not None:
            self._scheduler.cancel_job(self._cron)
        self._schedule, self._cron = config, None
        if config.enabled:
            zone = local_zone if config.timezone == "local" else lambda: ZoneInfo(config.timezone)
            self._cron = self._timer(
                cron_schedule(config.cron, zone),
                call,
                since=since or self._looked_at,
                jitter_seconds=config.jitter_seconds,
            )

    def _timer(
        self, timetable: Schedule, call: Callable[[], None], *, since: datetime, jitter_seconds: float = 0
    ) -> Timer:
        return Timer(
            self._scheduler,
            timetable,
            call,
            since=since,
            clock=self._clock,
            elapsed=self._elapsed,
            jitter_seconds=jitter_seconds,
        )

    def run_pending(self) -> None:
        """Call each function of which an occurrence has passed, once."""
        for timer in self._scheduler.get_jobs():
            if isinstance(timer, Timer):
                timer.update()
        self._scheduler.run_pending()
        self._looked_at = self._clock()

    def next_cleanup(self) -> datetime | None:
        """Return when the schedule calls next, None when it is off."""
        return None if self._cron is None else self._cron.next_run

    def seconds_to_next(self) -> float:
        """Return how long there is nothing to call, 0 when something is due."""
        due = min((timer.next_run for timer in self._scheduler.get_jobs() if timer.next_run), default=None)
        return 0.0 if due is None else max(0.0, (due - self._clock()).total_seconds())


def explain(expressions: Sequence[str]) -> str:
    """Return cron expressions in words."""
    start = datetime(2000, 1, 1, tzinfo=UTC)
    return "; ".join(CronSim(each, start).explain() for each in expressions)
