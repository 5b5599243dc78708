"""The daemon as a process: signals, and the commands that control it."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.lock import find_daemon
from tests.conftest import Aged, RunCli

Start = Callable[..., "subprocess.Popen[str]"]


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def store(sample_store: Path, aged: Aged) -> Path:
    (aged(sample_store, 10) / "cleanup_config.yaml").write_text("retention: {failed_jobs: {hours: 24}}\n")
    return sample_store


@pytest.fixture
def start(store: Path) -> Iterator[Start]:
    """Start a daemon on the store and wait until it is ready."""
    started: list[subprocess.Popen[str]] = []

    def begin(*args: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "eemtcleanupd", "run", *args],
            cwd=store,
            env={"PATH": os.environ["PATH"], "HOME": str(store), "LANG": "C.UTF-8", **env},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        until(lambda: list(store.glob("*.status.json")))
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def status(run_cli: RunCli, store: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads(run_cli("status", "--json", cwd=store).stdout)
    return document


def test_status_shows_whether_a_daemon_is_running(start: Start, run_cli: RunCli, store: Path) -> None:
    assert status(run_cli, store)["running"] is False
    daemon = start(EEMT_ENABLE_AUTO_CLEANUP="true", EEMT_CLEANUP_SCHEDULE='"30 3 * * *"')
    document = status(run_cli, store)
    assert document["pid"] == daemon.pid
    assert str(document["next_run"])[13:19] == ":30:00"
    assert document["last_run"] is None
    assert {"storage", "notifiers", "trash", "config"} <= document.keys()
    assert "At 03:30 every day" in run_cli("status", cwd=store).stdout


@pytest.mark.slow
def test_a_health_check_fails_without_a_daemon_or_a_recent_heartbeat(
    start: Start, run_cli: RunCli, store: Path
) -> None:
    assert run_cli("status", "--healthy", cwd=store).returncode == 1
    daemon = start()
    with closing(sqlite3.connect(store / "jobs.db")) as connection:
        connection.execute("BEGIN EXCLUSIVE")  # the health check must not need the database
        assert run_cli("status", "--healthy", cwd=store).returncode == 0
    status_file = StoreAddress.of_file(store / "jobs.db").own_file("status.json")
    daemon.send_signal(signal.SIGSTOP)
    document = json.loads(status_file.read_text())
    assert "heartbeat_at" in document
    document["heartbeat_at"] = str(datetime.now(UTC) - timedelta(minutes=3))
    status_file.write_text(json.dumps(document))
    silent = run_cli("status", "--healthy", "--json", cwd=store)
    assert (silent.returncode, json.loads(silent.stdout)["healthy"]) == (1, False)
    daemon.send_signal(signal.SIGCONT)


@pytest.mark.slow
def test_a_signal_starts_a_run_that_status_and_history_show(
    start: Start, run_cli: RunCli, store: Path
) -> None:
    start().send_signal(signal.SIGUSR1)
    until(lambda: (status(run_cli, store)["last_run"] or {}).get("outcome") == "success")  # type: ignore[attr-defined]
    assert "signal" in run_cli("history", "--json", cwd=store).stdout


@pytest.mark.slow
def test_debug_logs_every_statement_on_stderr_only(start: Start, run_cli: RunCli, store: Path) -> None:
    daemon = start("--debug")
    assert run_cli("reload", cwd=store).returncode == 0, "a reload keeps the debug level"
    daemon.send_signal(signal.SIGUSR1)

    def outcomes() -> list[str]:
        return [run["outcome"] for run in json.loads(run_cli("history", "--json", cwd=store).stdout)]

    until(lambda: outcomes() == ["success"])
    daemon.terminate()
    log = daemon.communicate(timeout=60)[1]
    assert "DEBUG: SQL" in log
    assert "DEBUG: rename" in log.rpartition("cleanup_config.yaml")[2]
    assert "DEBUG" not in (store / "logs" / "cleanup.log").read_text()


def test_a_second_daemon_exits_with_4_and_names_the_first(start: Start, run_cli: RunCli, store: Path) -> None:
    first = start()
    second = run_cli("run", cwd=store)
    assert second.returncode == 4
    assert f"process {first.pid}" in second.stderr
    assert run_cli("clean", cwd=store).returncode == 0, "a run is possible beside an idle daemon"


@pytest.mark.slow
def test_reload_exits_with_the_result_of_the_daemon(start: Start, run_cli: RunCli, store: Path) -> None:
    assert run_cli("reload", cwd=store).returncode == 1
    start()
    assert run_cli("reload", cwd=store).returncode == 0
    (store / "cleanup_config.yaml").write_text("retention: {failed_jobs: {hours: soon}}\n")
    answer = run_cli("reload", cwd=store)
    assert answer.returncode == 2
    assert "cleanup_config.yaml:1:" in answer.stderr


@pytest.mark.slow
@pytest.mark.parametrize("text", ["nonsense", "paths: {databse: x}", "{", "plugins: [missing_module]"])
def test_an_invalid_configuration_does_not_hide_the_daemon(
    start: Start, run_cli: RunCli, store: Path, text: str
) -> None:
    daemon = start()
    (store / "cleanup_config.yaml").write_text(text)
    document = status(run_cli, store)
    assert (document["running"], document["pid"]) == (True, daemon.pid)
    assert str(store / "cleanup_config.yaml") in str(document["config"])
    assert f"process {daemon.pid}" in run_cli("status", cwd=store).stdout
    assert run_cli("status", "--healthy", cwd=store).returncode == 0
    assert run_cli("reload", cwd=store).returncode == 2
    stopped = json.loads(run_cli("stop", "--json", cwd=store).stdout)
    assert stopped == {"stopped": True, "pid": daemon.pid}
    assert daemon.wait(10) == 0
    again = run_cli("status", cwd=store)
    assert (again.returncode, again.stdout) == (2, "")


@pytest.mark.slow
def test_a_daemon_with_another_configuration_is_left_alone(
    start: Start, run_cli: RunCli, store: Path, tmp_path: Path
) -> None:
    daemon = start()
    (tmp_path / "other.yaml").write_text("nonsense")
    assert run_cli("stop", "--config", tmp_path / "other.yaml", cwd=tmp_path).returncode == 2
    assert daemon.poll() is None


@pytest.mark.slow
def test_stop_needs_no_configuration_with_a_database(start: Start, run_cli: RunCli, store: Path) -> None:
    daemon = start()
    (store / "cleanup_config.yaml").write_text("nonsense")
    assert str(daemon.pid) in run_cli("stop", "--db-path", "jobs.db", cwd=store).stdout
    assert daemon.wait(10) == 0
    again = run_cli("stop", "--db-path", "jobs.db", cwd=store)
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_the_daemon_with_0(start: Start, number: signal.Signals) -> None:
    daemon = start()
    daemon.send_signal(number)
    assert daemon.wait(60) == 0


def test_a_detached_daemon_reuses_the_pidfile_of_a_killed_one(run_cli: RunCli, store: Path) -> None:
    for _ in range(2):  # the second start finds the file that the killed first one left
        assert run_cli("run", "--detach", "--pidfile", "daemon.pid", cwd=store).returncode == 0
        pid = int((store / "daemon.pid").read_text())
        holder = find_daemon(StoreAddress.of_file(store / "jobs.db"))
        assert holder is not None
        assert holder.pid == pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: find_daemon(StoreAddress.of_file(store / "jobs.db")) is None)
    assert (store / "daemon.pid").exists()


def test_run_with_json_answers_when_the_daemon_has_started(run_cli: RunCli, store: Path) -> None:
    answer = json.loads(run_cli("run", "--detach", "--json", cwd=store).stdout)
    holder = find_daemon(StoreAddress.of_file(store / "jobs.db"))
    assert holder is not None
    assert answer == {"running": True, "pid": holder.pid, "detached": True}
    health = run_cli("status", "--healthy", "--json", cwd=store)
    document = json.loads(health.stdout)
    assert (health.returncode, document["healthy"], document["pid"]) == (0, True, holder.pid)
    second = run_cli("run", "--detach", "--json", cwd=store)
    assert (second.returncode, json.loads(second.stdout)["exit_code"]) == (4, 4)
    assert run_cli("stop", cwd=store).returncode == 0
    health = run_cli("status", "--healthy", "--json", cwd=store)
    assert (health.returncode, json.loads(health.stdout)["healthy"]) == (1, False)


def test_run_detach_says_what_was_started_and_how_to_see_and_stop_it(run_cli: RunCli, store: Path) -> None:
    file = store / "daemon.yaml"
    file.write_text("schedule: {enabled: false}\n")
    text = run_cli("run", "--detach", "--config", file, cwd=store).stdout
    holder = find_daemon(StoreAddress.of_file(store / "jobs.db"))
    assert holder is not None
    assert f"process {holder.pid}." in text
    shown, stopped = (command.split()[1:] for command in re.findall(r"`(.*?)`", text))
    assert json.loads(run_cli(*shown, "--json", cwd=store.parent).stdout)["pid"] == holder.pid
    assert run_cli(*stopped, cwd=store.parent).returncode == 0
    assert find_daemon(StoreAddress.of_file(store / "jobs.db")) is None


def test_the_report_of_a_command_has_the_next_run_of_the_daemon(
    start: Start, run_cli: RunCli, store: Path
) -> None:
    file = store / "cleanup_config.yaml"
    file.write_text("schedule: {enabled: true}\nmetrics: {textfile: metrics.prom}\n")
    start()

    def next_run() -> str | None:
        found = re.search(r"^eemt_cleanup_next_run_timestamp_seconds (\S+)", metrics.read_text(), re.M)
        return found and found[1]

    metrics = store / "metrics.prom"
    until(lambda: metrics.exists() and next_run())
    before = next_run()
    metrics.unlink()
    assert run_cli("clean", cwd=store).returncode == 0
    assert next_run() == before


def test_signals_during_the_start_wait_for_its_end(store: Path) -> None:
    pidfile = store / "pid"
    daemon = subprocess.Popen(
        [sys.executable, "-m", "eemtcleanupd", "run", "--pidfile", str(pidfile)],
        cwd=store,
        env={"PATH": os.environ["PATH"], "HOME": str(store), "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: pidfile.exists() and pidfile.read_text())
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            daemon.send_signal(number)
        log = store / "logs/cleanup.log"
        until(lambda: log.exists() and "(SIGHUP)" in log.read_text())
        assert daemon.poll() is None
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(20) == 0
    finally:
        daemon.kill()


@pytest.mark.slow
def test_run_detach_reports_why_the_daemon_did_not_start(start: Start, run_cli: RunCli, store: Path) -> None:
    first = start()
    answer = run_cli("run", "--detach", cwd=store)
    assert answer.returncode == 4
    assert f"process {first.pid}" in answer.stderr
    (store / "cleanup_config.yaml").write_text("nonsense: 1\n")
    assert run_cli("run", "--detach", cwd=store).returncode == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_reloads_leak_neither_threads_nor_descriptors_nor_memory(start: Start, store: Path) -> None:
    daemon = start()
    proc = Path(f"/proc/{daemon.pid}")
    file = store / "jobs.db.eemtcleanupd.status.json"

    def reload(times: int) -> None:
        for _ in range(times):
            before = json.loads(file.read_text())["config_attempts"]
            daemon.send_signal(signal.SIGHUP)
            # A reload waits for the disk (the audit log), and a busy disk can take long for that.
            until(lambda before=before: json.loads(file.read_text())["config_attempts"] > before, 120)  # type: ignore[misc]

    def usage() -> tuple[int, int, int]:
        resident = next(line for line in (proc / "status").read_text().splitlines() if "VmRSS" in line)
        descriptors, threads = (len(list((proc / name).iterdir())) for name in ("fd", "task"))
        return descriptors, threads, int(resident.split()[1])

    def least() -> tuple[int, ...]:
        """Return the least of some samples: the daemon still closes files when its new status is seen."""
        samples = []
        for _ in range(20):
            samples.append(usage())
            time.sleep(0.05)
        return tuple(map(min, zip(*samples, strict=True)))

    reload(50)
    descriptors, threads, memory_kb = least()
    reload(100)

    def is_as_before() -> bool:
        now = usage()
        return now[0] <= descriptors and now[1] <= threads and now[2] < memory_kb + 1024

    until(is_as_before, 60)


@pytest.mark.slow
def test_a_daemon_whose_log_cannot_be_written_warns_once_per_configuration(
    start: Start, run_cli: RunCli, store: Path
) -> None:
    with (store / "cleanup_config.yaml").open("a") as file:
        file.write("logging: {file: /dev/full}\n")
    daemon = start()
    assert run_cli("reload", cwd=store).returncode == 0
    daemon.send_signal(signal.SIGTERM)
    _, log = daemon.communicate(timeout=20)
    assert daemon.returncode == 0
    assert "Traceback" not in log
    assert log.count("/dev/full") == 2  # each configuration opens its log
