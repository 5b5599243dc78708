"""Clients without rights, or with a token that may only read, that try to take the interface from others."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from fastapi import Cookie, FastAPI, HTTPException
from fastapi.testclient import TestClient

from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.lock import find_daemon
from eemtcleanupd.web import cleanup_router
from tests.cleanup.conftest import JobStore
from tests.web.conftest import RunningDaemon, create_store, eemtcleanupd, eventually, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return create_store(tmp_path / "store")


@pytest.fixture
def daemon(store: JobStore) -> Iterator[RunningDaemon]:
    daemon = start(store, "schedule: {enabled: false}\n", api="trusted_proxies: ['127.0.0.1']")
    yield daemon
    daemon.stop()


def port_of(daemon: RunningDaemon) -> int:
    return int(daemon.url.rpartition(":")[2])


def connect(daemon: RunningDaemon) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(30)
    client.connect(("127.0.0.1", port_of(daemon)))
    return client


def check_others_are_served(daemon: RunningDaemon) -> None:
    """Check that health, metrics and the dashboard of another person answer."""
    assert daemon.request("GET", "/healthz", token=None).status_code == 200
    for path in ("/metrics", "/", "/api/cleanup/status"):
        assert daemon.request("GET", path, token="clean").status_code == 200


def test_refusals_of_many_addresses_fill_no_disk_and_are_all_counted(daemon: RunningDaemon) -> None:
    count = 1500
    connection = HTTPConnection("127.0.0.1", port_of(daemon), timeout=30)
    for number in range(count):
        address = f"10.0.{number // 250}.{number % 250}" if number % 2 else f"2001:db8:0:{number:x}::1"
        connection.request("GET", "/api/cleanup/status", headers={"X-Forwarded-For": address})
        assert connection.getresponse().read()
    connection.close()
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.wait(60)
    entries = [json.loads(line) for line in daemon.audit().splitlines()]
    lines = sum(entry["action"] == "http_refused" for entry in entries)
    omitted = sum(entry["details"]["count"] for entry in entries if entry["action"] == "http_refused_omitted")
    assert lines < 700
    assert lines + omitted == count


def test_loopback_addresses_are_one_client(daemon: RunningDaemon) -> None:
    codes = []
    for number in range(70):
        source = (f"127.0.1.{number + 1}", 0)
        connection = HTTPConnection("127.0.0.1", port_of(daemon), timeout=30, source_address=source)
        connection.request("GET", "/api/cleanup/status")
        codes.append(connection.getresponse().status)
        connection.close()
    assert codes == [401] * 60 + [429] * 10


def test_streams_of_one_token_leave_places_for_others(daemon: RunningDaemon) -> None:
    request = (
        "GET /api/cleanup/events HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {daemon.tokens['read']}\r\n\r\n"
    ).encode()
    with ExitStack() as stack:
        heads = []
        for _ in range(300):
            client = stack.enter_context(connect(daemon))
            client.sendall(request)
            heads.append(client.recv(4096))
        accepted = [head for head in heads if head.startswith(b"HTTP/1.1 200")]
        refused = [head for head in heads if head.startswith(b"HTTP/1.1 429")]
        assert 0 < len(accepted) <= 16
        assert len(accepted) + len(refused) == 300
        assert all(b"\nretry-after: " in head.lower() for head in refused)
        check_others_are_served(daemon)
        assert daemon.request("GET", "/api/cleanup/status", token="read").status_code == 200

    def check_stream() -> None:
        answer = daemon.request("GET", "/api/cleanup/events?once=true", token="read")
        assert answer.status_code == 200

    eventually(check_stream)


@pytest.mark.parametrize(
    "framing",
    [
        b"HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
        b"HTTP/1.1\r\nContent-Length: 0\r\ntransfer-encoding: CHUNKED",
        b"HTTP/1.0\r\nTransfer-Encoding: chunked",
    ],
)
def test_a_body_with_two_ends_is_refused_and_nothing_after_it_is_read(
    daemon: RunningDaemon, framing: bytes
) -> None:
    token = f"Authorization: Bearer {daemon.tokens['clean']}".encode()
    smuggled = b"POST /api/cleanup HTTP/1.1\r\nHost: localhost\r\n" + token + b"\r\n\r\n"
    head = b"POST /api/cleanup " + framing + b"\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connect(daemon) as client:
        client.sendall(head + token + b"\r\n\r\n0\r\n\r\n" + smuggled)
        answer = b""
        while chunk := client.recv(4096):
            answer += chunk
    assert answer.split()[1] == b"400"
    assert answer.count(b"HTTP/1.1 ") == 1
    assert daemon.store.results("a").exists()


def authorize(session: str = Cookie("")) -> str:
    if session != "secret":
        raise HTTPException(401)
    return "ann"


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {}]
)
def test_another_sites_form_starts_no_run_with_the_cookie_of_the_application(
    store: JobStore, headers: dict[str, str]
) -> None:
    (store.path / "cleanup_config.yaml").write_text("")
    app = FastAPI()
    app.include_router(cleanup_router(store.path / "cleanup_config.yaml", authorize=authorize, environ={}))
    with TestClient(app, cookies={"session": "secret"}) as browser:
        form = {"Content-Type": "application/x-www-form-urlencoded", **headers}
        assert browser.post("/api/cleanup", headers=form).status_code in {403, 422}
        assert store.results("a").exists()
        assert browser.post("/api/cleanup").status_code == 200


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
@pytest.mark.parametrize("limit", ["max_inotify_instances", "max_inotify_watches"])
def test_a_daemon_starts_and_reloads_without_inotify(store: JobStore, limit: str) -> None:
    """Other processes of the daemon's user can use up both."""
    file = store.path / "cleanup_config.yaml"
    file.write_text("retention: {failed_jobs: {hours: 5}}\n")
    command = f"echo 0 > /proc/sys/user/{limit} && exec {sys.executable} -m eemtcleanupd run"
    with (store.path / "daemon.log").open("w") as log:
        process = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "sh", "-c", command], cwd=store.path, stderr=log
        )
    try:

        def check_started() -> None:
            assert process.poll() is not None or find_daemon(StoreAddress.of_file(store.path / "jobs.db"))

        eventually(check_started)
        assert eemtcleanupd(store, "reload")
        assert process.poll() is None
    finally:
        process.terminate()
    assert process.wait(60) == 0


EXITS = {
    "import": "raise SystemExit(0)\n",
    "audit": "from eemtcleanupd.hookspecs import hookimpl\n\n\n"
    "@hookimpl\ndef audit(entries): raise SystemExit(0)\n",
}


@pytest.mark.parametrize("place", EXITS)
def test_only_a_requested_stop_ends_the_daemon_with_0(store: JobStore, place: str) -> None:
    """Service managers do not restart a daemon that ends with 0."""
    (store.path / "leaving.py").write_text(EXITS[place])
    (store.path / "cleanup_config.yaml").write_text("plugins: [leaving]\n")
    done: Any = subprocess.run(
        [sys.executable, "-m", "eemtcleanupd", "run"],
        cwd=store.path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
