"""What single runs cost: plans, a run over many rows beside a writer, a run with nothing to do."""

from __future__ import annotations

import os
import sqlite3
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import daemon
from benchmarks.contests import Peak, clean, insist
from benchmarks.filesystems import Filesystem

_WRITE_PAUSE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure, round by round, and the most that it should be."""

    title: str
    unit: str
    values: Sequence[float]
    most: float

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)


def plan_seconds(filesystem: Filesystem, rounds: int) -> tuple[list[float], list[float]]:
    """Measure dry runs, and plans over HTTP."""
    dry_runs, plans = [], []
    for _ in range(rounds):
        with filesystem.fresh() as store:
            began = time.perf_counter()
            insist(clean(store, 4, "--dry-run"))
            dry_runs.append(time.perf_counter() - began)
            plans.append(daemon.plan(store))
    return dry_runs, plans


def start_cpu_seconds(filesystem: Filesystem, rounds: int) -> list[float]:
    """Measure the CPU time, user and system, of runs with nothing due, the first run left out."""
    seconds = []
    with filesystem.fresh() as store:
        insist(clean(store, 4))  # it creates the ledger
        for _ in range(rounds):
            before = os.times()
            insist(clean(store, 4))
            after = os.times()
            seconds.append(
                after.children_user + after.children_system - before.children_user - before.children_system
            )
    return seconds


def seconds_and_peak_mb(filesystem: Filesystem) -> tuple[float, float]:
    """Measure one run with the memory of all its processes."""
    with filesystem.fresh() as store, Peak() as peak:
        began = time.perf_counter()
        insist(clean(store, 4))
        return time.perf_counter() - began, peak.mb


def seconds_and_waits(filesystem: Filesystem, rounds: int) -> tuple[list[float], list[float]]:
    """Measure runs, and the milliseconds that 99 % of a web application's writes wait meanwhile."""
    seconds, waits = [], []
    for _ in range(rounds):
        with filesystem.fresh() as store:
            waited: list[float] = []
            end = threading.Event()
            writer = threading.Thread(target=_write, args=(store / "jobs.db", end, waited))
            writer.start()
            try:
                began = time.perf_counter()
                insist(clean(store, 4))
                seconds.append(time.perf_counter() - began)
            finally:
                end.set()
                writer.join()
            waits.append(statistics.quantiles(waited, n=100)[98] * 1000)
    return seconds, waits


def _write(database: Path, end: threading.Event, waited: list[float]) -> None:
    """Write as a web application does: a new job, then its progress, each in a transaction of its own."""
    connection = sqlite3.connect(database, timeout=60, isolation_level=None)
    statements = (
        "INSERT INTO jobs (id, workflow_type, status) VALUES (?, 'sol', 'running')",
        "UPDATE jobs SET progress = 50 WHERE id = ?",
    )
    number = 0
    while not end.wait(_WRITE_PAUSE_SECONDS):
        began = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(statements[number % 2], (f"new-{number // 2}",))
        connection.execute("COMMIT")
        waited.append(time.perf_counter() - began)
        number += 1
    connection.close()
