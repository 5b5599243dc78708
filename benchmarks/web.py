"""How much fifty clients slow a run down, and how fast the page answers meanwhile (``-m benchmarks.web``).

One daemon cleans 20,000 files again and again, alone and beside the clients in turn, so that a machine that
is busier in one minute than in another does not decide.  The clients are one process that computes next to
nothing: on a machine of two cores they would otherwise slow the run down by themselves.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import requests

from tests.cleanup.conftest import JobStore

_JOBS, _FILES = 100, 200
_CLIENTS = 50
_PORT = 5931
_URL = f"http://127.0.0.1:{_PORT}"
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
_WARM_SECONDS = 2


@click.command()
@click.option("--rounds", default=15, show_default=True, help="How many pairs of runs.")
@click.option("--folder", type=click.Path(path_type=Path, exists=True), help="Where to build the store.")
def main(rounds: int, folder: Path | None) -> None:
    """Measure pairs of runs, alone and with clients, one after the other."""
    alone: list[float] = []
    beside: list[float] = []
    page: list[float] = []
    with tempfile.TemporaryDirectory(dir=folder) as place, _daemon(Path(place)) as (store, token):
        _run(store, token, "first")  # it builds the ledger
        for number in range(rounds):
            for is_alone in (True, False) if number % 2 else (False, True):
                if is_alone:
                    alone.append(_run(store, token, f"alone{number}"))
                else:
                    seconds, times = _run_beside(store, token, f"beside{number}")
                    beside.append(seconds)
                    page += times
            click.echo(f"{number + 1}: {alone[-1]:.2f} s alone, {beside[-1]:.2f} s beside {_CLIENTS} clients")
    ratios = sorted(with_them / without for with_them, without in zip(beside, alone, strict=True))
    figures = {
        "files": _JOBS * _FILES,
        "clients": _CLIENTS,
        "run_ratio_median": round(statistics.median(ratios), 3),
        "run_ratio_of_sums": round(sum(beside) / sum(alone), 3),
        "run_ratio_all": [round(each, 3) for each in ratios],
        "page_requests": len(page),
        "page_p50_ms": round(statistics.median(page) * 1000, 1),
        "page_p99_ms": round(statistics.quantiles(page, n=100)[98] * 1000, 1),
    }
    click.echo(json.dumps(figures, indent=2))


@contextmanager
def _daemon(folder: Path) -> Iterator[tuple[JobStore, str]]:
    store = JobStore(folder, now=datetime.now(UTC))
    (folder / "cleanup_config.yaml").write_text(
        f"database: {{timezone: UTC}}\n"
        f"safety: {{max_fraction: 1}}\n"
        f"api: {{enabled: true, listen: '127.0.0.1:{_PORT}', tokens_file: t.json}}\n"
    )
    command = [sys.executable, "-m", "eemtcleanupd"]
    added = subprocess.run(
        [*command, "token", "add", "me", "--scope", "clean"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    daemon = subprocess.Popen([*command, "run"], cwd=folder, stderr=subprocess.DEVNULL)
    try:
        while not _listens():
            time.sleep(0.05)
        yield store, added.stdout.split()[-1]
    finally:
        daemon.terminate()
        daemon.wait()


def _listens() -> bool:
    try:
        return requests.get(f"{_URL}/healthz", timeout=5).ok
    except requests.ConnectionError:
        return False


def _run(store: JobStore, token: str, name: str) -> float:
    _build(store, name)
    # As long as with clients: a filesystem goes on working on what was just written.
    time.sleep(_WARM_SECONDS)
    return _clean(token)


def _run_beside(store: JobStore, token: str, name: str) -> tuple[float, list[float]]:
    _build(store, name)
    with subprocess.Popen(
        [sys.executable, "-c", "from benchmarks.web import hammer; hammer()", token],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as clients:
        time.sleep(_WARM_SECONDS)
        begun = time.monotonic()
        seconds = _clean(token)
        ended = time.monotonic()
        times, _ = clients.communicate()
    if clients.returncode:
        raise SystemExit("the clients broke off")
    # Those that were on their way while the run was; the clock is the same for all processes.
    return seconds, [until - since for since, until in json.loads(times) if until > begun and since < ended]


def _build(store: JobStore, name: str) -> None:
    for job in range(_JOBS):
        store.job(f"{name}-{job}", files=_FILES)


def _clean(token: str) -> float:
    headers = {"Authorization": f"Bearer {token}"}
    answer = requests.post(f"{_URL}/api/cleanup", headers=headers, timeout=300).json()
    if answer.get("cleaned_jobs", {}).get("successful") != _JOBS:
        raise SystemExit(f"the run ended otherwise: {answer}"[:1000])
    began, ended = (datetime.fromisoformat(answer[key]) for key in ("started_at", "finished_at"))
    return (ended - began).total_seconds()


def hammer() -> None:
    """Be the clients until standard input ends; then print when each page was asked for and was there."""
    times = asyncio.run(_hammer(sys.argv[1]))
    json.dump(times, sys.stdout)


async def _hammer(token: str) -> list[tuple[float, float]]:
    times: list[tuple[float, float]] = []
    clients = [asyncio.create_task(_client(at, token, times)) for at in range(_CLIENTS)]
    with ThreadPoolExecutor(1) as waiting:
        await asyncio.get_running_loop().run_in_executor(waiting, sys.stdin.read)
    failed = [client for client in clients if client.done()]
    for client in clients:
        client.cancel()
    if failed:
        raise SystemExit(f"{len(failed)} clients broke off: {failed[0].exception()!r}")
    return times


async def _client(number: int, token: str, times: list[tuple[float, float]]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", _PORT)
    at = number
    await asyncio.sleep(_PAUSE_SECONDS * number / _CLIENTS)
    while True:
        path = _PATHS[at % len(_PATHS)]
        began = time.monotonic()
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if not head.startswith("http/1.1 200"):
            raise ConnectionError(f"{path}: {head}")
        await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))
        if path == "/":
            times.append((began, time.monotonic()))
        at += 1
        await asyncio.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    main()
