"""How much fifty clients slow a run down, and how fast the page answers meanwhile (``-m benchmarks.web``)."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import requests

from tests.cleanup.conftest import JobStore

_JOBS, _FILES = 100, 200
_CLIENTS = 50
_ROUNDS = 7
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


def main() -> None:
    """Measure pairs of runs, alone and with clients, one after the other."""
    ratios: list[float] = []
    page: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(_ROUNDS):
            alone, _ = _round(Path(folder) / f"alone{number}", clients=0)
            beside, times = _round(Path(folder) / f"beside{number}", clients=_CLIENTS)
            ratios.append(beside / alone)
            page += times
            print(
                f"round {number + 1}: {alone:.2f} s alone, {beside:.2f} s beside {_CLIENTS} clients",
                flush=True,
            )
    figures = {
        "files": _JOBS * _FILES,
        "clients": _CLIENTS,
        "run_ratio_median": round(statistics.median(ratios), 3),
        "run_ratio_all": [round(each, 3) for each in ratios],
        "page_requests": len(page),
        "page_p50_ms": round(statistics.median(page) * 1000, 1),
        "page_p99_ms": round(statistics.quantiles(page, n=100)[98] * 1000, 1),
    }
    print(json.dumps(figures, indent=2))


def _round(folder: Path, clients: int) -> tuple[float, list[float]]:
    store = JobStore(folder, now=datetime.now(UTC))
    for job in range(_JOBS):
        store.job(f"job{job}", files=_FILES)
    (folder / "cleanup_config.yaml").write_text(
        f"database: {{timezone: UTC}}\n"
        f"api: {{enabled: true, listen: '127.0.0.1:{_PORT}', tokens_file: t.json}}\n"
    )
    command = [sys.executable, "-m", "eemtcleanupd"]
    token = subprocess.run(
        [*command, "token", "add", "me", "--scope", "clean"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()[-1]
    headers = {"Authorization": f"Bearer {token}"}
    daemon = subprocess.Popen([*command, "run"], cwd=folder, stderr=subprocess.DEVNULL)
    try:
        while not _listens():
            time.sleep(0.05)
        stop = threading.Event()
        times: list[float] = []
        threads = [threading.Thread(target=_hammer, args=(at, headers, stop, times)) for at in range(clients)]
        for thread in threads:
            thread.start()
        stop.wait(2)
        answer = requests.post(f"{_URL}/api/cleanup", headers=headers, timeout=300).json()
        stop.set()
        for thread in threads:
            thread.join()
    finally:
        daemon.terminate()
        daemon.wait()
        shutil.rmtree(folder)
    began, ended = (datetime.fromisoformat(answer[key]) for key in ("started_at", "finished_at"))
    return (ended - began).total_seconds(), times


def _listens() -> bool:
    try:
        return requests.get(f"{_URL}/healthz", timeout=5).ok
    except requests.ConnectionError:
        return False


def _hammer(number: int, headers: dict[str, str], stop: threading.Event, times: list[float]) -> None:
    with requests.Session() as session:
        at = number
        while not stop.wait(_PAUSE_SECONDS):
            path = _PATHS[at % len(_PATHS)]
            began = time.perf_counter()
            session.get(_URL + path, headers=headers, timeout=60)
            if path == "/":
                times.append(time.perf_counter() - began)
            at += 1


if __name__ == "__main__":
    main()
