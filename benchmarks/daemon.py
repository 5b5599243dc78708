"""The daemon as a contender: it runs already, and is asked over its Unix socket, alone or beside clients.

The clients are one process that computes next to nothing: on a machine of two cores they would otherwise
slow the run down by themselves.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from eemtcleanupd.web.tokens import TokenFile

CLIENTS = 50
_PATHS = (
    "/",
    "/api/cleanup/status",
    "/api/cleanup/runs",
    "/api/cleanup/plan",
    "/api/cleanup/holds",
    "/api/cleanup/trash",
    "/metrics",
    "/healthz",
)
# As an impatient person or a dashboard does; fifty of them are a hundred requests a second.
_PAUSE_SECONDS = 0.5
_SETTLE_SECONDS = 1  # after the start of the daemon and of the clients


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, address: Path) -> None:
        super().__init__("localhost", timeout=600)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._address))


def run_alone(store: Path) -> float:
    """Return the seconds from the request of a run to its end in the ledger."""
    with _daemon(store, tokens=1) as (address, (token,)):
        return _clean(address, token)


def run_beside_clients(store: Path) -> float:
    """Return the seconds of a run while fifty clients ask for pages."""
    with (
        _daemon(store, tokens=1 + CLIENTS) as (address, (token, *others)),
        subprocess.Popen(
            [sys.executable, "-m", __name__, address, *others], stdin=subprocess.PIPE
        ) as clients,
    ):
        seconds = _clean(address, token)
        clients.communicate()
    if clients.returncode:
        raise SystemExit("the clients broke off")
    return seconds


def plan(store: Path) -> float:
    """Return the seconds from the request of a plan to its answer."""
    with _daemon(store, tokens=1) as (address, (token,)):
        time.sleep(_SETTLE_SECONDS)
        began = time.perf_counter()
        status, answer = _ask(address, "GET", "/api/cleanup/plan", token)
        if status != http.HTTPStatus.OK:
            raise SystemExit(f"the daemon answered {status}: {answer[:1000]!r}")
        return time.perf_counter() - began


@contextmanager
def _daemon(store: Path, tokens: int) -> Iterator[tuple[Path, list[str]]]:
    """Start a daemon; yield its socket and some tokens: what one token may do at the same time is limited."""
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket must be short
        address, file = Path(folder) / "api.sock", Path(folder) / "tokens.json"
        secrets = [TokenFile(file).add(str(at), "clean", datetime.now(UTC)) for at in range(tokens)]
        (store / "cleanup_config.yaml").write_text(
            f"api: {{enabled: true, listen: 'unix:{address}', tokens_file: '{file}'}}\n"
        )
        command = [sys.executable, "-m", "eemtcleanupd", "run"]
        with subprocess.Popen(
            command, cwd=store, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as daemon:
            try:
                while not _answers(address):
                    if daemon.poll() is not None:
                        raise SystemExit(f"the daemon ended with {daemon.returncode}")
                    time.sleep(0.05)
                yield address, secrets
            finally:
                daemon.terminate()


def _answers(address: Path) -> bool:
    try:
        return _ask(address, "GET", "/healthz", "")[0] == http.HTTPStatus.OK
    except OSError:
        return False


def _ask(address: Path, method: str, path: str, token: str) -> tuple[int, bytes]:
    with closing(_UnixConnection(address)) as connection:
        connection.request(method, path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.read()


def _clean(address: Path, token: str) -> float:
    time.sleep(_SETTLE_SECONDS)
    asked = datetime.now(UTC)
    status, answer = _ask(address, "POST", "/api/cleanup", token)
    if status != http.HTTPStatus.OK:
        raise SystemExit(f"the daemon answered {status}: {answer[:1000]!r}")
    # The moment that the ledger has as well, but only to the second.
    return (datetime.fromisoformat(json.loads(answer)["finished_at"]) - asked).total_seconds()


async def _hammer(address: str, *tokens: str) -> None:
    """Be the clients until standard input ends."""
    clients = [asyncio.create_task(_client(at, address, token)) for at, token in enumerate(tokens)]
    with ThreadPoolExecutor(1) as waiting:
        await asyncio.get_running_loop().run_in_executor(waiting, sys.stdin.read)
    failed = [client for client in clients if client.done()]
    for client in clients:
        client.cancel()
    if failed:
        raise SystemExit(f"{len(failed)} clients broke off: {failed[0].exception()!r}")


async def _client(number: int, address: str, token: str) -> None:
    reader, writer = await asyncio.open_unix_connection(address)
    await asyncio.sleep(_PAUSE_SECONDS * number / CLIENTS)
    while True:
        path = _PATHS[number % len(_PATHS)]
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if not head.startswith("http/1.1 200"):
            raise ConnectionError(f"{path}: {head}")
        await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))
        number += 1
        await asyncio.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    asyncio.run(_hammer(*sys.argv[1:]))
