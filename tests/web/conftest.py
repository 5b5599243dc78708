"""A daemon with its HTTP interface, as a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import requests
from fastapi.testclient import TestClient

from eemtcleanupd.web.app import create_app
from eemtcleanupd.web.auth import Authenticator
from eemtcleanupd.web.backend import LocalBackend
from eemtcleanupd.web.tokens import SCOPES, Scope, TokenFile
from tests.cleanup.conftest import JobStore
from tests.daemon.conftest import daemon as harness
from tests.ports import free_port


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
class RunningDaemon:
    """A daemon process with its HTTP interface, and a token for each scope."""

    store: JobStore
    url: str
    tokens: dict[str, str]
    process: subprocess.Popen[str] = field(repr=False)
    earlier_refusals: int = 0

    def request(
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
        answer = self.request("GET", path, **headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def add_token(self, name: str, scope: Scope) -> str:
        return TokenFile(self.store.path / "tokens.json").add(name, scope, datetime.now(UTC))

    def revoke(self, name: str) -> None:
        assert TokenFile(self.store.path / "tokens.json").revoke(name)

    def audit(self) -> str:
        return (self.store.path / "logs" / "cleanup_audit.jsonl").read_text()

    def refusals(self) -> list[dict[str, Any]]:
        entries = map(json.loads, self.audit().splitlines())
        refused = [entry for entry in entries if entry["action"] == "http_refused"]
        return refused[self.earlier_refusals :]

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(60) == 0


def start(store: JobStore, config: str = "", listen: str | None = None, api: str = "") -> RunningDaemon:
    """Start a daemon; wait until it listens unless ``listen`` is given.  ``api``: more keys of that block."""
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
    daemon = RunningDaemon(store, f"http://127.0.0.1:{port}", tokens, process)
    if listen is None:

        def connect() -> None:
            if process.poll() is not None:
                pytest.fail((store.path / "daemon.log").read_text())
            requests.get(f"{daemon.url}/healthz", timeout=5)

        eventually(connect)
    return daemon


def eventually(action: Callable[[], object]) -> None:
    """Repeat an action until it neither fails to connect nor violates an assertion."""
    deadline = time.monotonic() + 60
    while True:
        try:
            action()
        except (OSError, requests.ConnectionError, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)  # the state of another process has no event to wait for
        else:
            return


def create_store(path: Path) -> JobStore:
    """Return a store with the expired jobs a and b, a young one, and a live one."""
    store = JobStore(path, now=datetime.now(UTC))
    store.job("a", dem="dem.tif")
    store.job("b", "failed")
    store.job("young", days=1)
    store.job("live", "running", days=None)
    store.upload("dem.tif")
    return store


SITE_CONFIG = """
database: {timezone: UTC}
api: {tokens_file: ./tokens.json}
trash: {grace_hours: 24}
notifications: {slack: {enabled: false, webhook_url: "https://hooks.example.org/SECRET"}}
"""


@dataclass
class Site:
    """The pages of a store, without a daemon."""

    store: JobStore
    backend: LocalBackend
    client: TestClient = field(repr=False)
    tokens: dict[str, str] = field(repr=False)

    def bearer(self, scope: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[scope]}"}

    def json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def get(self, path: str, scope: str = "read", status: int = 200) -> str:
        answer = self.client.get(path, headers=self.bearer(scope))
        assert answer.status_code == status, answer.text
        return answer.text

    def jobs(self, path: str) -> list[str]:
        """The first cells of the rows of a list and of all pages that follow."""
        found = []
        while True:
            page = re.sub("<details.*?</details>", "", self.get(path), flags=re.DOTALL)
            found += re.findall(r'<th scope="row"[^>]*>(?:<a [^>]*>)?(.*?)(?:</a>)?</th>', page)
            following = re.search(r'<a href="([^"]*)" rel="next">', page)
            if following is None:
                return [unescape(text) for text in found]
            path = unescape(following[1])


@contextmanager
def site_of(store: JobStore, config: str = "", grace_hours: int = 24) -> Iterator[Site]:
    block = SITE_CONFIG.replace("{grace_hours: 24}", f"{{grace_hours: {grace_hours}}}")
    (store.path / "cleanup_config.yaml").write_text(block + config)
    file = TokenFile(store.path / "tokens.json")
    tokens = {scope: file.add(scope, scope, datetime.now(UTC)) for scope in SCOPES}
    backend = LocalBackend(store.path / "cleanup_config.yaml", {})
    with TestClient(create_app(backend, Authenticator(backend)), base_url="http://127.0.0.1") as client:
        yield Site(store, backend, client, tokens)


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return create_store(tmp_path / "store")


@pytest.fixture
def daemon(store: JobStore) -> Iterator[RunningDaemon]:
    daemon = start(store)
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def module_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    daemon = start(create_store(tmp_path_factory.mktemp("shared") / "store"))
    yield daemon
    daemon.stop()


@pytest.fixture
def shared_daemon(module_daemon: RunningDaemon) -> RunningDaemon:
    """A daemon for all tests of a module that change nothing; they need one ``xdist_group``."""
    module_daemon.earlier_refusals += len(module_daemon.refusals())
    return module_daemon


@pytest.fixture
def daemon_with_trash(store: JobStore) -> Iterator[RunningDaemon]:
    daemon = start(store, "trash: {grace_hours: 24}\n")
    yield daemon
    daemon.stop()


__all__ = ["harness"]
