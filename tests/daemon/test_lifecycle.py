"""What the daemon does with what comes into its inbox."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from eemtcleanupd.daemon.messages import DumpThreads, RunRequested, StopRequested
from eemtcleanupd.errors import ConfigError, LockHeldError, RootError, StoreError
from eemtcleanupd.events import (
    ConfigRejected,
    ConfigReloaded,
    DaemonStarted,
    DaemonStopping,
    JobCleaned,
    RunFailed,
    RunFinished,
    RunReport,
)
from eemtcleanupd.model import Trigger
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.lock import find_daemon, run_lock
from eemtcleanupd.store.sqlite import SqliteDatabase
from tests.daemon.conftest import Living

DAILY = 'schedule: {enabled: true, cron: "0 2 * * *", timezone: UTC}'


def triggers(living: Living) -> list[str]:
    return [event.report.trigger for event in living.of(RunFinished) if isinstance(event, RunFinished)]


# -- start ---------------------------------------------------------------------------------------------------


def test_it_is_ready_only_when_it_holds_the_lock_and_has_seen_the_store(living: Living) -> None:
    living.start(DAILY)
    holder = find_daemon(StoreAddress.of_file(living.store.path / "jobs.db"))
    assert holder is not None
    assert living.heard()[0] == "READY=1"
    assert isinstance(living.events[0], DaemonStarted)


def test_a_second_daemon_on_the_store_names_the_first(living: Living) -> None:
    living.start()
    with pytest.raises(LockHeldError, match=r"jobs\.db: process \d+ on "):
        Living(living.store, living.stack).start()


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda path: (path / "jobs.db").unlink(), StoreError),
        (lambda path: (path / "jobs.db").write_bytes(b"no database" * 500), StoreError),
        (lambda path: (path / "results").rmdir(), RootError),
        (lambda path: (path / "logs").write_text("a file"), ConfigError),
    ],
)
def test_it_does_not_start_on_a_store_that_no_run_could_work_on(
    living: Living, spoil: object, error: type[Exception]
) -> None:
    assert callable(spoil)
    spoil(living.store.path)
    with pytest.raises(error):
        living.start()
    assert "READY=1" not in living.heard()


def test_without_a_schedule_it_says_that_it_cleans_nothing_by_itself(living: Living) -> None:
    living.store.job("old")
    living.start()
    living.pass_time(days=3)
    assert triggers(living) == []
    assert living.status().next_run_at is None
    assert "schedule is off" in living.status().summary()


# -- schedule ------------------------------------------------------------------------------------------------


def test_it_cleans_at_its_time_and_every_day_again(living: Living) -> None:
    living.store.job("old")
    living.start(DAILY)
    living.pass_time(hours=13)
    assert triggers(living) == []
    living.pass_time(hours=1)
    assert triggers(living) == ["schedule"]
    assert living.store.cleaned() == {"old"}
    living.pass_time(hours=24)
    assert triggers(living) == ["schedule", "schedule"]


def test_a_run_missed_while_it_was_down_is_made_up_once(living: Living) -> None:
    living.store.run()
    living.now += timedelta(days=3)
    living.start(DAILY)
    living.settle()
    living.pass_time(minutes=30)
    assert triggers(living) == ["schedule"]


@pytest.mark.parametrize(
    "setting", ["catch_up: false", "enabled: false"], ids=["not to catch up", "switched off"]
)
def test_nothing_is_made_up_when_it_is_not_wanted(living: Living, setting: str) -> None:
    living.store.run()
    living.now += timedelta(days=3)
    extra = "enabled: true, catch_up: false" if "catch_up" in setting else setting
    living.start(f'schedule: {{{extra}, cron: "0 2 * * *", timezone: UTC}}')
    living.settle()
    assert triggers(living) == []


def test_it_can_run_when_it_starts_but_not_before_its_delay(living: Living) -> None:
    living.start("schedule: {run_on_start: true, start_delay_seconds: 600}")
    living.pass_time(minutes=9)
    assert triggers(living) == []
    living.pass_time(minutes=2)
    assert triggers(living) == ["start"]


def test_a_run_that_was_left_is_gone_on_with_once_whoever_left_it_lets_go_of_the_trash(
    living: Living,
) -> None:
    """A frozen daemon, say, which has lost its other locks already."""
    living.store.job("old")
    living.store.run()
    living.store.job("older", days=20)
    living.store.sql("UPDATE cleanup_runs SET outcome = NULL, finished_at = NULL")
    trash = os.open(living.store.path / "results/.eemtcleanupd-trash", os.O_RDONLY)
    fcntl.flock(trash, fcntl.LOCK_EX)
    living.start()
    living.settle()
    for _ in range(12):
        living.pass_time(minutes=10)
    refused = len(living.of(RunFailed))
    assert refused > 1
    assert "older" not in living.store.cleaned()
    os.close(trash)
    living.pass_time(minutes=10)
    assert "older" in living.store.cleaned()
    assert len(living.of(RunFailed)) == refused


def test_a_run_that_was_killed_is_gone_on_with_at_once(living: Living) -> None:
    living.store.job("old")
    living.store.run()
    living.store.job("older", days=20)
    living.store.sql("UPDATE cleanup_runs SET outcome = NULL, finished_at = NULL")
    living.start()
    living.settle()
    assert triggers(living) == ["recovery"]
    assert "older" in living.store.cleaned()


def test_in_dry_run_mode_it_only_shows(living: Living) -> None:
    living.store.job("old")
    before = living.store.snapshot()
    living.start(f"dry_run: true\n{DAILY}")
    living.pass_time(hours=14)
    (event,) = living.of(RunFinished)
    assert isinstance(event, RunFinished)
    assert event.report.dry_run
    assert living.store.snapshot() == before


def test_only_one_run_goes_on_at_a_time(living: Living) -> None:
    for number in range(30):
        living.store.job(f"old-{number}")
    living.start()
    for _ in range(5):
        living.put(RunRequested(Trigger.SIGNAL, "tester"))
        living.step()
    living.settle()
    assert triggers(living) == ["signal"]


def test_a_run_that_another_holds_up_is_told_and_the_next_one_comes(living: Living) -> None:
    living.start(DAILY)
    with run_lock(
        SqliteDatabase(living.store.path / "jobs.db", busy_timeout_seconds=1), "theirs", living.now
    ):
        living.pass_time(hours=14)
    assert len(living.of(RunFailed)) == 1
    living.pass_time(hours=24)
    assert triggers(living) == ["schedule"]


def test_a_run_that_is_refused_stands_in_the_status_until_one_is_not(living: Living) -> None:
    living.store.run()
    living.start(DAILY)
    living.store.path.joinpath("results").rename(living.store.path / "elsewhere")
    living.pass_time(hours=14)
    assert "the last run failed" in living.status().summary()
    living.store.path.joinpath("elsewhere").rename(living.store.path / "results")
    living.pass_time(hours=24)
    assert living.status().last_error is None


# -- trash and storage ---------------------------------------------------------------------------------------


def test_the_trash_is_emptied_when_its_grace_is_over_between_two_runs(living: Living) -> None:
    living.store.job("old")
    living.start(f"trash: {{grace_hours: 1}}\n{DAILY}")
    living.put(RunRequested(Trigger.SIGNAL, "tester"))
    living.settle()
    assert living.store.trash()
    living.pass_time(minutes=50)
    assert living.store.trash()
    living.pass_time(minutes=15)
    assert living.store.trash() == []
    assert triggers(living) == ["signal", "trash"]
    assert living.store.sql("SELECT count(*) FROM cleanup_log WHERE action = 'purged'") == [(1,)]


def test_a_clock_that_leapt_does_not_empty_the_trash(living: Living) -> None:
    living.store.job("old")
    living.start("trash: {grace_hours: 24}")
    living.put(RunRequested(Trigger.SIGNAL, "tester"))
    living.settle()
    living.pass_time(days=3650)
    assert living.store.trash()
    assert "the clock" in (living.status().last_error or "")


def test_storage_is_sampled_every_hour(living: Living) -> None:
    living.store.run()
    living.start()
    for _ in range(4):
        living.pass_time(minutes=60)
    assert living.store.sql("SELECT count(*) FROM cleanup_storage WHERE run_id IS NULL") == [(4,)]


# -- reload --------------------------------------------------------------------------------------------------


def test_a_good_file_is_in_force_after_a_reload(living: Living) -> None:
    daemon = living.start()
    living.write("retention: {failed_jobs: {hours: 99}}")
    living.reload()
    assert daemon.config.retention.failed_jobs.hours == 99
    assert len(living.of(ConfigReloaded)) == 1
    told = [line.split("\n")[0] for line in living.heard() if line.startswith(("READY", "RELOADING"))]
    assert told == ["READY=1", "RELOADING=1", "READY=1"]
    assert any("MONOTONIC_USEC=" in line for line in living.told)


def test_a_reload_lifts_the_limit_of_a_run_that_goes_on_and_changes_nothing_else_of_it(
    living: Living,
) -> None:
    """At one a second its 300 files would take five minutes."""
    living.store.job("slow", files=300)
    daemon = living.start("performance: {max_deletes_per_second: 1}")
    living.put(RunRequested(Trigger.SIGNAL, "tester"))
    living.until(lambda: daemon._runner.running is not None and daemon._runner.running.progress.pool)
    living.write("performance: {max_deletes_per_second: 0, nice: 1}\ndry_run: true")
    living.reload()
    living.until(lambda: living.of(RunFinished), seconds=60)
    assert living.store.cleaned() == {"slow"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("retentoin: {}", "did you mean retention"),
        ("retention: {failed_jobs: {hours: -1}}", "failed_jobs.hours"),
        ("paths: {database: other.db}", "paths"),
        ("", "sets nothing"),
        ("# all of it commented out\n", "sets nothing"),
        (None, "is gone|cannot be read|No such file"),
    ],
)
def test_a_bad_file_keeps_the_old_configuration_and_is_told_everywhere(
    living: Living, content: str | None, words: str
) -> None:
    daemon = living.start("retention: {failed_jobs: {hours: 99}}")
    before = daemon.config
    if content is None:
        living.file.unlink()
    else:
        living.file.write_text(content, encoding="utf-8")
    living.reload()
    assert daemon.config is before
    (event,) = living.of(ConfigRejected)
    assert isinstance(event, ConfigRejected)
    assert re.search(words, event.error)
    status = living.status()
    assert status.config_error == event.error
    assert "refused" in status.summary()
    assert any("refused" in line for line in living.heard())


def test_a_good_file_after_a_bad_one_ends_the_alarm(living: Living) -> None:
    living.start()
    for text in ("nonsense: 1", "retention: {failed_jobs: {hours: 5}}"):
        living.write(text)
        living.reload()
    assert living.status().config_error is None
    assert living.status().config_attempts == 3


def test_a_run_keeps_the_configuration_that_it_began_with(living: Living) -> None:
    for number in range(40):
        living.store.job(f"old-{number}", "failed", days=2)
    living.start("retention: {failed_jobs: {hours: 12}}\nperformance: {batch_size: 1}")
    living.put(RunRequested(Trigger.SIGNAL, "tester"))
    living.until(lambda: living.of(JobCleaned))
    living.write("retention: {failed_jobs: {hours: 1000}}")
    living.reload()
    living.settle()
    assert len(living.store.cleaned()) == 40
    assert living.daemon.config.retention.failed_jobs.hours == 1000


def test_a_reload_reopens_the_log_for_whoever_rotates_it(living: Living) -> None:
    living.start()
    log = living.store.path / "logs" / "cleanup.log"
    log.rename(log.with_suffix(".old"))
    living.reload()
    logging.getLogger("eemtcleanupd").error("after")
    assert "after" in log.read_text()


# -- stop ----------------------------------------------------------------------------------------------------


def test_asked_to_stop_it_ends_a_run_in_order_and_then_itself(living: Living) -> None:
    for number in range(200):
        living.store.job(f"old-{number}", files=3)
    living.start("performance: {batch_size: 2}")
    living.put(RunRequested(Trigger.SIGNAL, "tester"))
    living.until(lambda: living.of(JobCleaned))
    living.put(StopRequested("SIGTERM"))
    living.until(lambda: not living.step())
    (event,) = living.of(RunFinished)
    assert isinstance(event, RunFinished)
    assert isinstance(event.report, RunReport)
    assert event.report.outcome == "interrupted"
    assert "STOPPING=1" in living.heard()
    assert living.of(DaemonStopping) == [DaemonStopping("SIGTERM")]
    gone = {f"old-{n}" for n in range(200) if not living.store.results(f"old-{n}").exists()}
    assert living.store.cleaned() <= gone
    living.store.run()  # nearly all of so many, but no run has been whole yet
    assert len(living.store.cleaned()) == 200


def test_a_run_that_was_stopped_with_the_daemon_is_gone_on_with_at_the_next_start(living: Living) -> None:
    living.store.job("old")
    living.store.run()
    living.store.sql("UPDATE cleanup_runs SET outcome = 'interrupted'")
    living.start()
    living.settle()
    assert triggers(living) == ["recovery"]


def test_what_comes_after_the_wish_to_stop_is_too_late(living: Living) -> None:
    living.start()
    living.put(StopRequested("SIGTERM"))
    assert living.step() is False
    living.put(RunRequested(Trigger.SIGNAL, "tester"))
    living.step()
    assert triggers(living) == []


def test_everything_it_opened_is_closed_in_the_end(living: Living, tmp_path: Path) -> None:
    before = threading.active_count()
    living.start()
    living.put(StopRequested("SIGTERM"))
    living.step()
    living.stack.close()
    assert threading.active_count() == before
    assert find_daemon(StoreAddress.of_file(living.store.path / "jobs.db")) is None
    assert not list(living.store.path.glob("*.status.json"))


# -- health --------------------------------------------------------------------------------------------------


def test_the_watchdog_is_fed_by_the_loop_and_by_nothing_else(living: Living) -> None:
    living.start(environ={"WATCHDOG_USEC": "3000000"})
    living.heard().clear()
    for _ in range(3):
        living.step()
    assert living.heard().count("WATCHDOG=1") == 3
    assert living.daemon._wait_seconds() <= 1.0


def test_the_status_has_the_next_run_in_words(living: Living) -> None:
    living.start(DAILY)
    assert any(line.startswith("STATUS=Next run Tue 2026-06-16") for line in living.heard())


def test_all_threads_are_told_on_request(living: Living, caplog: pytest.LogCaptureFixture) -> None:
    living.start()
    living.put(DumpThreads())
    with caplog.at_level(logging.INFO):
        living.step()
    assert "Thread MainThread:" in caplog.text
    assert "in log_threads" in caplog.text
