"""The daemon's notifiers: the effect of a reload, and the entries of the audit log."""

from __future__ import annotations

import json

import pytest
from pytest_httpserver import HTTPServer

from eemtcleanupd.daemon.messages import RunRequested, StopRequested
from eemtcleanupd.errors import AuditError, ConfigError
from eemtcleanupd.events import ConfigRejected, RunFinished
from eemtcleanupd.model import Trigger
from eemtcleanupd.web.supervisor import HttpInterface
from tests.daemon.conftest import DaemonHarness

DAILY = 'schedule: {enabled: true, cron: "0 2 * * *", timezone: UTC}\n'


def actions(daemon: DaemonHarness) -> list[str]:
    path = daemon.store.path / "logs" / "cleanup_audit.jsonl"
    return [json.loads(line)["action"] for line in path.read_text().splitlines()]


def webhook(server: HTTPServer, on: str) -> str:
    return f"notifications: {{webhook: {{enabled: true, on: {on}, url: '{server.url_for('/hook')}'}}}}\n"


def received(server: HTTPServer) -> list[str]:
    return [json.loads(request.get_data())["event"] for request, _ in server.log]


def test_a_report_has_the_time_of_the_next_run(daemon: DaemonHarness, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/hook").respond_with_data("ok")
    daemon.store.job("a")
    daemon.start(DAILY + webhook(httpserver, "success"))
    daemon.put(RunRequested(Trigger.MANUAL, "ann"))
    daemon.until(lambda: received(httpserver))
    report = json.loads(httpserver.log[0][0].get_data())["data"]["report"]
    assert report["next_run_at"].startswith("2026-06-16 02:00")
    assert report["storage"]["trend"]
    (finished,) = daemon.events_of(RunFinished)
    assert isinstance(finished, RunFinished)
    assert finished.report.next_run_at is not None


def test_a_reload_adds_and_removes_notifiers(daemon: DaemonHarness, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/hook").respond_with_data("ok")
    daemon.start(DAILY)
    daemon.write(DAILY + webhook(httpserver, "[config_reloaded]"))
    daemon.reload()
    daemon.until(lambda: received(httpserver) == ["ConfigReloaded"])
    daemon.write(DAILY)
    daemon.reload()
    daemon.stack.close()  # it waits until everything is delivered
    assert received(httpserver) == ["ConfigReloaded"]


def test_a_reload_with_a_plugin_that_cannot_be_loaded_is_refused(daemon: DaemonHarness) -> None:
    daemon.start(DAILY)
    daemon.write(DAILY + "plugins: [no_such_module_here]\n")
    daemon.reload()
    (rejected,) = daemon.events_of(ConfigRejected)
    assert isinstance(rejected, ConfigRejected)
    assert "no_such_module_here" in rejected.error
    assert daemon.config.plugins == ()


def test_the_audit_log_records_start_stop_and_reloads(daemon: DaemonHarness) -> None:
    daemon.start(DAILY)
    daemon.reload()
    daemon.write("nonsense: 1\n")
    daemon.reload()
    daemon.put(StopRequested("SIGTERM"))
    daemon.until(lambda: not daemon.step())
    assert actions(daemon) == ["daemon_started", "config_reloaded", "config_rejected", "daemon_stopping"]


def test_a_start_that_fails_is_not_recorded_as_one(daemon: DaemonHarness) -> None:
    with pytest.raises(ConfigError):
        daemon.start(f"{DAILY}api: {{enabled: true}}\n", interface=HttpInterface())
    assert not (daemon.store.path / "logs" / "cleanup_audit.jsonl").exists()


def test_a_daemon_that_cannot_write_its_audit_log_does_not_start(daemon: DaemonHarness) -> None:
    (daemon.store.path / "logs" / "cleanup_audit.jsonl").mkdir(parents=True)
    with pytest.raises(AuditError, match=r"cleanup_audit\.jsonl"):
        daemon.start(DAILY)


def test_a_run_without_a_writable_audit_log_deletes_nothing_and_the_daemon_continues(
    daemon: DaemonHarness,
) -> None:
    daemon.store.job("a")
    daemon.start(DAILY)
    log = daemon.store.path / "logs" / "cleanup_audit.jsonl"
    log.unlink()
    log.mkdir()
    daemon.put(RunRequested(Trigger.MANUAL, "ann"))
    daemon.settle()
    assert daemon.store.results("a").exists()
    assert "cleanup_audit.jsonl" in str(daemon.status().last_error)
    log.rmdir()
    daemon.put(RunRequested(Trigger.MANUAL, "ann"))
    daemon.settle()
    assert not daemon.store.results("a").exists()


def test_in_dry_run_mode_no_audit_log_and_no_ledger_are_written(
    daemon: DaemonHarness, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/hook").respond_with_data("ok")
    daemon.store.job("a")
    daemon.start("dry_run: true\n" + DAILY + webhook(httpserver, "dry_run"))
    daemon.put(RunRequested(Trigger.MANUAL, "ann"))
    daemon.until(lambda: received(httpserver) == ["RunFinished"])
    assert not (daemon.store.path / "logs" / "cleanup_audit.jsonl").exists()
    assert daemon.store.sql("SELECT count(*) FROM sqlite_master WHERE name LIKE 'cleanup%'") == [(0,)]
