"""The daemon's queries between runs: budget and storage history; and the next run in a report."""

from __future__ import annotations

import json

from pytest_httpserver import HTTPServer

from eemtcleanupd.daemon.messages import RunRequested
from eemtcleanupd.model import Trigger
from eemtcleanupd.report.collect import gather
from tests.daemon.conftest import DaemonHarness

BUDGET = "capacity: {max_bytes: 1M}\n"


def received(server: HTTPServer) -> list[object]:
    return [json.loads(request.get_data())["data"] for request, _ in server.log]


def test_a_budget_exceeded_between_runs_is_reported_once_within_an_hour(
    daemon: DaemonHarness, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/hook").respond_with_data("ok")
    url = httpserver.url_for("/hook")
    daemon.store.job("a", days=1)
    daemon.start(BUDGET + f"notifications: {{webhook: {{enabled: true, on: capacity, url: '{url}'}}}}\n")
    daemon.put(RunRequested(Trigger.MANUAL, "ann"))
    daemon.settle()
    daemon.store.sql("UPDATE cleanup_sizes SET bytes = 900000")
    daemon.pass_time(hours=1)
    daemon.until(lambda: httpserver.log)
    daemon.pass_time(hours=1)
    daemon.store.sql("UPDATE cleanup_sizes SET bytes = 2000000")
    daemon.pass_time(hours=1)
    daemon.until(lambda: len(httpserver.log) == 2)
    assert received(httpserver) == [
        {"used_bytes": 900000, "max_bytes": 2**20, "warn_percent": 80},
        {"used_bytes": 2000000, "max_bytes": 2**20, "warn_percent": 80},
    ]


def test_a_storage_history_of_an_earlier_version_is_continued(daemon: DaemonHarness) -> None:
    daemon.store.job("a", days=1)
    daemon.start(BUDGET)
    daemon.put(RunRequested(Trigger.MANUAL, "ann"))
    daemon.settle()
    daemon.store.sql("ALTER TABLE cleanup_storage DROP COLUMN capacity_level")
    daemon.pass_time(hours=1)
    assert daemon.store.sql("SELECT capacity_level FROM cleanup_storage ORDER BY id") == [(None,), (0,)]


def test_a_report_has_the_time_of_the_next_run(daemon: DaemonHarness) -> None:
    daemon.start('schedule: {enabled: true, cron: "0 2 * * *", timezone: UTC}\n')
    daemon.settle()
    report = gather(daemon.config, lambda: daemon.now, biggest=10)
    assert report.has_daemon
    assert f"{report.next_run_at:%Y-%m-%d %H:%M}" == "2026-06-16 02:00"
