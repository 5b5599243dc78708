"""What the daemon looks at between runs: the budget; and what a report asks of the daemon."""

from __future__ import annotations

import json

from pytest_httpserver import HTTPServer

from eemtcleanupd.daemon.messages import RunRequested
from eemtcleanupd.model import Trigger
from eemtcleanupd.report.collect import gather
from tests.daemon.conftest import Living

BUDGET = "capacity: {max_bytes: 1M}\n"


def told(server: HTTPServer) -> list[object]:
    return [json.loads(request.get_data())["data"] for request, _ in server.log]


def test_a_budget_that_is_passed_between_runs_is_told_within_the_hour_and_once(
    living: Living, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/hook").respond_with_data("ok")
    url = httpserver.url_for("/hook")
    living.store.job("a", days=1)
    living.start(BUDGET + f"notifications: {{webhook: {{enabled: true, on: capacity, url: '{url}'}}}}\n")
    living.put(RunRequested(Trigger.MANUAL, "ann"))
    living.settle()
    living.store.sql("UPDATE cleanup_sizes SET bytes = 900000")
    living.pass_time(hours=1)
    living.until(lambda: httpserver.log)
    living.pass_time(hours=1)
    living.store.sql("UPDATE cleanup_sizes SET bytes = 2000000")
    living.pass_time(hours=1)
    living.until(lambda: len(httpserver.log) == 2)
    assert told(httpserver) == [
        {"used_bytes": 900000, "max_bytes": 2**20, "warn_percent": 80},
        {"used_bytes": 2000000, "max_bytes": 2**20, "warn_percent": 80},
    ]


def test_a_history_of_an_earlier_version_goes_on(living: Living) -> None:
    living.store.job("a", days=1)
    living.start(BUDGET)
    living.put(RunRequested(Trigger.MANUAL, "ann"))
    living.settle()
    living.store.sql("ALTER TABLE cleanup_storage DROP COLUMN capacity_level")
    living.pass_time(hours=1)
    assert living.store.sql("SELECT capacity_level FROM cleanup_storage ORDER BY id") == [(None,), (0,)]


def test_a_report_knows_when_the_daemon_runs_next(living: Living) -> None:
    living.start('schedule: {enabled: true, cron: "0 2 * * *", timezone: UTC}\n')
    living.settle()
    found = gather(living.daemon.config, lambda: living.now, biggest=10)
    assert found.has_daemon
    assert f"{found.next_run_at:%Y-%m-%d %H:%M}" == "2026-06-16 02:00"
