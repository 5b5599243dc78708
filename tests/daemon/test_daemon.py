"""The daemon: its start, its reaction to each message, and its stop."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import threading
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from eemtcleanupd.daemon.messages import (
    Message,
    Notice,
    RoleChanged,
    RunCallbacks,
    RunRequested,
    RunStopRequested,
    StopRequested,
)
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
from tests.daemon.conftest import DaemonHarness

DAILY = 'schedule: {enabled: true, cron: "0 2 * * *", timezone: UTC}'


def triggers(daemon: DaemonHarness) -> list[str]:
    return [event.report.trigger for event in daemon.events_of(RunFinished) if isinstance(event, RunFinished)]


# -- start ---------------------------------------------------------------------------------------------------


def test_it_is_ready_when_it_holds_the_lock_and_has_checked_the_store(daemon: DaemonHarness) -> None:
    daemon.start(DAILY)
    holder = find_daemon(StoreAddress.of_file(daemon.store.path / "jobs.db"))
    assert holder is not None
    assert daemon.systemd_notifications()[0] == "READY=1"
    assert isinstance(daemon.events[0], DaemonStarted)


def test_a_second_daemon_on_the_store_is_refused_and_names_the_first(daemon: DaemonHarness) -> None:
    daemon.start()
    with pytest.raises(LockHeldError, match=rf"\b{os.getpid()}\b"):
        DaemonHarness(daemon.store, daemon.stack).start()


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda path: (path / "jobs.db").unlink(), StoreError),
        (lambda path: (path / "jobs.db").write_bytes(b"no database" * 500), StoreError),
        (lambda path: (path / "results").rmdir(), RootError),
        (lambda path: (path / "logs").write_text("a file"), ConfigError),
    ],
)
def test_it_does_not_start_on_an_unusable_store(
    daemon: DaemonHarness, spoil: object, error: type[Exception]
) -> None:
    assert callable(spoil)
    spoil(daemon.store.path)
    with pytest.raises(error):
        daemon.start()
    assert "READY=1" not in daemon.systemd_notifications()


def test_without_a_schedule_no_run_starts_and_the_status_says_why(daemon: DaemonHarness) -> None:
    daemon.store.job("old")
    daemon.start()
    daemon.pass_time(days=3)
    assert triggers(daemon) == []
    assert daemon.status().next_run_at is None
    assert "schedule.enabled" in daemon.status().summary()


# -- schedule ------------------------------------------------------------------------------------------------


def test_it_cleans_at_the_scheduled_time_every_day(daemon: DaemonHarness) -> None:
    daemon.store.job("old")
    daemon.start(DAILY)
    daemon.pass_time(hours=13)
    assert triggers(daemon) == []
    daemon.pass_time(hours=1)
    assert triggers(daemon) == ["schedule"]
    assert daemon.store.cleaned() == {"old"}
    daemon.pass_time(hours=24)
    assert triggers(daemon) == ["schedule", "schedule"]


def test_runs_missed_while_it_was_down_are_made_up_once(daemon: DaemonHarness) -> None:
    daemon.store.run()
    daemon.now += timedelta(days=3)
    daemon.start(DAILY)
    daemon.settle()
    daemon.pass_time(minutes=30)
    assert triggers(daemon) == ["schedule"]


@pytest.mark.parametrize(
    "setting", ["catch_up: false", "enabled: false"], ids=["no catch-up", "schedule off"]
)
def test_missed_runs_are_not_made_up_when_that_is_disabled(daemon: DaemonHarness, setting: str) -> None:
    daemon.store.run()
    daemon.now += timedelta(days=3)
    extra = "enabled: true, catch_up: false" if "catch_up" in setting else setting
    daemon.start(f'schedule: {{{extra}, cron: "0 2 * * *", timezone: UTC}}')
    daemon.settle()
    assert triggers(daemon) == []


def test_a_run_on_start_waits_for_the_start_delay(daemon: DaemonHarness) -> None:
    daemon.start("schedule: {run_on_start: true, start_delay_seconds: 600}")
    daemon.pass_time(minutes=9)
    assert triggers(daemon) == []
    daemon.pass_time(minutes=2)
    assert triggers(daemon) == ["start"]


@pytest.mark.slow
def test_a_scheduled_run_that_waits_does_not_start_after_the_schedule_was_disabled(
    daemon: DaemonHarness,
) -> None:
    daemon.store.run()
    daemon.now += timedelta(days=3)
    daemon.store.job("old")
    schedule = "schedule: {{enabled: {}, cron: '0 2 * * *', start_delay_seconds: 600}}"
    daemon.start(schedule.format("true"))
    daemon.settle()
    daemon.write(schedule.format("false"))
    daemon.reload()
    daemon.pass_time(minutes=11)
    assert triggers(daemon) == []
    assert daemon.store.results("old").exists()


def test_recovery_is_retried_until_the_other_process_releases_the_trash(
    daemon: DaemonHarness,
) -> None:
    """For example a frozen daemon, which has lost its other locks already."""
    daemon.store.job("old")
    daemon.store.run()
    daemon.store.sql("UPDATE cleanup_runs SET outcome = NULL, finished_at = NULL")
    trash = os.open(daemon.store.path / "results/.eemtcleanupd-trash", os.O_RDONLY)
    fcntl.flock(trash, fcntl.LOCK_EX)
    daemon.start()
    daemon.settle()
    for _ in range(12):
        daemon.pass_time(minutes=10)
    failed_runs = len(daemon.events_of(RunFailed))
    assert failed_runs > 1
    assert triggers(daemon) == []
    os.close(trash)
    daemon.pass_time(minutes=10)
    assert triggers(daemon) == ["recovery"]
    assert len(daemon.events_of(RunFailed)) == failed_runs


def test_the_rest_of_a_killed_run_waits_for_the_schedule(daemon: DaemonHarness) -> None:
    daemon.store.job("old")
    daemon.store.run()
    daemon.store.job("older", days=20)
    daemon.store.sql("UPDATE cleanup_runs SET outcome = NULL, finished_at = NULL")
    daemon.start(DAILY)
    daemon.settle()
    assert triggers(daemon) == ["recovery"]
    assert daemon.store.results("older").exists()
    daemon.pass_time(hours=14)
    assert triggers(daemon) == ["recovery", "schedule"]
    assert "older" in daemon.store.cleaned()


def test_after_a_killed_run_the_missed_ones_are_still_made_up(daemon: DaemonHarness) -> None:
    daemon.store.run()
    daemon.store.sql("UPDATE cleanup_runs SET outcome = NULL, finished_at = NULL")
    daemon.store.job("older", days=20)
    daemon.now += timedelta(days=3)
    daemon.start(DAILY)
    daemon.settle()
    daemon.settle()
    assert "schedule" in triggers(daemon)
    assert "older" in daemon.store.cleaned()


@pytest.mark.parametrize("setting", ["schedule: {run_on_start: true}", "dry_run: true"])
def test_no_recovery_run_starts_where_another_run_recovers_or_nothing_may_change(
    daemon: DaemonHarness, setting: str
) -> None:
    daemon.store.run()
    daemon.store.sql("UPDATE cleanup_runs SET outcome = NULL, finished_at = NULL")
    daemon.start(setting)
    daemon.settle()
    assert "recovery" not in triggers(daemon)


def test_a_requested_run_starts_after_the_recovery_that_is_pending(daemon: DaemonHarness) -> None:
    daemon.store.run()
    daemon.store.sql("UPDATE cleanup_runs SET outcome = NULL, finished_at = NULL")
    daemon.store.job("older", days=20)
    daemon.start()
    daemon.put(RunRequested(Trigger.SIGNAL, "tester"))
    daemon.settle()
    assert triggers(daemon)[-1] == "signal"
    assert "older" in daemon.store.cleaned()


def test_in_dry_run_mode_nothing_is_changed(daemon: DaemonHarness) -> None:
    daemon.store.job("old")
    before = daemon.store.snapshot()
    daemon.start(f"dry_run: true\n{DAILY}")
    daemon.pass_time(hours=14)
    (event,) = daemon.events_of(RunFinished)
    assert isinstance(event, RunFinished)
    assert event.report.dry_run
    assert daemon.store.snapshot() == before


def test_only_one_run_is_active_at_a_time(daemon: DaemonHarness) -> None:
    for number in range(30):
        daemon.store.job(f"old-{number}")
    daemon.start()
    for _ in range(5):
        daemon.put(RunRequested(Trigger.SIGNAL, "tester"))
    daemon.settle()
    assert triggers(daemon) == ["signal"]


def test_a_run_waits_for_that_of_a_command_and_starts_when_the_lock_is_free(daemon: DaemonHarness) -> None:
    daemon.store.job("old")
    daemon.start(DAILY)
    with run_lock(
        SqliteDatabase(daemon.store.path / "jobs.db", busy_timeout_seconds=1), "another-run", daemon.now
    ):
        daemon.pass_time(hours=14)
        daemon.pass_time(minutes=30)
        assert daemon.seconds_to_wait() > 0
    daemon.pass_time(minutes=1)
    assert triggers(daemon) == ["schedule"]
    assert daemon.events_of(RunFailed) == []
    assert daemon.store.cleaned() == {"old"}


def test_a_run_that_meets_a_lock_for_an_hour_is_reported_and_the_next_one_starts(
    daemon: DaemonHarness,
) -> None:
    daemon.start(DAILY)
    with run_lock(
        SqliteDatabase(daemon.store.path / "jobs.db", busy_timeout_seconds=1), "another-run", daemon.now
    ):
        daemon.pass_time(hours=14)
        daemon.pass_time(minutes=61)
        daemon.pass_time(minutes=61)
    assert len(daemon.events_of(RunFailed)) == 1
    daemon.pass_time(hours=24)
    assert triggers(daemon) == ["schedule"]


def test_a_scheduled_run_waits_for_a_run_that_a_client_requested(daemon: DaemonHarness) -> None:
    daemon.store.job("old")
    daemon.start(DAILY)
    results: list[object] = []
    callbacks = RunCallbacks(lambda _: None, results.append, retention=(100_000.0, 100_000.0))
    daemon.put(RunRequested(Trigger.API, "tester", callbacks))
    daemon.put(RunRequested(Trigger.SCHEDULE, "auto_cleanup"))
    daemon.settle()
    assert triggers(daemon) == ["api", "schedule"]
    assert daemon.store.cleaned() == {"old"}


def test_the_error_of_a_refused_run_is_in_the_status_until_a_run_succeeds(daemon: DaemonHarness) -> None:
    daemon.store.run()
    daemon.start(DAILY)
    daemon.store.path.joinpath("results").rename(daemon.store.path / "elsewhere")
    daemon.pass_time(hours=14)
    error = daemon.status().last_error
    assert error is not None
    assert error in daemon.status().summary()
    daemon.store.path.joinpath("elsewhere").rename(daemon.store.path / "results")
    daemon.pass_time(hours=24)
    assert daemon.status().last_error is None


def test_a_successful_run_of_a_command_ends_the_error_that_systemd_shows(daemon: DaemonHarness) -> None:
    daemon.store.run()
    daemon.start(DAILY)
    daemon.store.path.joinpath("results").rename(daemon.store.path / "elsewhere")
    daemon.pass_time(hours=14)
    assert daemon.status().last_error is not None
    daemon.store.path.joinpath("elsewhere").rename(daemon.store.path / "results")
    daemon.pass_time(hours=1)
    assert daemon.status().last_error is not None
    daemon.store.now = daemon.now
    daemon.store.run()
    daemon.pass_time(minutes=6)
    assert daemon.status().last_error is None


# -- metrics -------------------------------------------------------------------------------------------------


def metric(text: bytes, name: str) -> float | None:
    (value,) = re.findall(rf"^{name} (\S+)$", text.decode(), re.MULTILINE) or [None]
    return None if value is None else float(value)


def test_the_metrics_count_what_was_done_without_the_daemon(daemon: DaemonHarness) -> None:
    daemon.start(DAILY)
    assert metric(daemon.daemon.metrics(), "eemt_cleanup_runs_total") == 0
    daemon.store.job("old")
    daemon.store.run()
    text = daemon.daemon.metrics()
    assert metric(text, "eemt_cleanup_runs_total") == 1
    assert metric(text, "eemt_cleanup_last_success_timestamp_seconds") == daemon.store.now.timestamp()
    assert metric(text, "eemt_storage_size_bytes")


def test_the_metrics_have_the_next_run_of_the_schedule_in_force(daemon: DaemonHarness) -> None:
    name = "eemt_cleanup_next_run_timestamp_seconds"
    textfile = daemon.store.path / "metrics.prom"
    daemon.start(f"metrics: {{textfile: {textfile}}}\n{DAILY}")
    for hour in (4, 3):
        daemon.write(f"metrics: {{textfile: {textfile}}}\n{DAILY.replace('0 2', f'0 {hour}')}")
        daemon.reload()
        next_run = daemon.status().next_run_at
        assert next_run is not None
        assert next_run.hour == hour
        assert metric(daemon.daemon.metrics(), name) == next_run.timestamp()
    at_three = metric(daemon.daemon.metrics(), name)
    daemon.until(lambda: textfile.exists() and metric(textfile.read_bytes(), name) == at_three)
    daemon.write("schedule: {enabled: false}")
    daemon.reload()
    assert metric(daemon.daemon.metrics(), name) is None


# -- trash and storage ---------------------------------------------------------------------------------------


def test_the_trash_is_emptied_between_runs_when_its_grace_has_passed(daemon: DaemonHarness) -> None:
    daemon.store.job("old")
    daemon.start(f"trash: {{grace_hours: 1}}\n{DAILY}")
    daemon.put(RunRequested(Trigger.SIGNAL, "tester"))
    daemon.settle()
    assert daemon.store.trash()
    daemon.pass_time(minutes=50)
    assert daemon.store.trash()
    daemon.pass_time(minutes=15)
    assert daemon.store.trash() == []
    assert triggers(daemon) == ["signal", "trash"]
    assert daemon.store.sql("SELECT count(*) FROM cleanup_log WHERE action = 'purged'") == [(1,)]


def test_a_clock_that_was_set_far_ahead_does_not_empty_the_trash(daemon: DaemonHarness) -> None:
    daemon.store.job("old")
    daemon.start("trash: {grace_hours: 24}")
    daemon.put(RunRequested(Trigger.SIGNAL, "tester"))
    daemon.settle()
    daemon.pass_time(days=3650)
    assert daemon.store.trash()
    assert "clock" in (daemon.status().last_error or "")


def test_storage_is_sampled_every_hour(daemon: DaemonHarness) -> None:
    daemon.store.run()
    daemon.start()
    for _ in range(4):
        daemon.pass_time(minutes=60)
    assert daemon.store.sql("SELECT count(*) FROM cleanup_storage WHERE run_id IS NULL") == [(4,)]


# -- reload --------------------------------------------------------------------------------------------------


def test_a_valid_file_is_in_force_after_a_reload(daemon: DaemonHarness) -> None:
    daemon.start()
    daemon.write("retention: {failed_jobs: {hours: 99}}")
    daemon.reload()
    assert daemon.config.retention.failed_jobs.hours == 99
    assert len(daemon.events_of(ConfigReloaded)) == 1
    lines = [line.split("\n")[0] for line in daemon.systemd_notifications()]
    assert [line for line in lines if line.startswith(("READY", "RELOADING"))] == [
        "READY=1",
        "RELOADING=1",
        "READY=1",
    ]
    assert any("MONOTONIC_USEC=" in line for line in daemon.notifications)


def test_a_reload_changes_only_the_rate_limit_of_the_active_run(
    daemon: DaemonHarness,
) -> None:
    """At one file per second its 300 files would take five minutes."""
    daemon.store.job("slow", files=300)
    daemon.start("performance: {max_deletes_per_second: 1}")
    daemon.put(RunRequested(Trigger.SIGNAL, "tester"))
    daemon.until(lambda: daemon.active_run is not None and daemon.active_run.progress.pool)
    daemon.write("performance: {max_deletes_per_second: 0, nice: 1}\ndry_run: true")
    daemon.reload()
    daemon.until(lambda: daemon.events_of(RunFinished), seconds=60)
    assert daemon.store.cleaned() == {"slow"}


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("retentoin: {}", "retentoin"),
        ("retention: {failed_jobs: {hours: -1}}", "failed_jobs.hours"),
        ("paths: {database: other.db}", r"paths\.database"),
        ("", r"cleanup_config\.yaml"),
        ("# all of it commented out\n", r"cleanup_config\.yaml"),
        (None, r"cleanup_config\.yaml"),
    ],
)
def test_an_invalid_file_keeps_the_old_configuration_and_is_reported_everywhere(
    daemon: DaemonHarness, content: str | None, key: str
) -> None:
    daemon.start("retention: {failed_jobs: {hours: 99}}")
    before = daemon.config
    if content is None:
        daemon.file.unlink()
    else:
        daemon.file.write_text(content, encoding="utf-8")
    daemon.reload()
    assert daemon.config is before
    (event,) = daemon.events_of(ConfigRejected)
    assert isinstance(event, ConfigRejected)
    assert re.search(key, event.error)
    status = daemon.status()
    assert status.config_error == event.error
    error = event.error.replace("\n", " ")
    assert error in status.summary()
    assert any(error in line for line in daemon.systemd_notifications())


def test_a_valid_file_after_an_invalid_one_clears_the_error(daemon: DaemonHarness) -> None:
    daemon.start()
    for text in ("nonsense: 1", "retention: {failed_jobs: {hours: 5}}"):
        daemon.write(text)
        daemon.reload()
    assert daemon.status().config_error is None
    assert daemon.status().config_attempts == 3


@pytest.mark.slow
def test_a_run_keeps_the_configuration_with_which_it_started(daemon: DaemonHarness) -> None:
    for number in range(40):
        daemon.store.job(f"old-{number}", "failed", days=2)
    daemon.start("retention: {failed_jobs: {hours: 12}}\nperformance: {batch_size: 1}")
    daemon.put(RunRequested(Trigger.SIGNAL, "tester"))
    daemon.until(lambda: daemon.events_of(JobCleaned))
    daemon.write("retention: {failed_jobs: {hours: 1000}}")
    daemon.reload()
    daemon.settle()
    assert len(daemon.store.cleaned()) == 40
    assert daemon.config.retention.failed_jobs.hours == 1000


def test_a_reload_reopens_a_log_file_that_was_rotated(daemon: DaemonHarness) -> None:
    daemon.start()
    log = daemon.store.path / "logs" / "cleanup.log"
    log.rename(log.with_suffix(".old"))
    daemon.reload()
    logging.getLogger("eemtcleanupd").error("after")
    assert "after" in log.read_text()


@pytest.mark.slow
def test_a_locked_database_delays_the_metrics_but_does_not_prevent_them(daemon: DaemonHarness) -> None:
    daemon.store.run()
    daemon.start()
    with closing(sqlite3.connect(daemon.store.path / "jobs.db", isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert b"eemt_cleanup_" in daemon.daemon.metrics()


# -- stop ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_request_to_stop_interrupts_the_run_in_order_and_ends_the_daemon(daemon: DaemonHarness) -> None:
    for number in range(200):
        daemon.store.job(f"old-{number}", files=3)
    daemon.start("performance: {batch_size: 2, max_deletes_per_second: 50}")
    daemon.put(RunRequested(Trigger.SIGNAL, "tester"))
    daemon.until(lambda: daemon.events_of(JobCleaned))
    daemon.put(StopRequested("SIGTERM"))
    daemon.until(lambda: not daemon.step())
    (event,) = daemon.events_of(RunFinished)
    assert isinstance(event, RunFinished)
    assert isinstance(event.report, RunReport)
    assert event.report.outcome == "interrupted"
    assert "STOPPING=1" in daemon.systemd_notifications()
    assert daemon.events_of(DaemonStopping) == [DaemonStopping("SIGTERM")]
    deleted = {f"old-{n}" for n in range(200) if not daemon.store.results(f"old-{n}").exists()}
    assert daemon.store.cleaned() <= deleted
    daemon.store.run()  # allowed to clean nearly all of them, since no run has been complete yet
    assert len(daemon.store.cleaned()) == 200


@pytest.mark.slow
def test_a_run_is_stopped_in_order_and_the_daemon_continues(daemon: DaemonHarness) -> None:
    for number in range(200):
        daemon.store.job(f"old-{number}", files=3)
    daemon.start("performance: {batch_size: 2, max_deletes_per_second: 50}")
    daemon.put(RunStopRequested("tester"))  # without a run, nothing happens
    daemon.put(RunRequested(Trigger.SIGNAL, "tester"))
    daemon.until(lambda: daemon.events_of(JobCleaned))
    daemon.put(RunStopRequested("tester"))
    daemon.settle()
    (event,) = daemon.events_of(RunFinished)
    assert isinstance(event, RunFinished)
    assert event.report.outcome == "interrupted"
    assert daemon.step()


def test_a_request_to_stop_another_run_stops_nothing(daemon: DaemonHarness) -> None:
    for number in range(20):
        daemon.store.job(f"old-{number}", files=3)
    daemon.start("performance: {batch_size: 2}")
    daemon.put(RunRequested(Trigger.SIGNAL, "tester"))
    daemon.until(lambda: daemon.events_of(JobCleaned))
    daemon.put(RunStopRequested("tester", "20240120T020001-3f2a"))
    daemon.settle()
    (event,) = daemon.events_of(RunFinished)
    assert isinstance(event, RunFinished)
    assert event.report.outcome == "success"


def test_a_requested_purge_empties_the_trash_and_is_refused_before_a_cleanup(daemon: DaemonHarness) -> None:
    daemon.store.job("old")
    daemon.start("trash: {grace_hours: 24}")
    daemon.put(RunRequested(Trigger.SIGNAL, "tester"))
    daemon.settle()
    results: list[object] = []
    purge = RunCallbacks(lambda _: None, results.append, purge_older_than=timedelta())
    daemon.put(RunRequested(Trigger.TRASH, "tester", purge))
    daemon.settle()
    (report,) = results
    assert isinstance(report, RunReport)
    assert report.trash_purged.jobs == 1
    daemon.store.job("older")
    daemon.put(RunRequested(Trigger.TRASH, "tester", purge))
    daemon.put(RunRequested(Trigger.TRASH, "tester", purge))  # waits for the first
    daemon.put(RunRequested(Trigger.SIGNAL, "tester"))
    daemon.settle()
    assert {type(result) for result in results[1:]} == {RunReport, LockHeldError}
    assert "older" in daemon.store.cleaned()


@pytest.mark.parametrize(
    "options",
    [{"purge_older_than": timedelta()}, {"retention": (100_000.0, 100_000.0)}],
    ids=["purge", "run"],
)
def test_a_run_of_a_client_does_not_replace_the_daemons_own(
    daemon: DaemonHarness, options: dict[str, Any]
) -> None:
    daemon.store.job("old")
    daemon.start("schedule: {run_on_start: true, start_delay_seconds: 600}")
    daemon.step()
    results: list[object] = []
    trigger = Trigger.TRASH if "purge_older_than" in options else Trigger.API
    daemon.put(RunRequested(trigger, "tester", RunCallbacks(lambda _: None, results.append, **options)))
    daemon.settle()
    assert [type(result) for result in results] == [RunReport]
    assert "old" not in daemon.store.cleaned()
    daemon.pass_time(minutes=10)
    assert triggers(daemon)[-1] == "start"
    assert "old" in daemon.store.cleaned()


@pytest.mark.parametrize("message", [StopRequested("SIGTERM"), RoleChanged(is_active=False, reason="test")])
def test_a_client_whose_run_has_not_started_gets_an_answer_when_it_never_will(
    daemon: DaemonHarness, message: Message
) -> None:
    daemon.store.job("old")
    daemon.start("trash: {grace_hours: 24}")
    daemon.put(RunRequested(Trigger.SIGNAL, "tester"))
    daemon.settle()
    results: list[object] = []
    purge = RunCallbacks(lambda _: None, results.append, purge_older_than=timedelta())
    for each in (
        RunRequested(Trigger.TRASH, "tester"),
        RunRequested(Trigger.TRASH, "tester", purge),
        message,
    ):
        daemon.put(each)  # before the end of the first run
    daemon.until(lambda: results)
    assert [type(result) for result in results] == [LockHeldError]


@pytest.mark.parametrize("outcome", ["interrupted", "failed"])
def test_what_a_run_that_ended_early_was_deleting_is_finished_at_the_next_start(
    daemon: DaemonHarness, outcome: str
) -> None:
    daemon.store.job("old")
    daemon.store.run()
    daemon.store.sql("UPDATE cleanup_runs SET outcome = ?", outcome)
    daemon.store.sql(
        "INSERT INTO cleanup_intents"
        " (id, run_id, kind, state, job_id, status, artifacts, bytes_freed, size_bytes, created_at)"
        " VALUES ('x.1', 'x', 'job', 'open', 'young', 'completed', '[]', 0, 0, '2026-06-15 00:00:00')"
    )
    daemon.store.job("young", days=1)
    daemon.start()
    daemon.settle()
    assert triggers(daemon) == ["recovery"]
    assert daemon.store.sql("SELECT * FROM cleanup_intents") == []
    assert daemon.store.results("young").exists()


def test_a_run_that_was_interrupted_in_order_needs_no_recovery(daemon: DaemonHarness) -> None:
    daemon.store.job("old")
    daemon.store.run()
    daemon.store.sql("UPDATE cleanup_runs SET outcome = 'interrupted'")
    daemon.store.job("older", days=20)
    daemon.start()
    daemon.settle()
    assert triggers(daemon) == []
    assert daemon.store.results("older").exists()


def test_a_run_requested_after_the_stop_does_not_start(daemon: DaemonHarness) -> None:
    daemon.start()
    daemon.put(StopRequested("SIGTERM"))
    assert daemon.step() is False
    daemon.put(RunRequested(Trigger.SIGNAL, "tester"))
    daemon.step()
    assert triggers(daemon) == []


def test_at_the_end_its_threads_lock_and_status_file_are_gone(daemon: DaemonHarness, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    daemon.start()
    daemon.put(StopRequested("SIGTERM"))
    daemon.step()
    daemon.stack.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive(), thread.name
    assert find_daemon(StoreAddress.of_file(daemon.store.path / "jobs.db")) is None
    assert not list(daemon.store.path.glob("*.status.json"))


# -- health --------------------------------------------------------------------------------------------------


def test_each_step_of_the_loop_notifies_the_watchdog_once(daemon: DaemonHarness) -> None:
    daemon.start(environ={"WATCHDOG_USEC": "3000000"})
    daemon.systemd_notifications().clear()
    for _ in range(3):
        daemon.step()
    assert daemon.systemd_notifications().count("WATCHDOG=1") == 3
    assert daemon.seconds_to_wait() <= 1.0


def test_systemd_receives_the_time_of_the_next_run(daemon: DaemonHarness) -> None:
    daemon.start(DAILY)
    assert any(line.startswith("STATUS=") and "2026-06-16" in line for line in daemon.systemd_notifications())


def test_the_stacks_of_all_threads_are_logged_on_request(
    daemon: DaemonHarness, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.start()
    daemon.put(Notice.DUMP_THREADS)
    with caplog.at_level(logging.INFO):
        daemon.step()
    assert "MainThread" in caplog.text
    assert "in log_threads" in caplog.text
