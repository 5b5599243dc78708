"""A daemon with its HTTP interface, as a process of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from eemtcleanupd.web.tokens import SCOPES, Scope, TokenFile
from tests.cleanup.conftest import JobStore
from tests.daemon.conftest import living


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eemtcleanupd(store: JobStore, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "eemtcleanupd", *args],
        cwd=store.path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


@dataclass
class Site:
    """A daemon that serves; tokens by scope."""

    store: JobStore
    url: str
    tokens: dict[str, str]
    process: subprocess.Popen[str] = field(repr=False)

    def ask(
        self, method: str, path: str, body: object = None, *, token: str | None = "clean", **headers: str
    ) -> requests.Response:
        if token is not None:
            headers["Authorization"] = f"Bearer {self.tokens.get(token, token)}"
        return requests.request(
            method,
            self.url + path,
            json=body,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            timeout=60,
        )

    def get(self, path: str, **headers: str) -> Any:
        answer = self.ask("GET", path, **headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def add_token(self, name: str, scope: Scope) -> str:
        return TokenFile(self.store.path / "tokens.json").add(name, scope, datetime.now(UTC))

    def revoke(self, name: str) -> None:
        assert TokenFile(self.store.path / "tokens.json").revoke(name)

    def refusals(self) -> list[dict[str, Any]]:
        lines = (self.store.path / "logs" / "cleanup_audit.jsonl").read_text().splitlines()
        return [entry for entry in map(json.loads, lines) if entry["action"] == "http_refused"]

    def audit(self) -> str:
        return (self.store.path / "logs" / "cleanup_audit.jsonl").read_text()


def start(store: JobStore, config: str = "", listen: str | None = None, api: str = "") -> Site:
    """Start a daemon; it is waited for unless told where to listen.  ``api``: more keys of that block."""
    port = free_port()
    (store.path / "cleanup_config.yaml").write_text(
        f"database: {{timezone: UTC}}\napi: {{enabled: true, listen: '{listen or f'127.0.0.1:{port}'}',"
        f" tokens_file: ./tokens.json{api and f', {api}'}}}\n{config}"
    )
    file = TokenFile(store.path / "tokens.json")
    tokens = {scope: file.add(scope, scope, datetime.now(UTC)) for scope in SCOPES}
    with (store.path / "daemon.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "eemtcleanupd", "run"],
            cwd=store.path,
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
        )
    site = Site(store, f"http://127.0.0.1:{port}", tokens, process)
    if listen is None:

        def connect() -> None:
            assert process.poll() is None, (store.path / "daemon.log").read_text()
            requests.get(f"{site.url}/healthz", timeout=5)

        await_listening(connect)
    return site


def await_listening(connect: Callable[[], object]) -> None:
    """Try to connect until somebody listens."""
    deadline = time.monotonic() + 60
    while True:
        try:
            connect()
        except (OSError, requests.ConnectionError):
            assert time.monotonic() < deadline, "nobody listens"
            time.sleep(0.05)  # there is nothing to wait on before it listens
        else:
            return


def filled(path: Path) -> JobStore:
    """Return a store with jobs that are due, one that is young, and one that is live."""
    store = JobStore(path, now=datetime.now(UTC))
    store.job("a", dem="dem.tif")
    store.job("b", "failed")
    store.job("young", days=1)
    store.job("live", "running", days=None)
    store.upload("dem.tif")
    return store


def end(site: Site) -> None:
    site.process.terminate()
    assert site.process.wait(30) == 0


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    """A store with jobs that are due, one that is young, and one that is live."""
    return filled(tmp_path / "store")


@pytest.fixture
def site(store: JobStore) -> Iterator[Site]:
    site = start(store)
    yield site
    end(site)


@pytest.fixture
def site_with_trash(store: JobStore) -> Iterator[Site]:
    site = start(store, "trash: {grace_hours: 24}\n")
    yield site
    end(site)


__all__ = ["living"]
