"""The process that answers HTTP, and the daemon it asks: what each of them survives of the other."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from io import StringIO
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

import psutil
import pytest
import requests
from fastapi import Request
from starlette.types import Message

from eemtcleanupd.daemon.messages import RunCallbacks, RunRequested
from eemtcleanupd.errors import ReportError
from eemtcleanupd.events import RunFinished, Warned
from eemtcleanupd.plugins import from_dict, load, to_dict
from eemtcleanupd.web.api_run import ApiRun, Outcome
from eemtcleanupd.web.app import create_app
from eemtcleanupd.web.auth import Authenticator, Caller
from eemtcleanupd.web.backend import DaemonBackend
from eemtcleanupd.web.ipc import ApiRunFinished, DaemonChannel, WorkerChannel
from eemtcleanupd.web.routes.queries import _progress
from eemtcleanupd.web.supervisor import HttpInterface, _pass_outcome, open_address
from eemtcleanupd.web.worker import HttpServer
from tests.cleanup.conftest import JobStore
from tests.daemon.conftest import HEAD, Living
from tests.notifiers import samples
from tests.web.conftest import Site, await_listening, eemtcleanupd, free_port, start


def answering(site: Site) -> psutil.Process:
    """Return the process that answers."""
    (found,) = (
        each
        for each in psutil.Process(site.process.pid).children()
        if "eemtcleanupd.web.worker" in " ".join(each.cmdline())
    )
    return found


def await_health(url: str, code: int = 200) -> None:
    def asked() -> None:
        if requests.get(f"{url}/healthz", timeout=10).status_code != code:
            raise OSError

    await_listening(asked)


def test_the_daemon_outlives_it_and_starts_another(site: Site) -> None:
    first = answering(site)
    first.kill()
    await_health(site.url)
    assert answering(site).pid != first.pid
    assert site.ask("POST", "/api/cleanup").json()["cleaned_jobs"] == {"successful": 1, "failed": 1}
    assert "ended with code -9" in (site.store.path / "daemon.log").read_text()


def test_it_does_not_outlive_the_daemon(store: JobStore) -> None:
    site = start(store)
    process = answering(site)
    site.process.kill()
    site.process.wait()
    process.wait(30)
    port = int(site.url.rpartition(":")[2])
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
        again.listen()


def test_one_that_hangs_holds_up_neither_a_reload_nor_the_end(site: Site) -> None:
    process = answering(site)
    process.suspend()
    site.process.send_signal(signal.SIGHUP)
    site.process.terminate()
    assert site.process.wait(60) == 0
    assert not process.is_running()


def test_signals_to_all_processes_are_for_the_daemon(site: Site) -> None:
    """As systemd sends them to a whole service, unless KillMode says otherwise."""
    process = answering(site)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    assert site.ask("GET", "/healthz").status_code == 200
    assert answering(site) == process


def test_it_yields_to_the_run(site: Site) -> None:
    assert answering(site).nice() > psutil.Process(site.process.pid).nice()


def test_it_reaches_no_more_of_the_daemon_than_its_line_and_the_address(site: Site) -> None:
    kinds = [os.readlink(each.path) for each in os.scandir(f"/proc/{answering(site).pid}/fd")]
    own = {os.readlink(each.path) for each in os.scandir(f"/proc/{site.process.pid}/fd")}
    shared = {each for each in kinds if each in own and each != "/dev/null"}
    listening = {each for each in shared if each.startswith("socket:")}
    assert len(listening) == 1
    assert shared - listening == {str(site.store.path / "daemon.log")}  # stderr


def test_a_long_answer_comes_as_a_whole(store: JobStore) -> None:
    for number in range(600):
        store.job(f"many-{number}", files=1)
    site = start(store)
    try:
        answer = site.ask("POST", "/api/cleanup")
        assert len(answer.text) > 100_000
        assert answer.json()["cleaned_jobs"] == {"successful": 601, "failed": 1}
        assert len(answer.json()["details"]) == 602
    finally:
        site.process.terminate()
        site.process.wait(30)


@pytest.mark.parametrize("warnings", [1, 9, 30])
def test_an_answer_of_any_length_crosses_the_line(warnings: int) -> None:
    ours, theirs = Pipe()
    with closing(DaemonChannel(ours)) as line, theirs:
        asked = ApiRun("x", (None, None), False, print, lambda made: _pass_outcome(line, 1, made))
        told = Thread(target=carry_out, args=(asked, warnings))
        told.start()
        over, file = WorkerChannel(os.dup(theirs.fileno())).receive()
        told.join()
    assert over.is_in_file == (warnings == 30)
    with StringIO(over.document) if file is None else os.fdopen(file) as document:
        assert json.load(document)["warnings"] == ["x" * 100_000] * warnings


def carry_out(asked: ApiRun, warnings: int) -> None:
    """Do as a run that ends well and warns of much."""
    order, report = asked.callbacks(), samples.report()
    for _ in range(warnings):
        order.emit(Warned("x" * 100_000))
    order.emit(RunFinished(report))
    order.done(report)


def test_no_room_for_the_answer_spoils_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    outcomes: list[Outcome] = []
    carry_out(ApiRun("x", (None, None), False, print, outcomes.append), 30)
    (outcome,) = outcomes
    assert isinstance(outcome, ReportError)
    assert "the run is over" in str(outcome)


@contextmanager
def served(living: Living, config: str = "") -> Iterator[Path]:
    """Serve a daemon of the test's own process at a Unix socket."""
    address = living.store.path / "s"
    daemon = living.start(f"api: {{enabled: true, listen: 'unix:{address}'}}\n{config}")
    interface = daemon._interface = HttpInterface()
    interface.prepare(daemon, daemon.loaded)()
    try:
        yield address
    finally:
        interface.close()


def answer(address: Path, path: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(address))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return client.makefile("rb").read()


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[DaemonBackend, Connection]]:
    """What asks a daemon that does not answer, as one that is stopped, and the daemon's end of the line."""
    monkeypatch.setattr("eemtcleanupd.web.backend._ANSWER_SECONDS", 0.01)
    monkeypatch.setattr("eemtcleanupd.web.backend._STATE_SECONDS", 0.0)
    JobStore(tmp_path)
    (tmp_path / "c.yaml").write_text(f"{HEAD}api: {{enabled: true, listen: 'unix:{tmp_path}/s'}}\n")
    ours, theirs = Pipe()
    with ours, theirs:
        loaded = load(tmp_path / "c.yaml", environ={}, cwd=tmp_path)
        yield DaemonBackend(WorkerChannel(os.dup(theirs.fileno())), loaded), ours


def test_a_daemon_that_is_silent_breaks_neither_pages_nor_events(
    silent: tuple[DaemonBackend, Connection], tmp_path: Path
) -> None:
    engine, address = silent[0], tmp_path / "s"
    with open_address(engine.config.api.listen, 0o600) as opened:
        server = HttpServer(create_app(engine, Authenticator(engine, open_to_all=True)), opened)
        server.start()
        try:
            page = answer(address, "/")
            assert page.startswith(b"HTTP/1.1 503")
            assert b"the daemon does not answer" in page
        finally:
            server.stop()

    async def nobody_goes_away() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def told() -> list[str]:
        request = Request({"type": "http"}, nobody_goes_away)
        events = _progress(engine, request, Caller("x", "read", None), once=False)
        return [await anext(events), await anext(events)]

    assert asyncio.run(told()) == [": the daemon does not answer\n\n"] * 2


def test_what_many_ask_is_asked_once(silent: tuple[DaemonBackend, Connection]) -> None:
    """However long the daemon takes, so that the line does not fill up."""
    engine, line = silent
    for _ in range(3):
        assert not asyncio.run(engine.is_alive())
    assert json.loads(line.recv_bytes())["ask"] == "state"
    assert not line.poll(0)


def test_a_reload_opens_a_socket_again_that_was_removed(living: Living) -> None:
    with served(living) as address:
        address.unlink()
        living.reload()
        assert answer(address, "/healthz").startswith(b"HTTP/1.1 200")


def test_health_ends_when_the_loop_does_not_go_round(living: Living) -> None:
    with served(living) as address:
        assert answer(address, "/healthz").startswith(b"HTTP/1.1 200")
        living.elapsed += 100
        await_listening(lambda: _insist(answer(address, "/healthz").startswith(b"HTTP/1.1 503")))
        living.step()
        await_listening(lambda: _insist(answer(address, "/healthz").startswith(b"HTTP/1.1 200")))


def _insist(value: object) -> None:
    if not value:
        raise OSError


def test_it_finds_each_plugin_that_the_daemon_finds(
    living: Living, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "import pluggy\nhookimpl = pluggy.HookimplMarker('eemtcleanupd')\n"
        "@hookimpl\ndef veto_cleanup(job):\n    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with served(living, "plugins: [elsewhere]\n") as address:
        assert answer(address, "/healthz").startswith(b"HTTP/1.1 200")


def overtaken(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the process that is to answer do something else, with ``line`` to the daemon."""
    monkeypatch.setattr(
        "eemtcleanupd.web.supervisor._CODE",
        "import json, os, sys, time\nfrom multiprocessing.connection import Connection\n"
        "sys.path[:] = json.loads(sys.argv[1])\nline = Connection(int(sys.argv[2]))\nline.recv_bytes()\n"
        f"def say(what): line.send_bytes(json.dumps(what).encode())\n{code}",
    )


@pytest.mark.parametrize(
    "said",
    [
        "",
        "null",
        "[" * 100_000,
        '{"ask": "state", "number": Infinity}',
        '{"ask": "state", "number": [1]}',
        '{"ask": "everything", "number": 1}',
        '{"ask": "run", "number": 1, "user": "x", "body": {"success_retention_hours": -1}}',
        '{"ask": "run", "number": 1, "user": "x", "body": {"success_retention_hours": NaN}}',
        '{"ask": "run", "number": 1, "user": "x", "body": {"failed_retention_hours": "0"}}',
        '{"ask": "run", "number": 1, "user": "\\u0000", "body": {}}',
        '{"log": {"logger": "x", "level": "INFO", "text": "", "trace": ""}}',
        '{"log": {"logger": "x", "level": 4444, "text": "", "trace": ""}}',
        '{"log": {"name": "x", "levelno": 20, "msg": "%(a)0900000000d", "args": {"a": 1}}}',
        '{"log": []}',
    ],
    ids=lambda said: said[:80],
)
def test_one_that_talks_nonsense_is_replaced(
    living: Living, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, said: str
) -> None:
    overtaken(monkeypatch, f"line.send_bytes({said!r}.encode())\nline.recv_bytes()")
    with served(living):
        await_listening(lambda: _insist("is started again" in caplog.text))
        assert "does not speak as it should" in caplog.text
    assert not orders(living)


def orders(living: Living) -> list[RunCallbacks]:
    inbox = living.daemon.inbox
    messages = [inbox.get_nowait() for _ in range(inbox.qsize())]
    return [each.order for each in messages if isinstance(each, RunRequested) and each.order is not None]


def test_what_it_says_cannot_be_taken_for_the_daemons_own_lines(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = "2026-01-01 00:00:00 INFO: forged"
    told = {
        "logger": "x\n",
        "level": 30,
        "text": f"%s {{}}\r{forged}\x1b[2J\ud800",
        "trace": f"{forged}\n{forged}",
    }
    overtaken(monkeypatch, f"say({{'log': {told!r}}})\nline.recv_bytes()")
    file = living.store.path / "logs" / "cleanup.log"
    with served(living):
        await_listening(lambda: _insist(file.read_text().count("forged") == 3))
    lines = file.read_text().splitlines()
    (first,) = (number for number, line in enumerate(lines) if "WARNING: %s {}" in line)
    assert lines[first + 1 : first + 4] == [f"    {forged}\\x1b[2J\\ud800", f"    {forged}", f"    {forged}"]


def test_another_that_it_has_started_does_not_hold_up_the_end(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = living.store.path / "another"
    overtaken(
        monkeypatch,
        "if os.fork(): os._exit(0)\n"
        f"with open({str(file) + '.new'!r}, 'w') as file: file.write(str(os.getpid()))\n"
        f"os.rename({str(file) + '.new'!r}, {str(file)!r})\ntime.sleep(30)",
    )
    with served(living):
        await_listening(file.read_text)
    another = psutil.Process(int(file.read_text()))
    assert another.status() == psutil.STATUS_SLEEPING
    another.kill()


def test_who_does_not_listen_is_not_heard_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """For it may have heard half of something."""
    monkeypatch.setattr("eemtcleanupd.web.ipc._PATIENCE_SECONDS", 1)
    ours, theirs = Pipe()
    line = DaemonChannel(ours)
    with theirs, closing(line):
        with pytest.raises(OSError, match="unavailable"):
            line.send(ApiRunFinished(1, None, "x" * 1_000_000))
        assert ours.poll(0)
        with pytest.raises(EOFError):
            line.receive()


def test_its_tracebacks_have_their_key_in_a_log_of_json(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"logger": "x", "level": 40, "text": "it broke", "trace": "Traceback\nOSError"}
    overtaken(monkeypatch, f"say({{'log': {told!r}}})\nline.recv_bytes()")
    file = living.store.path / "logs" / "cleanup.log"
    with served(living, "logging: {format: json}\n"):
        await_listening(lambda: _insist("it broke" in file.read_text()))
    (line,) = (each for each in file.read_text().splitlines() if "it broke" in each)
    assert json.loads(line)["traceback"] == "    Traceback\n    OSError"


def test_one_that_asks_for_run_after_run_fills_no_memory(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtaken(
        monkeypatch,
        "for number in range(100): say({'ask': 'run', 'number': number, 'user': 'x', 'body': {}})\n"
        "refused = [line.recv() for _ in range(68)]\n"
        "say({'log': {'logger': 'x', 'level': 40, 'text': str(refused[-1].error), 'trace': ''}})\n"
        "line.recv_bytes()",
    )
    file = living.store.path / "logs" / "cleanup.log"
    with served(living):
        await_listening(lambda: _insist("ERROR: too many runs are asked for" in file.read_text()))
    asked = orders(living)
    assert len(asked) == 32
    for each in asked:
        each.done(None)


def test_what_it_logs_is_in_the_daemons_log(site: Site) -> None:
    (site.store.path / "tokens.json").write_text("rubbish")
    assert site.ask("GET", "/api/cleanup/status").status_code == 503
    line = "ERROR: Nobody gets in over HTTP"
    await_listening(lambda: _insist(line in (site.store.path / "logs" / "cleanup.log").read_text()))


def test_a_configuration_arrives_as_it_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the models of plugins, which exist at run time only, what they make of values, and secrets."""
    (tmp_path / "guard.py").write_text(
        "import enum, pluggy\nfrom pydantic import BaseModel, field_validator\n"
        "hookimpl = pluggy.HookimplMarker('eemtcleanupd')\n"
        "class Kind(enum.Enum):\n    small = 'small'\n"
        "class Keys(BaseModel):\n    limit: int\n    kind: Kind\n    names: list[str]\n"
        "    @field_validator('names', mode='before')\n    @classmethod\n"
        "    def _split(cls, names):\n        return names.split()\n"
        "@hookimpl\ndef register_settings():\n    return Keys\n"
        "@hookimpl\ndef veto_cleanup(job, settings):\n    return None\n"
    )
    file = tmp_path / "cleanup_config.yaml"
    file.write_text(
        "plugins: [guard]\n"
        "notifications: {guard: {limit: 3, kind: small, names: 'a b'},\n"
        " slack: {enabled: true, webhook_url: '${HOOK}'}}\n"
        "retention: {successful_jobs: {hours: 5}}\ncapacity: {max_bytes: 1T}\n"
    )
    loaded = load(file, environ={"HOOK": "https://hooks.example/secret"}, cwd=tmp_path)
    assert "secret" not in repr(loaded)
    sent = pickle.dumps(to_dict(loaded))
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "guard")  # the other process has not met the plugin yet
        told = pickle.loads(sent)
    again = from_dict(told)
    assert again == loaded
    assert list(again.settings()) == list(loaded.settings())


def test_the_end_of_the_daemon_ends_who_watches_in_order(store: JobStore) -> None:
    site = start(store)
    headers = {"Authorization": f"Bearer {site.tokens['read']}"}
    with requests.get(f"{site.url}/api/cleanup/events", headers=headers, stream=True, timeout=60) as watched:
        lines = watched.iter_lines()
        assert next(lines) == b"event: idle"
        site.process.terminate()
        assert list(lines) == [b"data: null", b""], "a whole answer, not one that breaks off"
    assert site.process.wait(30) == 0


def test_who_waits_for_a_run_is_answered_though_the_address_moves(store: JobStore) -> None:
    site = start(store, "performance: {max_deletes_per_second: 5}\n")
    try:
        with ThreadPoolExecutor(1) as waiting:
            asked = waiting.submit(site.ask, "POST", "/api/cleanup")
            events = "/api/cleanup/events?once=true"
            await_listening(lambda: _insist("event: progress" in site.ask("GET", events).text))
            file = store.path / "cleanup_config.yaml"
            file.write_text(file.read_text().replace(site.url.rpartition("/")[2], f"127.0.0.1:{free_port()}"))
            eemtcleanupd(store, "reload")
            assert asked.result().json()["cleaned_jobs"] == {"successful": 1, "failed": 1}
    finally:
        site.process.terminate()
        assert site.process.wait(30) == 0
