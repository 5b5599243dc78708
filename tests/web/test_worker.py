"""The HTTP worker process of a real daemon: what each of them survives of the other."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import psutil
import pytest
import requests

from tests.cleanup.conftest import JobStore
from tests.ports import free_port
from tests.web.conftest import RunningDaemon, eemtcleanupd, eventually, start

shared = pytest.mark.xdist_group("shared worker")


def worker_of(daemon: RunningDaemon) -> psutil.Process:
    (worker,) = (
        child
        for child in psutil.Process(daemon.process.pid).children()
        if "eemtcleanupd.web.worker" in " ".join(child.cmdline())
    )
    return worker


@pytest.mark.slow
def test_the_daemon_survives_a_killed_worker_and_restarts_it(daemon: RunningDaemon) -> None:
    first = worker_of(daemon)
    first.kill()

    def check_health() -> None:
        assert requests.get(f"{daemon.url}/healthz", timeout=10).status_code == 200

    eventually(check_health)
    assert worker_of(daemon).pid != first.pid
    answer = daemon.request("POST", "/api/cleanup")
    assert answer.json()["cleaned_jobs"] == {"successful": 1, "failed": 1}
    assert "code -9" in (daemon.store.path / "daemon.log").read_text()


@pytest.mark.slow
def test_the_worker_exits_when_the_daemon_is_killed(store: JobStore) -> None:
    daemon = start(store)
    worker = worker_of(daemon)
    daemon.process.kill()
    daemon.process.wait()
    worker.wait(30)
    port = int(daemon.url.rpartition(":")[2])
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
        again.listen()


@pytest.mark.slow
def test_a_worker_that_hangs_blocks_neither_a_reload_nor_the_stop(daemon: RunningDaemon) -> None:
    worker = worker_of(daemon)
    worker.suspend()
    daemon.process.send_signal(signal.SIGHUP)
    daemon.stop()
    assert not worker.is_running()


@pytest.mark.slow
@shared
def test_the_worker_ignores_signals_that_reach_all_processes(shared_daemon: RunningDaemon) -> None:
    """As systemd sends them to a whole service, unless KillMode says otherwise."""
    worker = worker_of(shared_daemon)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        worker.send_signal(number)
    assert shared_daemon.request("GET", "/healthz").status_code == 200
    assert worker_of(shared_daemon) == worker


@shared
def test_the_worker_has_a_lower_priority_than_the_daemon(shared_daemon: RunningDaemon) -> None:
    assert worker_of(shared_daemon).nice() > psutil.Process(shared_daemon.process.pid).nice()


@shared
def open_files(pid: int) -> set[str]:
    found = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # a connection that was closed meanwhile
            found.add(os.readlink(entry.path))
    return found


def test_the_worker_shares_only_the_listening_socket_and_stderr_with_the_daemon(
    shared_daemon: RunningDaemon,
) -> None:
    """The two ends of the channel are different sockets."""
    shared = (open_files(worker_of(shared_daemon).pid) & open_files(shared_daemon.process.pid)) - {
        "/dev/null"
    }
    sockets = {target for target in shared if target.startswith("socket:")}
    assert len(sockets) == 1
    assert shared - sockets == {str(shared_daemon.store.path / "daemon.log")}  # stderr


@pytest.mark.slow
def test_a_long_answer_arrives_completely(store: JobStore) -> None:
    for number in range(600):
        store.job(f"many-{number}", files=1)
    daemon = start(store)
    try:
        answer = daemon.request("POST", "/api/cleanup")
        assert len(answer.text) > 100_000
        assert answer.json()["cleaned_jobs"] == {"successful": 601, "failed": 1}
        assert len(answer.json()["details"]) == 602
    finally:
        daemon.stop()


@pytest.mark.slow
def test_the_workers_log_is_in_the_daemons_log(daemon: RunningDaemon) -> None:
    (daemon.store.path / "tokens.json").write_text("rubbish")
    assert daemon.request("GET", "/api/cleanup/status").status_code == 503

    def check_log() -> None:
        lines = (daemon.store.path / "logs" / "cleanup.log").read_text().splitlines()
        assert any("ERROR" in line and "tokens.json" in line for line in lines)

    eventually(check_log)


@pytest.mark.slow
def test_streams_end_in_order_when_the_daemon_stops(store: JobStore) -> None:
    daemon = start(store)
    headers = {"Authorization": f"Bearer {daemon.tokens['read']}"}
    with requests.get(f"{daemon.url}/api/cleanup/events", headers=headers, stream=True, timeout=60) as stream:
        lines = stream.iter_lines()
        assert next(lines) == b"event: idle"
        daemon.process.terminate()
        assert list(lines) == [b"data: null", b""], "a complete answer, not a broken connection"
    assert daemon.process.wait(30) == 0


@pytest.mark.slow
def test_a_client_that_waits_for_a_run_is_answered_although_the_address_changes(store: JobStore) -> None:
    daemon = start(store)
    try:
        # While another program writes, the run waits for it.
        with (
            closing(sqlite3.connect(store.path / "jobs.db", isolation_level=None)) as writer,
            ThreadPoolExecutor() as pool,
        ):
            writer.execute("BEGIN IMMEDIATE")
            answer = pool.submit(daemon.request, "POST", "/api/cleanup")

            def check_progress() -> None:
                events = daemon.request("GET", "/api/cleanup/events?once=true").text
                assert "event: progress" in events

            eventually(check_progress)
            file = store.path / "cleanup_config.yaml"
            address, port = daemon.url.rpartition("/")[2], free_port()
            file.write_text(file.read_text().replace(address, f"127.0.0.1:{port}"))
            reload = pool.submit(eemtcleanupd, store, "reload")
            eventually(lambda: socket.create_connection(("127.0.0.1", port)).close())
            writer.execute("ROLLBACK")
            reload.result()
            assert answer.result().json()["cleaned_jobs"] == {"successful": 1, "failed": 1}
    finally:
        daemon.stop()
