"""The storage budget in the outputs of a run, in notifications, in status and in doctor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from email import message_from_bytes, policy
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from pytest_httpserver import HTTPServer

from eemtcleanupd.doctor.examine import examine
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.plugins import load
from tests.cleanup.conftest import JobStore
from tests.cli.test_notify_test import Mailbox
from tests.conftest import RunCli
from tests.ports import free_port


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "store", now=datetime.now(UTC))


@pytest.fixture
def mail() -> Iterator[tuple[int, Mailbox]]:
    mailbox, port = Mailbox(), free_port()
    server = Controller(mailbox, hostname="localhost", port=port, ready_timeout=60)
    server.start()
    yield port, mailbox
    server.stop()


def configure(store: JobStore, text: str) -> None:
    (store.path / "cleanup_config.yaml").write_text(f"database: {{timezone: UTC}}\n{text}\n")


@pytest.mark.slow
def test_a_run_warns_of_an_exceeded_budget_once(
    store: JobStore, run_cli: RunCli, httpserver: HTTPServer, mail: tuple[int, Mailbox]
) -> None:
    httpserver.expect_request("/hook").respond_with_data("ok")
    port, mailbox = mail
    textfile = store.path / "eemt.prom"
    configure(
        store,
        f"""
capacity: {{max_bytes: 8K}}
metrics: {{textfile: {textfile}}}
notifications:
  email: {{enabled: true, smtp_port: {port}, recipients: [admin@example.com], only_if_cleaned: true}}
  webhook: {{enabled: true, url: "{httpserver.url_for("/hook")}", on: [capacity]}}
""",
    )
    store.job("a", days=1)
    first = run_cli("clean", cwd=store.path)
    assert first.returncode == 0
    assert "[WARNING] Jobs " in first.stdout
    assert " % of their budget of 8 KB" in first.stdout
    second = run_cli("clean", cwd=store.path)
    assert "budget" not in second.stdout
    (content,) = mailbox.received
    message = message_from_bytes(content, policy=policy.default)
    assert message["Subject"] == "EEMT jobs use all of their budget of 8 KB"
    (request, _) = httpserver.log[0]
    assert len(httpserver.log) == 1
    assert request.headers["X-Eemtcleanupd-Event"] == "CapacityWarning"
    assert json.loads(request.get_data())["data"]["max_bytes"] == 8192
    assert "eemt_capacity_max_bytes 8192.0" in textfile.read_text()
    log = (store.path / "logs" / "cleanup.log").read_text()
    assert log.count("WARNING: Jobs ") == 1


@pytest.mark.slow
def test_status_and_doctor_show_the_budget(store: JobStore, run_cli: RunCli) -> None:
    store.job("a", days=1)
    configure(store, "capacity: {max_bytes: 1G}")
    assert "Budget    1 GB, " in run_cli("status", cwd=store.path).stdout
    store.run()
    capacity = json.loads(run_cli("status", "--json", cwd=store.path).stdout)["capacity"]
    assert (capacity["max_bytes"], capacity["used_percent"]) == (2**30, 0.0)
    assert capacity["held_bytes"] > 0
    assert " of 1 GB (0.0 %)" in run_cli("status", cwd=store.path).stdout
    for budget, level in (("1G", "ok"), ("1K", "warning")):
        configure(store, f"capacity: {{max_bytes: {budget}}}")
        loaded = load(store.path / "cleanup_config.yaml", environ={}, cwd=store.path)
        (finding,) = [each for each in examine(loaded, store.now) if each.check == "capacity"]
        assert finding.level == level
        assert "capacity.max_bytes" in finding.message
        assert ("report" in finding.advice) == (level == "warning")


@pytest.mark.parametrize("value", ["much", "-1", "0", "true", "[1]", "10X", "1e400", ".inf"])
def test_an_invalid_budget_is_an_error_with_its_line(store: JobStore, value: str) -> None:
    configure(store, f"capacity: {{max_bytes: {value}}}")
    with pytest.raises(ConfigError, match=r"cleanup_config\.yaml:2:\d+: capacity\.max_bytes"):
        load(store.path / "cleanup_config.yaml", environ={}, cwd=store.path)
