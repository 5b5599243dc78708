"""How a run's cost grows with files and rows, what system calls it makes, and whom it keeps waiting."""

from __future__ import annotations

import math
import os
import re
import shutil
import sqlite3
import statistics
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contests import CLEAN, clean
from benchmarks.stores import Shape, build_expired, build_rows

_KIB_PER_MB = 1000 / 1.024
_WRITE_PAUSE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Growth:
    """Seconds by size, and the exponent of the power law that fits them best (1: linear)."""

    of: str
    sizes: Sequence[int]
    seconds: Sequence[float]
    exponent: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run cost: wall seconds, CPU seconds (helpers included), peak memory of its main process."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Waits:
    """What a writer beside a run waited for, in milliseconds."""

    writes: int
    p50_ms: float
    p99_ms: float
    longest_ms: float


def run(store: Path, workers: int | str = 4) -> Cost:
    """Run on a store to its end."""
    began = time.perf_counter()
    with clean(store, workers) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"a run ended with {process.returncode}")
    seconds = time.perf_counter() - began
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / _KIB_PER_MB)


def files_growth(store: Path, sizes: Sequence[int]) -> Growth:
    """Measure runs over jobs of 1,000 files, more and more of them."""
    seconds = []
    for size in sizes:
        build_expired(store, Shape(jobs=max(1, size // 1000), files=min(size, 1000), folders=2))
        seconds.append(run(store).seconds)
    return _fitted("files", sizes, seconds)


def rows_growth(store: Path, sizes: Sequence[int]) -> Growth:
    """Measure runs over rows of which none is due."""
    seconds = []
    for size in sizes:
        build_rows(store, size)
        seconds.append(statistics.median(run(store).seconds for _ in range(3)))
    return _fitted("rows", sizes, seconds)


def _fitted(of: str, sizes: Sequence[int], seconds: Sequence[float]) -> Growth:
    """Fit seconds = a + b * size^c; a is what the smallest took, for it is nearly all start."""
    points = [
        (math.log(size), math.log(max(1e-3, took - seconds[0])))
        for size, took in zip(sizes[1:], seconds[1:], strict=True)
    ]
    slope = statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else math.nan
    return Growth(of, sizes, seconds, slope)


def system_calls(store: Path, files: int) -> dict[str, float]:
    """Return how many calls of each kind a run makes per file, start and end of the run left out."""
    counts = []
    for size in (files // 10, files):
        build_expired(store, Shape(jobs=4, files=size // 4, folders=4))
        counts.append(_counted(store))
    base, all_calls = counts
    more = files - files // 10
    return {name: (all_calls[name] - base.get(name, 0)) / more for name in all_calls}


def _counted(store: Path) -> dict[str, int]:
    table = store / "calls.txt"
    (store / "cleanup_config.yaml").write_text("performance: {max_workers: 4}\n")
    command = ["strace", "-c", "-f", "-q", "-o", str(table), *CLEAN]
    subprocess.run(command, cwd=store, check=True, stdout=subprocess.DEVNULL)
    line = re.compile(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", re.MULTILINE)
    return {name: int(calls) for calls, name in line.findall(table.read_text()) if name != "total"}


def has_strace() -> bool:
    """Tell whether system calls can be counted here."""
    return shutil.which("strace") is not None


def due_rows(store: Path, rows: int, due: int) -> tuple[Cost, Waits]:
    """Measure a run over rows of which some are due, and the writes of a web interface beside it."""
    build_rows(store, rows, due)
    waited: list[float] = []
    end = threading.Event()
    writer = threading.Thread(target=_write, args=(store / "jobs.db", end, waited))
    writer.start()
    try:
        cost = run(store)
    finally:
        end.set()
        writer.join()
    percentiles = statistics.quantiles(waited, n=100)
    return cost, Waits(len(waited), percentiles[49] * 1000, percentiles[98] * 1000, max(waited) * 1000)


def _write(database: Path, end: threading.Event, waited: list[float]) -> None:
    """Write as a web interface does: a new job, its progress, each in a transaction of its own."""
    connection = sqlite3.connect(database, timeout=60, isolation_level=None)
    number = 0
    while not end.wait(_WRITE_PAUSE_SECONDS):
        number += 1
        began = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "INSERT INTO jobs (id, workflow_type, status) VALUES (?, 'sol', 'running')", (f"new-{number}",)
        )
        connection.execute("COMMIT")
        waited.append(time.perf_counter() - began)
    connection.close()
