"""The daemon's side of the HTTP interface, with real and with misbehaving workers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from eemtcleanupd.daemon.messages import RunCallbacks, RunRequested
from eemtcleanupd.web.supervisor import WORKER_CODE, HttpInterface
from tests.daemon.conftest import DaemonHarness
from tests.web.conftest import eventually


@contextmanager
def served(harness: DaemonHarness, config: str = "", worker_code: str = WORKER_CODE) -> Iterator[Path]:
    """Serve a daemon of the test's own process at a Unix socket."""
    address = harness.store.path / "s"
    daemon = harness.start(f"api: {{enabled: true, listen: 'unix:{address}'}}\n{config}")
    interface = HttpInterface(worker_code)
    interface.prepare(daemon, daemon.loaded)()
    try:
        yield address
    finally:
        interface.close()


def fake_worker(code: str) -> str:
    """Return the code of a process that executes something else, with a ``channel`` to the daemon."""
    return (
        "import json, os, sys, time\nfrom multiprocessing.connection import Connection\n"
        "sys.path[:] = json.loads(sys.argv[1])\nchannel = Connection(int(sys.argv[2]))\n"
        "channel.recv_bytes()\n"
        f"def send(message): channel.send_bytes(json.dumps(message).encode())\n{code}"
    )


def get_status(address: Path, path: str) -> int:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(address))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return int(client.makefile("rb").read().split()[1])


def await_health(address: Path, status: int) -> None:
    def check() -> None:
        assert get_status(address, "/healthz") == status

    eventually(check)


def await_text(file: Path, text: str, count: int = 1) -> None:
    def check() -> None:
        assert file.read_text().count(text) == count

    eventually(check)


def requested_runs(harness: DaemonHarness) -> list[RunCallbacks]:
    inbox = harness.daemon.inbox
    messages = [inbox.get_nowait() for _ in range(inbox.qsize())]
    return [
        message.callbacks
        for message in messages
        if isinstance(message, RunRequested) and message.callbacks is not None
    ]


@pytest.mark.slow
def test_a_reload_opens_a_removed_socket_again(harness: DaemonHarness) -> None:
    address = harness.store.path / "s"
    daemon = harness.start(f"api: {{enabled: true, listen: 'unix:{address}'}}\n")
    interface = HttpInterface()
    try:
        for _ in range(2):
            interface.prepare(daemon, daemon.loaded)()
            assert get_status(address, "/healthz") == 200
            address.unlink()
    finally:
        interface.close()


@pytest.mark.slow
def test_health_fails_while_the_daemons_loop_does_not_run(harness: DaemonHarness) -> None:
    with served(harness) as address:
        assert get_status(address, "/healthz") == 200
        harness.elapsed += 100
        await_health(address, 503)
        harness.step()
        await_health(address, 200)


def test_metrics_that_take_long_do_not_delay_the_health(
    harness: DaemonHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, released = threading.Event(), threading.Event()

    def wait() -> bytes:
        asked.set()
        released.wait(60)
        return b""

    with served(harness) as address, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(harness.daemon, "metrics", wait)
        assert get_status(address, "/healthz") == 200
        metrics = pool.submit(get_status, address, "/metrics")
        assert asked.wait(60)
        harness.elapsed += 100  # so that an earlier answer about the state is not used again
        await_health(address, 503)
        released.set()
        metrics.result(60)


@pytest.mark.slow
def test_the_worker_finds_each_plugin_that_the_daemon_finds(
    harness: DaemonHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "import pluggy\nhookimpl = pluggy.HookimplMarker('eemtcleanupd')\n"
        "@hookimpl\ndef veto_cleanup(job):\n    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with served(harness, "plugins: [elsewhere]\n") as address:
        assert get_status(address, "/healthz") == 200


@pytest.mark.fast_parameters(3)
@pytest.mark.parametrize(
    "message",
    [
        "",
        "null",
        "[" * 100_000,
        '{"request": "state", "number": Infinity}',
        '{"request": "state", "number": [1]}',
        '{"request": "everything", "number": 1}',
        '{"request": "run", "number": 1, "user": "x", "body": {"success_retention_hours": -1}}',
        '{"request": "run", "number": 1, "user": "x", "body": {"success_retention_hours": NaN}}',
        '{"request": "run", "number": 1, "user": "x", "body": {"failed_retention_hours": "0"}}',
        '{"request": "run", "number": 1, "user": "\\u0000", "body": {}}',
        '{"log": {"logger": "x", "level": "INFO", "text": "", "trace": ""}}',
        '{"log": {"logger": "x", "level": 4444, "text": "", "trace": ""}}',
        '{"log": {"name": "x", "levelno": 20, "msg": "%(a)0900000000d", "args": {"a": 1}}}',
        '{"log": []}',
    ],
    ids=lambda message: message[:80],
)
def test_a_worker_that_sends_an_invalid_message_is_replaced(
    harness: DaemonHarness, caplog: pytest.LogCaptureFixture, message: str
) -> None:
    code = fake_worker(f"channel.send_bytes({message!r}.encode())\nchannel.recv_bytes()")
    with served(harness, worker_code=code):

        def check() -> None:
            errors = [record for record in caplog.records if record.levelname == "ERROR"]
            # The invalid message with its traceback, the exit of the worker, and the restart.
            assert [record.exc_info is not None for record in errors[:3]] == [True, False, False]

        eventually(check)
    assert not requested_runs(harness)


def test_lines_of_the_workers_log_cannot_look_like_the_daemons_own(harness: DaemonHarness) -> None:
    forged = "2026-01-01 00:00:00 INFO: forged"
    record = {
        "logger": "x\n",
        "level": 30,
        "text": f"%s {{}}\r{forged}\x1b[2J\ud800",
        "trace": f"{forged}\n{forged}",
    }
    file = harness.store.path / "logs" / "cleanup.log"
    with served(harness, worker_code=fake_worker(f"send({{'log': {record!r}}})\nchannel.recv_bytes()")):
        await_text(file, "forged", 3)
    lines = file.read_text().splitlines()
    (first,) = (number for number, line in enumerate(lines) if "WARNING: %s {}" in line)
    assert lines[first + 1 : first + 4] == [f"    {forged}\\x1b[2J\\ud800", f"    {forged}", f"    {forged}"]


def test_a_child_of_the_worker_does_not_delay_the_stop(harness: DaemonHarness) -> None:
    file = harness.store.path / "child"
    code = fake_worker(
        "if os.fork(): os._exit(0)\n"
        f"with open({str(file) + '.new'!r}, 'w') as file: file.write(str(os.getpid()))\n"
        f"os.rename({str(file) + '.new'!r}, {str(file)!r})\ntime.sleep(30)"
    )
    with served(harness, worker_code=code):
        eventually(file.read_text)
    child = psutil.Process(int(file.read_text()))
    assert child.is_running()
    assert child.status() != psutil.STATUS_ZOMBIE
    child.kill()


def test_the_workers_tracebacks_have_their_own_key_in_a_json_log(harness: DaemonHarness) -> None:
    record = {"logger": "x", "level": 40, "text": "it broke", "trace": "Traceback\nOSError"}
    code = fake_worker(f"send({{'log': {record!r}}})\nchannel.recv_bytes()")
    file = harness.store.path / "logs" / "cleanup.log"
    with served(harness, "logging: {format: json}\n", code):
        await_text(file, "it broke")
    (line,) = (line for line in file.read_text().splitlines() if "it broke" in line)
    assert json.loads(line)["traceback"] == "    Traceback\n    OSError"


@pytest.mark.slow
def test_the_number_of_requested_runs_is_limited(harness: DaemonHarness) -> None:
    code = fake_worker(
        "for number in range(100):\n"
        "    send({'request': 'run', 'number': number, 'user': 'x', 'body': {}})\n"
        "refused = [json.loads(channel.recv_bytes()) for _ in range(68)]\n"
        "text = 'refused: ' + refused[-1]['error']['class']\n"
        "send({'log': {'logger': 'x', 'level': 40, 'text': text, 'trace': ''}})\n"
        "channel.recv_bytes()"
    )
    with served(harness, worker_code=code):
        await_text(harness.store.path / "logs" / "cleanup.log", "ERROR: refused: LockHeldError")
    runs = requested_runs(harness)
    assert len(runs) == 32
    for run in runs:
        run.done(None)
