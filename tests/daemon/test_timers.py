"""Timers: every rule about time, with clocks that the test controls."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, strategies as st

from eemtcleanupd.clock import local_zone
from eemtcleanupd.config.schema import ScheduleConfig
from eemtcleanupd.daemon.timers import Timers, cron_schedule, explain, interval_schedule

START = datetime(2026, 6, 15, 12, tzinfo=UTC)


@dataclass
class World:
    """A machine whose clock and elapsed time the test controls; ``calls`` are the times of the calls."""

    now: datetime = START
    elapsed: float = 0.0
    calls: list[datetime] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.timers = Timers(lambda: self.now, lambda: self.elapsed)

    def follow(self, *, since: datetime | None = None, **schedule: object) -> None:
        config = ScheduleConfig.model_validate({"enabled": True, "timezone": "UTC", **schedule})
        self.timers.follow_cron(config, lambda: self.calls.append(self.now), since=since)

    def check(self) -> None:
        self.timers.run_pending()

    def sleep(self, **span: float) -> None:
        """Let time pass at once, as on a machine that was suspended."""
        self.now += timedelta(**span)
        self.elapsed += timedelta(**span).total_seconds()
        self.check()

    def run(self, *, minutes: int) -> None:
        """Let time pass minute by minute."""
        for _ in range(minutes):
            self.sleep(minutes=1)

    def set_clock(self, now: datetime) -> None:
        self.now = now
        self.check()


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("crons", "zone", "start", "expected"),
    [
        (["0 2 * * *"], "UTC", "2026-06-15 12:00", ["2026-06-16 02:00", "2026-06-17 02:00"]),
        (["0 0 * * *"], "Europe/Berlin", "2026-06-15 12:00", ["2026-06-15 22:00", "2026-06-16 22:00"]),
        (["0 2 * * *", "0 14 * * *"], "UTC", "2026-06-15 12:00", ["2026-06-15 14:00", "2026-06-16 02:00"]),
        (["30 2 * * 1-5"], "UTC", "2026-06-19 12:00", ["2026-06-22 02:30", "2026-06-23 02:30"]),
        # The night of 29 March 2026 has no 02:30 in Berlin: it runs once all the same.
        (["30 2 * * *"], "Europe/Berlin", "2026-03-28 12:00", ["2026-03-29 01:00", "2026-03-30 00:30"]),
        # The night of 25 October 2026 has 02:30 twice: it runs once.
        (["30 2 * * *"], "Europe/Berlin", "2026-10-24 12:00", ["2026-10-25 00:30", "2026-10-26 01:30"]),
        # In the second 02:10 of that night, 02:30 is over.
        (["30 2 * * *"], "Europe/Berlin", "2026-10-25 01:10", ["2026-10-26 01:30", "2026-10-27 01:30"]),
        # An hourly schedule runs every hour of that night.
        (["0 * * * *"], "Europe/Berlin", "2026-10-25 00:30", ["2026-10-25 01:00", "2026-10-25 02:00"]),
    ],
)
def test_cron_expressions_are_local_times_even_when_clocks_change(
    crons: list[str], zone: str, start: str, expected: list[str]
) -> None:
    following = cron_schedule(crons, lambda: ZoneInfo(zone))
    first = following(datetime.fromisoformat(start).replace(tzinfo=UTC))
    assert [f"{moment:%Y-%m-%d %H:%M}" for moment in (first, following(first))] == expected


@given(
    st.integers(0, 700 * 24 * 60),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]),
)
def test_a_daily_schedule_has_one_occurrence_a_day_in_every_zone(minutes: int, zone: str) -> None:
    following = cron_schedule(["30 2 * * *"], lambda: ZoneInfo(zone))
    now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    days = []
    for _ in range(5):
        now, before = following(now), now
        assert before < now <= before + timedelta(hours=25)
        days.append(now.astimezone(ZoneInfo(zone)).date())
    assert days == [days[0] + timedelta(days=n) for n in range(5)]


def test_a_schedule_calls_at_its_time_and_knows_the_next_one(world: World) -> None:
    world.follow(cron="0 2 * * *")
    assert world.timers.next_cleanup() == datetime(2026, 6, 16, 2, tzinfo=UTC)
    world.run(minutes=14 * 60 - 1)
    assert world.calls == []
    world.run(minutes=24 * 60)
    assert world.calls == [datetime(2026, 6, 16, 2, tzinfo=UTC)]
    assert world.timers.next_cleanup() == datetime(2026, 6, 17, 2, tzinfo=UTC)


def test_a_machine_that_was_suspended_makes_up_for_all_missed_occurrences_with_one_call(world: World) -> None:
    world.follow(cron="0 * * * *")
    world.sleep(hours=9, minutes=20)
    assert len(world.calls) == 1
    world.run(minutes=60)
    assert len(world.calls) == 2


@pytest.mark.parametrize("back", [timedelta(seconds=2), timedelta(minutes=50), timedelta(hours=3)])
def test_a_clock_set_back_before_the_occurrence_does_not_repeat_the_call(
    world: World, back: timedelta
) -> None:
    world.follow(cron="0 13 * * *")
    world.run(minutes=61)
    assert len(world.calls) == 1
    world.set_clock(world.now - back)
    world.run(minutes=int(back.total_seconds() / 60) + 30)
    assert len(world.calls) == 1


@pytest.mark.parametrize("back", [timedelta(hours=12), timedelta(days=10), timedelta(days=400)])
def test_a_clock_set_far_back_does_not_stop_the_schedule(world: World, back: timedelta) -> None:
    world.follow(cron="0 * * * *")
    world.run(minutes=61)
    world.set_clock(world.now - back)
    world.run(minutes=6 * 60)
    assert 6 <= len(world.calls) <= 7


def test_a_clock_set_ahead_and_back_causes_one_call_and_the_schedule_continues(world: World) -> None:
    world.follow(cron="0 2 * * *")
    world.set_clock(START + timedelta(days=10))
    assert len(world.calls) == 1
    world.set_clock(START)
    world.run(minutes=14 * 60 + 1)
    assert len(world.calls) == 2


@given(st.lists(st.integers(-3 * 3600, 6 * 3600), max_size=30))
def test_whatever_the_clock_does_calls_are_at_least_half_a_period_apart(jumps: list[int]) -> None:
    world = World()
    called_at: list[float] = []
    config = ScheduleConfig(enabled=True, cron=("0 0,12 * * *",), timezone="UTC")
    world.timers.follow_cron(config, lambda: called_at.append(world.elapsed))
    for jump in jumps:
        world.sleep(minutes=20)
        if jump < 0:  # a clock set ahead looks like time that passed
            world.set_clock(world.now + timedelta(seconds=jump))
    assert all(later - earlier >= 6 * 3600 for earlier, later in itertools.pairwise(called_at))


def test_occurrences_missed_while_the_daemon_was_down_cause_one_call(world: World) -> None:
    world.follow(cron="0 2 * * *", since=START - timedelta(days=3))
    world.check()
    world.run(minutes=60)
    assert len(world.calls) == 1


def test_without_a_missed_occurrence_there_is_no_call(world: World) -> None:
    world.follow(cron="0 2 * * *", since=START - timedelta(hours=9))
    world.run(minutes=60)
    assert world.calls == []


def test_jitter_only_delays_a_call(world: World) -> None:
    world.follow(cron="0 13 * * *", jitter_seconds=1800)
    world.run(minutes=60 + 31)
    (call,) = world.calls
    assert START + timedelta(hours=1) <= call <= START + timedelta(hours=1, minutes=31)


@pytest.fixture
def waiting(world: World) -> World:
    """A machine on which the run of 13:00 waits for its jitter."""
    random.seed(1)  # the delay is some hours
    world.follow(cron="0 13 * * *", jitter_seconds=86_400)
    world.run(minutes=61)
    assert world.calls == []
    return world


def test_a_clock_set_back_during_the_jitter_loses_no_call(waiting: World) -> None:
    waiting.set_clock(waiting.now - timedelta(milliseconds=200))
    assert waiting.calls == []
    waiting.run(minutes=24 * 60 - 1)
    assert len(waiting.calls) >= 1


def test_a_schedule_changed_during_the_jitter_loses_no_call(waiting: World) -> None:
    waiting.follow(cron=["0 13 * * *", "0 20 * * *"])
    waiting.check()
    assert len(waiting.calls) == 1


def test_a_schedule_changed_between_two_checks_misses_nothing(world: World) -> None:
    world.follow(cron="0 13 * * *")
    world.sleep(minutes=59)
    world.now += timedelta(minutes=2)  # 13:01, and the last check was at 12:59
    world.follow(cron=["0 13 * * *", "0 20 * * *"])
    world.check()
    assert len(world.calls) == 1


def test_a_schedule_that_is_switched_off_makes_no_calls(world: World) -> None:
    world.follow(cron="0 13 * * *")
    world.follow(enabled=False)
    world.run(minutes=120)
    assert world.calls == []
    assert world.timers.next_cleanup() is None


def test_an_interval_keeps_its_pace_when_the_clock_is_set_back(world: World) -> None:
    calls: list[datetime] = []
    world.timers.add(interval_schedule(timedelta(hours=1)), lambda: calls.append(world.now))
    world.run(minutes=121)
    world.set_clock(world.now - timedelta(hours=5))
    world.run(minutes=121)
    assert len(calls) == 4


@pytest.mark.parametrize("jitter_seconds", [0, 600])
def test_the_schedule_follows_the_time_zone_of_the_machine(
    world: World, monkeypatch: pytest.MonkeyPatch, jitter_seconds: int
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    world.follow(cron="0 2 * * *", timezone="local", jitter_seconds=jitter_seconds)
    world.sleep(minutes=1)
    monkeypatch.setenv("TZ", "Asia/Tokyo")  # 02:00 there is 17:00 in UTC
    world.sleep(minutes=1)
    expected = datetime(2026, 6, 15, 17, tzinfo=UTC)
    next_run = world.timers.next_cleanup()
    assert next_run is not None
    assert expected <= next_run <= expected + timedelta(seconds=jitter_seconds)
    world.sleep(minutes=1)
    assert world.timers.next_cleanup() == next_run
    world.sleep(hours=6)
    assert len(world.calls) == 1


def test_cron_expressions_are_explained_as_text() -> None:
    assert explain(["0 2 * * *", "30 14 * * 6"]) == "At 02:00 every day; At 14:30 on Saturday"


@pytest.mark.parametrize(
    ("variable", "offset"),
    [("Asia/Kolkata", 5.5), (":Asia/Kolkata", 5.5), ("/usr/share/zoneinfo/Asia/Kolkata", 5.5), ("UTC", 0)],
)
def test_the_local_zone_is_the_one_that_the_c_library_uses(
    variable: str, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", variable)
    assert START.astimezone(local_zone()).utcoffset() == timedelta(hours=offset)
