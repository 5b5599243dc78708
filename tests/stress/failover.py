"""Two daemons on one PostgreSQL database: the active one is killed, frozen or cut off every few seconds.

Meanwhile jobs come to their end and are due.  When it is over every one of them must be cleaned, recorded
once, and nothing else touched.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.daemon.status import DaemonStatus, read_status
from eemtcleanupd.store.address import StoreAddress
from tests.cleanup.conftest import JobStore
from tests.postgres import Server, running_server

TAKEOVER_SECONDS = 4
_CONFIG = """
paths: {{database: "{url}", results: results, uploads: uploads, temp: temp, logs: "{logs}"}}
database: {{timezone: UTC, busy_timeout_seconds: 20}}
ha: {{takeover_seconds: {takeover}}}
safety: {{max_fraction: 1.0}}
performance: {{max_workers: 2, batch_size: 20}}
"""
_ATTACKS = ("kill", "kill", "kill", "freeze", "cut", "stop")
_PATIENCE_SECONDS = 60
_ACTIVE = """
SELECT l.pid FROM cleanup_locks AS l JOIN pg_locks AS p ON p.pid = l.backend AND p.locktype = 'advisory'
WHERE l.name = 'daemon' AND p.granted"""


@dataclass
class Outcome:
    """What was done, how long it took another to take over, and what was wrong in the end."""

    done: Counter[str] = field(default_factory=Counter)
    takeovers_seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, Any]:
        """What to print."""
        waits = sorted(self.takeovers_seconds)
        middle = round(waits[len(waits) // 2], 1) if waits else None
        return {**self.done, "takeover median s": middle, "takeover max s": round(max(waits, default=0), 1)}


class Pair:
    """Two daemons, each with a folder for its logs, as on two hosts; ``a`` is started first."""

    def __init__(self, store: JobStore, url: str, takeover_seconds: int = TAKEOVER_SECONDS) -> None:
        self._store = store
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._locations: dict[str, StoreAddress] = {}
        for name in ("a", "b"):
            text = _CONFIG.format(url=url, logs=f"logs-{name}", takeover=takeover_seconds)
            (store.path / f"{name}.yaml").write_text(text)
            self._locations[name] = StoreAddress(DatabaseAddress(url), store.path / f"logs-{name}", 5)
            self.start(name)

    def start(self, name: str) -> None:
        """Start one of them."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("EEMT_")}
        with (self._store.path / f"{name}.out").open("ab") as out:
            command = [sys.executable, "-m", "eemtcleanupd", "run", "--config", f"{name}.yaml"]
            self._running[name] = subprocess.Popen(
                command, cwd=self._store.path, env=environment, stdout=out, stderr=out
            )

    def named(self, pid: int) -> str:
        """Return which one has a process id."""
        return next((name for name, each in self._running.items() if each.pid == pid), "")

    def revive(self) -> list[str]:
        """Start those again that have ended; returns how they did."""
        ended = {name: code for name, each in self._running.items() if (code := each.poll()) is not None}
        for name in ended:
            self.start(name)
        return [f"daemon {name} ended with {code}" for name, code in ended.items() if code not in {0, -9}]

    def stop(self, name: str) -> None:
        """Let one of them end in order."""
        self._running[name].terminate()
        self._running[name].wait()

    def status(self, name: str) -> DaemonStatus | None:
        """Return what one of them says of itself, None while it does not live."""
        status, running = read_status(self._locations[name]), self._running[name]
        return status if running.poll() is None and status is not None and status.pid == running.pid else None

    def nudge(self) -> None:
        """Ask for a run; the one that stands by does not start it."""
        for name, each in self._running.items():
            if self.status(name) is not None:
                each.send_signal(signal.SIGUSR1)

    def are_ready(self) -> bool:
        """Tell whether both have come so far that one could take over from the other."""
        return all(self.status(name) is not None for name in self._running)

    def close(self) -> None:
        """End both."""
        for each in self._running.values():
            each.send_signal(signal.SIGCONT)
            each.kill()
            each.wait()


def run(seconds: float, seed: int = 1, backlog: int = 400) -> Outcome:
    """Attack for some seconds, wait until all that is due is clean, and look at what was done."""
    outcome = Outcome()
    dice = random.Random(seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="failover-")))
        server = stack.enter_context(running_server())
        url = server.create()
        store = JobStore(folder / "store", now=datetime.now(UTC), url=url)
        store.job("live", "running", days=None)
        store.job("young", days=1)
        pair = Pair(store, url)
        stack.callback(pair.close)
        over = threading.Event()
        feeder = threading.Thread(
            target=_feed, args=(store, over, backlog, random.Random(seed + 1), outcome.done)
        )
        stack.callback(feeder.join)
        stack.callback(over.set)
        _await_active(url, None, pair)
        feeder.start()
        while outcome.done["jobs"] < backlog:
            time.sleep(0.1)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pair.nudge()
            time.sleep(dice.uniform(0.3, 3))
            _attack(dice.choice(_ATTACKS), server, url, pair, outcome)
            outcome.faults += pair.revive()
        over.set()
        feeder.join()
        _let_it_finish(store, pair, outcome)
        _look(store, outcome)
        if outcome.faults:
            for name in ("a", "b"):
                outcome.faults.append(f"{name}: {_end_of(store.path / f'{name}.out')}")
    return outcome


def _feed(
    store: JobStore, over: threading.Event, backlog: int, dice: random.Random, done: Counter[str]
) -> None:
    """Let jobs come up, run and end, ten days ago."""
    number = 0
    while number < backlog or not over.is_set():
        number += 1
        job = f"job-{number:05}"
        store.job(job, "running", days=10, files=dice.choice([0, 1, 5, 5, 20, 300]))
        if dice.random() < 0.3:
            store.upload(f"{job}_dem.tif")
        store.sql("UPDATE jobs SET status = 'completed' WHERE id = ?", job)
        done["jobs"] += 1
        if number > backlog:
            over.wait(dice.uniform(0, 0.1))


def _attack(attack: str, server: Server, url: str, pair: Pair, outcome: Outcome) -> None:
    active = _active(url)
    name = pair.named(active or 0)
    if active is None or not name:
        return
    began, stood_by = time.monotonic(), pair.are_ready()
    if attack == "cut":
        server.disconnect(url, "application_name = 'eemtcleanupd'")  # not those who only watch
        outcome.done["cut"] += 1
        return
    number = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "stop": signal.SIGTERM}[attack]
    os.kill(active, number)
    try:
        if not _await_active(url, active, pair):
            outcome.faults.append(f"after a {attack} nobody took over within {_PATIENCE_SECONDS} seconds")
        waited = time.monotonic() - began
        if stood_by:
            outcome.takeovers_seconds.append(waited)
            outcome.done["late takeovers"] += waited > TAKEOVER_SECONDS
    finally:
        if attack == "freeze":
            os.kill(active, signal.SIGCONT)
    outcome.done[attack] += 1


def _active(url: str) -> int | None:
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT to_regclass('cleanup_locks')").fetchone() == (None,):
            return None
        row = connection.execute(_ACTIVE).fetchone()
    return None if row is None else int(row[0])


def _await_active(url: str, other_than: int | None, pair: Pair) -> bool:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        pair.revive()
        if _active(url) not in {None, other_than}:
            return True
        time.sleep(0.05)
    return False


def _let_it_finish(store: JobStore, pair: Pair, outcome: Outcome) -> None:
    deadline = time.monotonic() + 3 * _PATIENCE_SECONDS
    while True:
        outcome.faults += pair.revive()
        pair.nudge()
        time.sleep(0.5)
        waiting = store.sql(
            "SELECT (SELECT count(*) FROM jobs WHERE id LIKE 'job-%' AND data_cleaned_at IS NULL),"
            " (SELECT count(*) FROM cleanup_intents),"
            " (SELECT count(*) FROM cleanup_runs WHERE outcome IS NULL)"
        )
        if waiting == [(0, 0, 0)]:
            return
        if time.monotonic() > deadline:
            outcome.faults.append(f"jobs, intents and runs that came to no end: {waiting[0]}")
            return


def _look(store: JobStore, outcome: Outcome) -> None:
    """Look whether every job that was due was cleaned exactly once, and nothing else."""
    faults, lines = outcome.faults, Counter[str]()
    for job, action in store.sql("SELECT job_id, action FROM cleanup_log"):
        if action == "cleaned":
            lines[str(job)] += 1
        else:
            outcome.done[str(action)] += 1
    roots = Counter(store.sql("SELECT job_id, action FROM cleanup_audit"))
    cleaned = {str(job) for job in store.cleaned()}
    outcome.done["cleaned"] = len(cleaned)
    for (number,) in store.sql("SELECT count(*) FROM cleanup_runs"):
        outcome.done["runs"] = int(str(number))
    for job in (f"job-{number:05}" for number in range(1, outcome.done["jobs"] + 1)):
        if lines[job] != 1:
            faults.append(f"{job} was recorded {lines[job]} times")
        if job not in cleaned:
            faults.append(f"{job} was not cleaned")
        if store.results(job).exists() or (store.path / f"uploads/{job}_dem.tif").exists():
            faults.append(f"{job} has files left")
    twice = {pair: count for pair, count in roots.items() if count > 1}
    faults += [
        f"{job} {action} stands {count} times in cleanup_audit" for (job, action), count in twice.items()
    ]
    faults += [f"{job} was cleaned, and must not be" for job in ("live", "young") if job in cleaned]
    for job in ("live", "young"):
        if len(list((store.results(job) / "global").iterdir())) != 2:
            faults.append(f"{job} lost files")
    if left := store.trash():
        faults.append(f"the trash holds {left}")


def _end_of(file: Path) -> str:
    return file.read_text(errors="replace")[-3000:]
