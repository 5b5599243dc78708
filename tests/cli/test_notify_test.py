"""Notifications of the daemon and of runs with failing notifiers, and ``notify-test``."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from pytest_httpserver import HTTPServer

from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli
from tests.ports import free_port

RAISING = """
from eemtcleanupd.hookspecs import hookimpl

@hookimpl
def run_started(event):
    raise RuntimeError("always")

@hookimpl
def job_cleaned(event):
    raise RuntimeError("always")

@hookimpl
def run_finished(event):
    raise SystemError("always")
"""


def until(condition: Callable[[], object], what: str, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Hanging:
    """A server that accepts connections and never responds."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self.connections.append(self._server.accept()[0])

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for connection in self.connections:
            connection.close()


class Mailbox:
    def __init__(self) -> None:
        self.received: list[bytes] = []

    async def handle_DATA(self, server: object, session: object, envelope: object) -> str:  # noqa: N802
        self.received.append(envelope.content)  # type: ignore[attr-defined]
        return "250 OK"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "store", now=datetime.now(UTC))


def start(store: JobStore, stack: ExitStack) -> subprocess.Popen[bytes]:
    status = store.path / "jobs.db.eemtcleanupd.status.json"
    status.unlink(missing_ok=True)
    environ = {"PATH": os.environ["PATH"], "HOME": str(store.path), "PYTHONPATH": str(store.path)}
    daemon = subprocess.Popen(
        [sys.executable, "-m", "eemtcleanupd", "run"],
        cwd=store.path,
        env=environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(daemon.wait)
    stack.callback(daemon.kill)
    until(status.exists, "the daemon did not start")
    return daemon


@pytest.mark.slow
def test_failing_notifiers_do_not_stop_a_run_and_get_its_report_once_later(
    store: JobStore, stack: ExitStack, run_cli: RunCli
) -> None:
    for number in range(30):
        store.job(f"job-{number}")
    slack, mail_port = Hanging(), free_port()
    (store.path / "raising.py").write_text(RAISING)
    textfile = store.path / "eemt.prom"
    (store.path / "cleanup_config.yaml").write_text(f"""
database: {{timezone: UTC}}
plugins: [raising]
metrics: {{textfile: {textfile}}}
notifications:
  email: {{enabled: true, smtp_port: {mail_port}, recipients: [admin@example.com], timeout_seconds: 2}}
  slack: {{enabled: true, webhook_url: "http://127.0.0.1:{slack.port}/services/T0K3N", timeout_seconds: 60}}
""")
    daemon = start(store, stack)
    daemon.send_signal(signal.SIGUSR1)
    until(lambda: slack.connections, "no connection to Slack")
    until(
        lambda: store.sql("SELECT outcome FROM cleanup_runs") == [("success",)],
        "the run did not finish while Slack hangs",
    )
    assert len(store.cleaned()) == 30
    until(lambda: "eemt_cleanup_runs_total 1.0" in textfile.read_text(), "the metrics do not have the run")
    assert run_cli("audit", "verify", cwd=store.path).returncode == 0
    audit = (store.path / "logs" / "cleanup_audit.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["action"] == "cleaned" for line in audit) == 30
    until(
        lambda: (
            store.sql("SELECT count(*) FROM cleanup_outbox WHERE notifier = 'email' AND attempts > 0")
            == [(1,)]
        ),
        "no mail was attempted",
    )
    daemon.kill()
    daemon.wait()
    slack.close()

    posted = HTTPServer(port=slack.port)
    posted.expect_request("/services/T0K3N").respond_with_data("ok")
    posted.start()
    stack.callback(posted.stop)
    mailbox = Mailbox()
    server = Controller(mailbox, hostname="localhost", port=mail_port, ready_timeout=60)
    server.start()
    stack.callback(server.stop)
    start(store, stack)
    until(lambda: posted.log and mailbox.received, "the pending notifications did not arrive")
    until(lambda: store.sql("SELECT count(*) FROM cleanup_outbox") == [(0,)], "the outbox was not emptied")
    notifiers = json.loads(run_cli("status", "--json", cwd=store.path).stdout)["notifiers"]
    assert notifiers["slack"]["delivered"] == notifiers["email"]["delivered"] == 1
    assert notifiers["raising"]["failed"] == 1
    assert notifiers["raising"]["last_error"] == "SystemError: always"
    assert (len(posted.log), len(mailbox.received)) == (1, 1)
    assert b"30 jobs cleaned" in mailbox.received[0]
    log = (store.path / "logs" / "cleanup.log").read_text()
    assert "T0K3N" not in log + json.dumps(notifiers)


@pytest.mark.slow
def test_the_daemon_sends_the_notification_that_a_run_could_not_send(
    store: JobStore, stack: ExitStack, run_cli: RunCli, httpserver: HTTPServer
) -> None:
    httpserver.expect_ordered_request("/hook").respond_with_data("no", status=503)
    httpserver.expect_ordered_request("/hook").respond_with_data("ok")
    url = httpserver.url_for("/hook")
    (store.path / "cleanup_config.yaml").write_text(
        f"database: {{timezone: UTC}}\nnotifications: {{webhook: {{enabled: true, url: '{url}'}}}}\n"
    )
    store.job("a")
    done = run_cli("clean", cwd=store.path)
    assert done.returncode == 0
    assert "[WARNING] Notifier webhook: " in done.stderr
    assert "503 no" in done.stderr
    daemon = start(store, stack)
    until(lambda: len(httpserver.log) == 2, "the daemon did not send it")
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 0
    assert len(httpserver.log) == 2
    body = json.loads(httpserver.log[1][0].get_data())
    assert (body["event"], body["data"]["report"]["successful"]["jobs"]) == ("RunFinished", 1)


@pytest.mark.slow
def test_the_daemon_sends_its_last_notification_before_it_exits(
    store: JobStore, stack: ExitStack, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/hook").respond_with_data("ok")
    (store.path / "cleanup_config.yaml").write_text(
        f"notifications: {{webhook: {{enabled: true, on: daemon, url: '{httpserver.url_for('/hook')}'}}}}\n"
    )
    daemon = start(store, stack)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 0
    events = [json.loads(request.get_data())["event"] for request, _ in httpserver.log]
    assert events == ["DaemonStarted", "DaemonStopping"]


def test_notify_test_shows_the_response_of_each_notifier(
    store: JobStore, run_cli: RunCli, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/good").respond_with_data("ok")
    httpserver.expect_request("/T0K3N").respond_with_data("invalid_payload", status=400)
    config = store.path / "cleanup_config.yaml"
    config.write_text(f"""
notifications:
  slack: {{enabled: true, webhook_url: "{httpserver.url_for("/T0K3N")}"}}
  webhook: {{enabled: true, url: "{httpserver.url_for("/good")}"}}
""")
    done = run_cli("notify-test", cwd=store.path)
    assert done.returncode == 1
    assert "slack: FAILED: RefusedError: " in done.stdout
    assert "400 invalid_payload" in done.stdout
    assert "webhook: ok: 200 ok" in done.stdout
    assert "audit_log: ok: written" in done.stdout
    assert "T0K3N" not in done.stdout + done.stderr
    one = run_cli("notify-test", "webhook", "--json", cwd=store.path)
    assert json.loads(one.stdout) == {"webhook": {"ok": True, "answer": "200 ok"}}
    assert json.loads(httpserver.log[-1][0].get_data())["headline"].startswith("[TEST] ")
    assert store.sql("SELECT count(*) FROM sqlite_master WHERE name LIKE 'cleanup%'") == [(0,)]


def test_a_test_does_not_wait_for_the_digest(
    store: JobStore, run_cli: RunCli, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/hook").respond_with_data("ok")
    (store.path / "cleanup_config.yaml").write_text(
        "notifications: {slack: {enabled: true, digest: '07:00', "
        f"webhook_url: '{httpserver.url_for('/hook')}'}}}}"
    )
    done = run_cli("notify-test", "slack", "--json", cwd=store.path)
    assert json.loads(done.stdout) == {"slack": {"ok": True, "answer": "200 ok"}}
    assert len(httpserver.log) == 1


def test_notify_test_lists_the_enabled_notifiers(store: JobStore, run_cli: RunCli) -> None:
    done = run_cli("notify-test", "slack", cwd=store.path)
    assert done.returncode == 2
    assert "audit_log, prometheus" in done.stderr


@pytest.mark.slow
def test_a_third_party_package_adds_a_notifier(
    store: JobStore, run_cli: RunCli, httpserver: HTTPServer, example_site: Path
) -> None:
    httpserver.expect_request("/topic").respond_with_data("ok")
    (store.path / "cleanup_config.yaml").write_text(
        f"notifications: {{ntfy: {{topic_url: '{httpserver.url_for('/topic')}'}}}}\n"
    )
    environ = {"PYTHONPATH": str(example_site)}
    done = run_cli("notify-test", "ntfy", cwd=store.path, env=environ)
    assert (done.returncode, done.stdout) == (0, "ntfy: ok: 200 OK\n")
    assert httpserver.log[0][0].headers["Title"] == "EEMT cleanup"
    without = run_cli("check", cwd=store.path)
    assert without.returncode == 2
    assert "notifications.ntfy: " in without.stderr
    assert run_cli("check", cwd=store.path, env=environ).returncode == 0


def test_a_plugin_module_can_be_in_the_folder_of_the_configuration(
    store: JobStore, run_cli: RunCli, tmp_path: Path
) -> None:
    (store.path / "diary.py").write_text(
        "from eemtcleanupd.hookspecs import hookimpl\n\n\n"
        "@hookimpl\ndef run_finished(event):\n    return event.report.trigger\n"
    )
    config = store.path / "cleanup_config.yaml"
    config.write_text("plugins: [diary]\n")
    done = run_cli("notify-test", "diary", "--config", config, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "diary: ok: notify-test\n")


def test_a_broken_package_can_be_blocked(store: JobStore, run_cli: RunCli, tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[eemtcleanupd]\nbroken = no_such_module\n")
    environ = {"PYTHONPATH": str(site)}
    refused = run_cli("check", cwd=store.path, env=environ)
    assert refused.returncode == 2
    assert "the installed package broken: " in refused.stderr
    assert "no_such_module" in refused.stderr
    assert "blocked_plugins" in refused.stderr
    (store.path / "cleanup_config.yaml").write_text("blocked_plugins: [broken]\n")
    assert run_cli("check", cwd=store.path, env=environ).returncode == 0


@pytest.mark.parametrize(
    ("name", "meant"),
    [("slak", "slack"), ("e-mail", "email"), ("webhok", "webhook"), ("nothing-like-it", None)],
)
def test_a_mistyped_notifier_is_an_error_that_names_the_nearest(
    run_cli: RunCli, tmp_path: Path, name: str, meant: str | None
) -> None:
    url = "http://127.0.0.1:9/"
    (tmp_path / "cleanup_config.yaml").write_text(
        f"notifications: {{slack: {{enabled: true, webhook_url: '{url}'}}}}"
    )
    done = run_cli("notify-test", name, "--json")
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 2
    assert (f"{meant}?" in error) == (meant is not None)
