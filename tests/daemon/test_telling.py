"""The daemon and its notifiers: what a reload changes, and what the audit log must know."""

from __future__ import annotations

import json

import pytest
from pytest_httpserver import HTTPServer

from eemtcleanupd.daemon.messages import RunRequested, StopRequested
from eemtcleanupd.errors import AuditError
from eemtcleanupd.events import ConfigRejected, RunFinished
from eemtcleanupd.model import Trigger
from tests.daemon.conftest import Living

DAILY = 'schedule: {enabled: true, cron: "0 2 * * *", timezone: UTC}\n'


def actions(living: Living) -> list[str]:
    path = living.store.path / "logs" / "cleanup_audit.jsonl"
    return [json.loads(line)["action"] for line in path.read_text().splitlines()]


def webhook(server: HTTPServer, on: str) -> str:
    return f"notifications: {{webhook: {{enabled: true, on: {on}, url: '{server.url_for('/hook')}'}}}}\n"


def told(server: HTTPServer) -> list[str]:
    return [json.loads(request.get_data())["event"] for request, _ in server.log]


def test_a_report_says_when_the_next_run_is(living: Living, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/hook").respond_with_data("ok")
    living.store.job("a")
    living.start(DAILY + webhook(httpserver, "success"))
    living.put(RunRequested(Trigger.MANUAL, "ann"))
    living.until(lambda: told(httpserver))
    report = json.loads(httpserver.log[0][0].get_data())["data"]["report"]
    assert report["next_run_at"].startswith("2026-06-16 02:00")
    assert report["storage"]["trend"]
    (finished,) = living.of(RunFinished)
    assert isinstance(finished, RunFinished)
    assert finished.report.next_run_at is not None


def test_a_reload_takes_notifiers_in_and_out(living: Living, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/hook").respond_with_data("ok")
    living.start(DAILY)
    living.write(DAILY + webhook(httpserver, "[config_reloaded]"))
    living.reload()
    living.until(lambda: told(httpserver) == ["ConfigReloaded"])
    living.write(DAILY)
    living.reload()
    assert living.daemon._delivery.drain(10)
    assert told(httpserver) == ["ConfigReloaded"]


def test_a_reload_with_a_plugin_that_cannot_be_loaded_is_refused(living: Living) -> None:
    living.start(DAILY)
    living.write(DAILY + "plugins: [no_such_module_here]\n")
    living.reload()
    (rejected,) = living.of(ConfigRejected)
    assert isinstance(rejected, ConfigRejected)
    assert "no_such_module_here" in rejected.error
    assert living.daemon.config.plugins == ()


def test_the_audit_log_knows_of_the_daemons_life_and_its_configuration(living: Living) -> None:
    living.start(DAILY)
    living.reload()
    living.write("nonsense: 1\n")
    living.reload()
    living.put(StopRequested("SIGTERM"))
    living.until(lambda: not living.step())
    assert actions(living) == ["daemon_started", "config_reloaded", "config_rejected", "daemon_stopping"]


def test_a_daemon_that_cannot_write_its_audit_log_does_not_start(living: Living) -> None:
    (living.store.path / "logs" / "cleanup_audit.jsonl").mkdir(parents=True)
    with pytest.raises(AuditError, match="audit"):
        living.start(DAILY)


def test_a_run_whose_audit_log_broke_meanwhile_deletes_nothing_and_the_daemon_lives(living: Living) -> None:
    living.store.job("a")
    living.start(DAILY)
    log = living.store.path / "logs" / "cleanup_audit.jsonl"
    log.unlink()
    log.mkdir()
    living.put(RunRequested(Trigger.MANUAL, "ann"))
    living.settle()
    assert living.store.results("a").exists()
    assert "audit log" in str(living.status().last_error)
    log.rmdir()
    living.put(RunRequested(Trigger.MANUAL, "ann"))
    living.settle()
    assert not living.store.results("a").exists()


def test_only_dry_runs_write_no_audit_log_and_no_ledger(living: Living, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/hook").respond_with_data("ok")
    living.store.job("a")
    living.start("dry_run: true\n" + DAILY + webhook(httpserver, "dry_run"))
    living.put(RunRequested(Trigger.MANUAL, "ann"))
    living.until(lambda: told(httpserver) == ["RunFinished"])
    assert not (living.store.path / "logs" / "cleanup_audit.jsonl").exists()
    assert living.store.sql("SELECT count(*) FROM sqlite_master WHERE name LIKE 'cleanup%'") == [(0,)]
