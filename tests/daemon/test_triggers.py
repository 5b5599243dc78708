"""When the daemon's timers call: every rule about time, with clocks that the test moves."""

from __future__ import annotations

import itertools
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
    """A machine whose clock and real time the test moves; ``calls`` are when the schedule called."""

    now: datetime = START
    elapsed: float = 0.0
    calls: list[datetime] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.triggers = Timers(lambda: self.now, lambda: self.elapsed)

    def follow(self, *, since: datetime | None = None, **schedule: object) -> None:
        config = ScheduleConfig.model_validate({"enabled": True, "timezone": "UTC", **schedule})
        self.triggers.follow_cron(config, lambda: self.calls.append(self.now), since=since)

    def look(self) -> None:
        self.triggers.run_pending()

    def sleep(self, **span: float) -> None:
        """Let time pass at once, as on a machine that was suspended."""
        self.now += timedelta(**span)
        self.elapsed += timedelta(**span).total_seconds()
        self.look()

    def live(self, *, minutes: int) -> None:
        """Let time pass minute by minute."""
        for _ in range(minutes):
            self.sleep(minutes=1)

    def set_clock(self, now: datetime) -> None:
        self.now = now
        self.look()


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
        # An hourly schedule goes on every hour of that night.
        (["0 * * * *"], "Europe/Berlin", "2026-10-25 00:30", ["2026-10-25 01:00", "2026-10-25 02:00"]),
    ],
)
def test_a_cron_expression_means_local_times_also_when_clocks_change(
    crons: list[str], zone: str, start: str, expected: list[str]
) -> None:
    following = cron_schedule(crons, lambda: ZoneInfo(zone))
    first = following(datetime.fromisoformat(start).replace(tzinfo=UTC))
    assert [f"{moment:%Y-%m-%d %H:%M}" for moment in (first, following(first))] == expected


@given(
    st.integers(0, 700 * 24 * 60),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]),
)
def test_a_daily_schedule_comes_once_a_day_whatever_the_zone(minutes: int, zone: str) -> None:
    following = cron_schedule(["30 2 * * *"], lambda: ZoneInfo(zone))
    now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    days = []
    for _ in range(5):
        now, before = following(now), now
        assert before < now <= before + timedelta(hours=25)
        days.append(now.astimezone(ZoneInfo(zone)).date())
    assert days == [days[0] + timedelta(days=n) for n in range(5)]


def test_a_schedule_calls_at_its_time_and_says_when_the_next_is(world: World) -> None:
    world.follow(cron="0 2 * * *")
    assert world.triggers.next_cleanup() == datetime(2026, 6, 16, 2, tzinfo=UTC)
    world.live(minutes=14 * 60 - 1)
    assert world.calls == []
    world.live(minutes=24 * 60)
    assert world.calls == [datetime(2026, 6, 16, 2, tzinfo=UTC)]
    assert world.triggers.next_cleanup() == datetime(2026, 6, 17, 2, tzinfo=UTC)


def test_a_suspended_machine_makes_up_for_all_that_it_slept_through_by_one_call(world: World) -> None:
    world.follow(cron="0 * * * *")
    world.sleep(hours=9, minutes=20)
    assert len(world.calls) == 1
    world.live(minutes=60)
    assert len(world.calls) == 2


@pytest.mark.parametrize("back", [timedelta(seconds=2), timedelta(minutes=50), timedelta(hours=3)])
def test_a_clock_set_back_over_the_time_does_not_repeat_the_call(world: World, back: timedelta) -> None:
    world.follow(cron="0 13 * * *")
    world.live(minutes=61)
    assert len(world.calls) == 1
    world.set_clock(world.now - back)
    world.live(minutes=int(back.total_seconds() / 60) + 30)
    assert len(world.calls) == 1


@pytest.mark.parametrize("back", [timedelta(hours=12), timedelta(days=10), timedelta(days=400)])
def test_a_clock_set_far_back_does_not_silence_the_schedule(world: World, back: timedelta) -> None:
    world.follow(cron="0 * * * *")
    world.live(minutes=61)
    world.set_clock(world.now - back)
    world.live(minutes=6 * 60)
    assert 6 <= len(world.calls) <= 7


def test_a_clock_that_leaps_ahead_and_returns_calls_once_and_goes_on(world: World) -> None:
    world.follow(cron="0 2 * * *")
    world.set_clock(START + timedelta(days=10))
    assert len(world.calls) == 1
    world.set_clock(START)
    world.live(minutes=14 * 60 + 1)
    assert len(world.calls) == 2


@given(st.lists(st.integers(-3 * 3600, 6 * 3600), max_size=30))
def test_however_the_clock_jumps_calls_are_never_closer_than_half_a_period(jumps: list[int]) -> None:
    world = World()
    at: list[float] = []
    config = ScheduleConfig(enabled=True, cron=("0 0,12 * * *",), timezone="UTC")
    world.triggers.follow_cron(config, lambda: at.append(world.elapsed))
    for jump in jumps:
        world.sleep(minutes=20)
        if jump < 0:  # ahead is time that passed, as far as anyone can tell
            world.set_clock(world.now + timedelta(seconds=jump))
    assert all(later - earlier >= 6 * 3600 for earlier, later in itertools.pairwise(at))


def test_a_run_missed_while_the_daemon_was_down_is_made_up_once(world: World) -> None:
    world.follow(cron="0 2 * * *", since=START - timedelta(days=3))
    world.look()
    world.live(minutes=60)
    assert len(world.calls) == 1


def test_nothing_is_made_up_when_nothing_was_missed(world: World) -> None:
    world.follow(cron="0 2 * * *", since=START - timedelta(hours=9))
    world.live(minutes=60)
    assert world.calls == []


def test_jitter_starts_later_and_never_earlier(world: World) -> None:
    world.follow(cron="0 13 * * *", jitter_seconds=1800)
    world.live(minutes=60 + 31)
    (call,) = world.calls
    assert START + timedelta(hours=1) <= call <= START + timedelta(hours=1, minutes=31)


def test_a_schedule_that_is_changed_between_two_looks_misses_nothing(world: World) -> None:
    world.follow(cron="0 13 * * *")
    world.sleep(minutes=59)
    world.now += timedelta(minutes=2)  # 13:01, and nobody has looked since 12:59
    world.follow(cron=["0 13 * * *", "0 20 * * *"])
    world.look()
    assert len(world.calls) == 1


def test_a_schedule_that_is_switched_off_is_silent(world: World) -> None:
    world.follow(cron="0 13 * * *")
    world.follow(enabled=False)
    world.live(minutes=120)
    assert world.calls == []
    assert world.triggers.next_cleanup() is None


def test_an_interval_keeps_its_pace_when_the_clock_is_set_back(world: World) -> None:
    calls: list[datetime] = []
    world.triggers.add(interval_schedule(timedelta(hours=1)), lambda: calls.append(world.now))
    world.live(minutes=121)
    world.set_clock(world.now - timedelta(hours=5))
    world.live(minutes=121)
    assert len(calls) == 4


def test_the_words_of_a_schedule_say_what_it_is() -> None:
    assert explain(["0 2 * * *", "30 14 * * 6"]) == "At 02:00 every day; At 14:30 on Saturday"


@pytest.mark.parametrize(
    ("variable", "offset"),
    [("Asia/Kolkata", 5.5), (":Asia/Kolkata", 5.5), ("/usr/share/zoneinfo/Asia/Kolkata", 5.5), ("UTC", 0)],
)
def test_the_machines_zone_is_found_as_the_c_library_finds_it(
    variable: str, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", variable)
    assert START.astimezone(local_zone()).utcoffset() == timedelta(hours=offset)
