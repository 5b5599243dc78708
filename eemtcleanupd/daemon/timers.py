"""Timers of the daemon: cron expressions (``cronsim``) and fixed intervals; ``schedule`` calls due timers.

``schedule`` keeps the list of timers as its jobs.  It has no cron, and its own times are naive
local ones, which are off by an hour after a clock change.  So the jobs here compute aware times in UTC.
An occurrence is due when it lies between the last check and now.  A machine that was suspended, or whose
clock was set forward, makes up for all missed occurrences with one call.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import schedule
from cronsim import CronSim

from eemtcleanupd.clock import Clock, elapsed_seconds, local_zone
from eemtcleanupd.config.schema import ScheduleConfig

Schedule = Callable[[datetime], datetime]
"""Returns the first occurrence after a time; both are aware, in UTC."""


def cron_schedule(expressions: Sequence[str], zone: Callable[[], tzinfo]) -> Schedule:
    """Return the union of cron expressions.

    ``zone`` is called for each occurrence, since the machine's time zone can change.
    """

    def next_occurrence(after: datetime) -> datetime:
        local = after.astimezone(zone())
        # In an hour that the clocks repeat, CronSim begins with the first of the two, which is over.
        return min(
            next(moment for each in CronSim(expression, local) if (moment := each.astimezone(UTC)) > after)
            for expression in expressions
        )

    return next_occurrence


def interval_schedule(interval: timedelta) -> Schedule:
    """Return the schedule of a fixed interval."""
    return lambda after: after + interval


class Timer(schedule.Job):
    """Calls a function once when one or more occurrences have passed since the last check.

    A clock that is set back neither repeats nor skips a call.  The next occurrence is computed from the new
    time, and one that was called before counts as a repetition until half a period has elapsed.
    ``next_run`` is aware, in UTC.  Occurrences after ``checked_at`` are not called yet.
    """

    next_run: datetime

    def __init__(
        self,
        scheduler: schedule.Scheduler,
        next_occurrence: Schedule,
        call: Callable[[], None],
        *,
        since: datetime,
        clock: Clock,
        elapsed: Callable[[], float],
        jitter_seconds: float = 0,
    ) -> None:
        super().__init__(1, scheduler)
        self._call = call
        self._next_occurrence = next_occurrence
        self.checked_at = since
        self._clock = clock
        self._elapsed = elapsed
        self._jitter_seconds = jitter_seconds
        self._last_call: tuple[datetime, float] | None = None
        self.do(call)

    def update(self) -> None:
        """Record the time of this check, and reschedule if the clock was set back.

        While an occurrence waits for its jitter, the time before it stays: otherwise it would be lost if the
        clock were set back a little, or the schedule changed.
        """
        now = self._clock()
        was_set_back = now < self.checked_at
        if was_set_back or now < self._occurrence:
            self.checked_at = now
        if was_set_back:
            self._schedule_next_run()

    def follow_zone(self) -> None:
        """Reschedule if the time zone of a cron schedule has changed since the last check."""
        is_ahead = self._clock() < self._occurrence
        if is_ahead and self._next_occurrence(self.checked_at) != self._occurrence:
            self._schedule_next_run()

    @property
    def should_run(self) -> bool:
        """Whether the next occurrence has passed."""
        return self._clock() >= self.next_run

    def run(self) -> Any:
        """Call the function, unless this is a repetition, and schedule the next occurrence."""
        occurrence, elapsed = self._occurrence, self._elapsed()
        self.checked_at = self._clock()
        if not self._is_repetition(occurrence, elapsed):
            self._last_call = (occurrence, elapsed)
            self._call()
        self._schedule_next_run()

    def _is_repetition(self, occurrence: datetime, elapsed: float) -> bool:
        if self._last_call is None:
            return False
        last_occurrence, last_elapsed = self._last_call
        period = (self._next_occurrence(occurrence) - occurrence).total_seconds()
        return occurrence <= last_occurrence and elapsed - last_elapsed < period / 2

    def _schedule_next_run(self) -> None:
        self._occurrence = self._next_occurrence(self.checked_at)
        # So that many machines do not start at the same moment; nothing secret depends on it.
        jitter = timedelta(seconds=random.uniform(0, self._jitter_seconds))  # noqa: S311
        self.next_run = self._occurrence + jitter


class Timers:
    """All timers of the daemon; ``clock`` returns the time of day, ``elapsed`` monotonic seconds."""

    def __init__(self, clock: Clock, elapsed: Callable[[], float] = elapsed_seconds) -> None:
        self._clock = clock
        self._scheduler = schedule.Scheduler()
        self._timer = partial(Timer, self._scheduler, clock=clock, elapsed=elapsed)
        self._checked_at = clock()
        self._cron: Timer | None = None
        self._cron_config: ScheduleConfig | None = None

    def add(self, next_occurrence: Schedule, call: Callable[[], None]) -> None:
        """Call a function at each occurrence from now on."""
        self._timer(next_occurrence, call, since=self._clock())

    def follow_cron(
        self, config: ScheduleConfig, call: Callable[[], None], *, since: datetime | None = None
    ) -> None:
        """Call a function at each occurrence of the configured schedule, which replaces the previous one.

        An unchanged one has no effect, unless ``since`` is given.  Occurrences after this time count, by
        default those after the last check.
        """
        if config == self._cron_config and since is None:
            return
        checked_at = self._checked_at
        if self._cron is not None:
            checked_at = min(checked_at, self._cron.checked_at)
            self._scheduler.cancel_job(self._cron)
        self._cron_config, self._cron = config, None
        if config.enabled:
            zone = local_zone if config.timezone == "local" else lambda: ZoneInfo(config.timezone)
            self._cron = self._timer(
                cron_schedule(config.cron, zone),
                call,
                since=since or checked_at,
                jitter_seconds=config.jitter_seconds,
            )

    def run_pending(self) -> None:
        """Call the function of each timer that is due, once."""
        for timer in self._scheduler.get_jobs():
            if isinstance(timer, Timer):
                timer.update()
        if self._cron is not None:
            self._cron.follow_zone()
        self._scheduler.run_pending()
        self._checked_at = self._clock()

    def next_cleanup(self) -> datetime | None:
        """Return the next occurrence of the cron schedule, None when it is off."""
        return None if self._cron is None else self._cron.next_run

    def seconds_to_next(self) -> float:
        """Return the seconds until a timer is due."""
        due = min((timer.next_run for timer in self._scheduler.get_jobs() if timer.next_run), default=None)
        return 0.0 if due is None else max(0.0, (due - self._clock()).total_seconds())


def explain(expressions: Sequence[str]) -> str:
    """Return cron expressions as text."""
    start = datetime(2000, 1, 1, tzinfo=UTC)
    return "; ".join(CronSim(expression, start).explain() for expression in expressions)
