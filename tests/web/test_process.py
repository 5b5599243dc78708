"""The process that answers HTTP, and the daemon it asks: what each of them survives of the other."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests

from eemtcleanupd.plugins import load, packed, unpacked
from eemtcleanupd.web.line import MOST_INLINE
from eemtcleanupd.web.server import HttpInterface
from tests.cleanup.conftest import JobStore
from tests.daemon.conftest import Living
from tests.web.conftest import Site, await_listening, start


def answering(site: Site) -> psutil.Process:
    """Return the process that answers."""
    (found,) = (
        each
        for each in psutil.Process(site.process.pid).children()
        if "eemtcleanupd.web.process" in " ".join(each.cmdline())
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
        assert len(answer.text) > MOST_INLINE
        assert answer.json()["cleaned_jobs"] == {"successful": 601, "failed": 1}
        assert len(answer.json()["details"]) == 602
    finally:
        site.process.terminate()
        site.process.wait(30)


@contextmanager
def served(living: Living, config: str = "") -> Iterator[Path]:
    """Serve a daemon of the test's own process at a Unix socket."""
    address = living.store.path / "s"
    daemon = living.start(f"api: {{enabled: true, listen: 'unix:{address}'}}\n{config}")
    interface = HttpInterface()
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
    sent = pickle.dumps(packed(loaded))
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "guard")  # the other process has not met the plugin yet
        told = pickle.loads(sent)
    again = unpacked(told)
    assert again == loaded
    assert list(again.settings()) == list(loaded.settings())
