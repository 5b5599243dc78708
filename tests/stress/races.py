"""Processes that do to a job store what others do, and worse, against a running daemon, for minutes."""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, TypeAlias

from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.plugins import load
from tests.cleanup.conftest import JobStore

_CONFIG = """
schedule: {enabled: true, cron: '* * * * *', run_on_start: true}
database: {timezone: UTC}
safety: {max_fraction: 1, min_idle_minutes: 0}
notifications: {audit_log: {enabled: true}}
"""
Report: TypeAlias = "Queue[Any]"
"""Of (action, how often, faults)."""


@dataclass
class Outcome:
    """How often what was done, and what was wrong."""

    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def _write(store: Path, statement: str, *values: object) -> None:
    """Write as the web interface does: a connection for each statement."""
    with closing(sqlite3.connect(store / "jobs.db", timeout=30)) as connection, connection:
        connection.execute(statement, values)


def _add(store: Path, name: str, status: str, dem: str | None, *, days: float | None) -> None:
    ended = None
    if days is not None:
        ended = (datetime.now(UTC) - timedelta(days=days)).replace(tzinfo=None).isoformat()
    created = datetime.now(UTC) - timedelta(days=days or 30, hours=1)  # a live job will end 30 days ago
    _write(
        store,
        "INSERT INTO jobs (id, workflow_type, status, created_at, completed_at, dem_filename)"
        " VALUES (?, 'sol', ?, ?, ?, ?)",
        name,
        status,
        f"{created:%Y-%m-%d %H:%M:%S}",
        ended,
        dem,
    )


def _fill(folder: Path, files: int = 4) -> list[Path]:
    made = []
    for number in range(files):
        below = folder / f"part{number % 2}"
        below.mkdir(parents=True, exist_ok=True)
        file = below / f"day_{number}.tif"
        file.write_bytes(b"x" * 3000)
        made.append(file)
    return made


def jobs_come_and_go(store: Path, seed: int, until: float, report: Report) -> None:
    """Submit jobs, let them run, end them long ago, run some again, and look whether live ones keep all."""
    random.seed(seed)
    done, faults = Counter[str](), []
    number = 0
    while time.time() < until:
        number += 1
        name, dem = f"job{seed}-{number}", f"dem{random.randrange(5)}.tif"
        # As the web interface: the row first, then the upload and the results.
        _add(store, name, "running", dem, days=None)
        upload = store / "uploads" / dem
        with suppress(FileExistsError):
            upload.open("x").write("dem")
        mine = [upload, *_fill(store / "results" / name)]
        time.sleep(random.uniform(0, 0.05))
        lost = [str(file) for file in mine if not file.exists()]
        if lost:
            # A run may hold an upload for the moment between its staging and its second look.
            time.sleep(1)
            lost = [file for file in lost if not Path(file).exists()]
        faults += [f"{name} is live and lost {file}" for file in lost]
        done["live jobs looked after"] += 1
        ended = (datetime.now(UTC) - timedelta(days=30)).replace(tzinfo=None).isoformat()
        _write(store, "UPDATE jobs SET status = 'completed', completed_at = ? WHERE id = ?", ended, name)
        if random.random() < 0.3:
            time.sleep(random.uniform(0, 0.1))
            _write(
                store,
                "UPDATE jobs SET status = 'running', completed_at = NULL, data_cleaned_at = NULL"
                " WHERE id = ?",
                name,
            )
            # From here on what it makes must stay; what an earlier run took in this moment comes back or not.
            again = store / "results" / name / f"again{number}.tif"
            with suppress(FileNotFoundError, FileExistsError):
                again.parent.mkdir(exist_ok=True)
                again.write_text("again")
            time.sleep(random.uniform(0, 0.05))
            if not again.exists():
                time.sleep(1)
                with suppress(FileNotFoundError, FileExistsError):
                    if not again.exists() and not again.parent.exists():
                        again.parent.mkdir()
                        again.write_text("again")
                time.sleep(0.3)
                if not again.exists() and not _in_trash(store, name):
                    faults.append(f"{name} runs again and lost {again}")
            done["jobs run again"] += 1
            ended = (datetime.now(UTC) - timedelta(days=30)).replace(tzinfo=None).isoformat()
            _write(store, "UPDATE jobs SET status = 'completed', completed_at = ? WHERE id = ?", ended, name)
    report.put((done, faults))


def _in_trash(store: Path, name: str) -> bool:
    return any((store / "results" / ".eemtcleanupd-trash").glob(f"*/{name}"))


def folders_become_links(store: Path, canary: Path, until: float, report: Report) -> None:
    """Swap folders of due jobs for links to the canary and back, as fast as it goes."""
    done = Counter[str]()
    number = 0
    while time.time() < until:
        number += 1
        name = f"swapped{number}"
        folder = store / "results" / name
        aside = store / f"aside{number}"
        _fill(folder, 40)
        _add(store, name, "completed", None, days=30)
        end = time.time() + 1.5
        while time.time() < min(end, until):
            with suppress(OSError):
                (folder / "part0").rename(aside)
                (folder / "part0").symlink_to(canary)
                (folder / "part0").unlink()
                aside.rename(folder / "part0")
            with suppress(OSError):
                folder.rename(aside / "whole")
                folder.symlink_to(canary)
                folder.unlink()
                (aside / "whole").rename(folder)
            done["swaps for links"] += 2
        shutil.rmtree(aside, ignore_errors=True)
    report.put((done, []))


def people_download_and_delete(store: Path, seed: int, until: float, report: Report) -> None:
    """Make archives of results, read them, delete jobs with their files, upload again."""
    random.seed(seed)
    done = Counter[str]()
    while time.time() < until:
        names = os.listdir(store / "results")
        if not names:
            continue
        name = random.choice(names)
        with suppress(OSError, ValueError):
            if name.startswith("job") and not name.endswith(".zip"):
                with zipfile.ZipFile(store / "results" / f"{name}_results.zip", "w") as archive:
                    for file in (store / "results" / name).rglob("*.tif"):
                        archive.write(file, file.name)
                done["downloads"] += 1
                if random.random() < 0.2:
                    _write(store, "DELETE FROM jobs WHERE id = ? AND status != 'running'", name)
                    done["jobs deleted"] += 1
            upload = store / "uploads" / f"dem{random.randrange(5)}.tif"
            upload.write_text("new")
            done["uploads"] += 1
        time.sleep(random.uniform(0, 0.03))
    report.put((done, []))


def files_are_locked(store: Path, until: float, report: Report) -> None:
    """Lock a file of a due job; as long as the lock is held, the file stays where it is."""
    done, faults = Counter[str](), []
    number = 0
    while time.time() < until:
        number += 1
        name = f"locked{number}"
        files = _fill(store / "results" / name)
        with files[0].open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _add(store, name, "completed", None, days=30)
            time.sleep(random.uniform(0.2, 1.5))
            if not files[0].exists():
                faults.append(f"{files[0]} was taken while it was locked")
        done["locks held"] += 1
    report.put((done, faults))


def clocks_leap(store: Path, until: float, report: Report) -> None:
    """Clean with a clock that is years wrong, which has to be refused."""
    done, faults = Counter[str](), []
    config = load(store / "cleanup_config.yaml", environ={}, cwd=store).config
    while time.time() < until:
        leap = timedelta(days=random.choice([-4000, -400, -2, 95, 400, 4000]))
        now = datetime.now(UTC) + leap
        try:
            clean(config, RunRequest(user="stress"), emit=lambda _: None, clock=lambda now=now: now)  # type: ignore[misc]
        except CleanupError as error:
            done["runs with a wrong clock refused"] += "clock" in str(error)
        else:
            faults.append(f"a run with a clock that is wrong by {leap} was not refused")
        time.sleep(0.2)
    report.put((done, faults))


def runs_are_started_and_killed(store: Path, until: float, report: Report) -> None:
    """Start runs by hand beside the daemon's, and kill every second of them."""
    done, faults = Counter[str](), []
    while time.time() < until:
        command = [sys.executable, "-m", "eemtcleanupd", "clean"]
        process = subprocess.Popen(
            command, cwd=store, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if random.random() < 0.5:
            time.sleep(random.uniform(0.3, 1.5))
            process.kill()
            done["runs killed"] += 1
        output = process.communicate()[0]
        if "Traceback" in output:
            faults.append(output[-2000:])
        if process.returncode == 0:
            done["runs to the end"] += 1
        elif process.returncode == 4:
            done["runs refused by the lock"] += 1
    report.put((done, faults))


def _fingerprint(canary: Path) -> str:
    seen = hashlib.sha256()
    for path in sorted([canary, *canary.rglob("*")]):
        status = path.lstat()
        seen.update(
            repr((str(path), status.st_ino, status.st_mode, status.st_nlink, status.st_mtime_ns)).encode()
        )
        if path.is_file():
            seen.update(path.read_bytes())
    return seen.hexdigest()


def run(minutes: float) -> Outcome:
    """Let all of them at a store with a running daemon, and look at what is left."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = JobStore(folder / "store", now=datetime.now(UTC)).path
        (store / "cleanup_config.yaml").write_text(_CONFIG)
        canary = folder / "canary"
        _fill(canary, 20)
        before = _fingerprint(canary)
        command = [sys.executable, "-m", "eemtcleanupd"]
        subprocess.run([*command, "clean"], cwd=store, check=True, capture_output=True)
        daemon = subprocess.Popen(
            [*command, "run"], cwd=store, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        until = time.time() + minutes * 60
        report: Report = multiprocessing.Queue()
        attackers: list[tuple[Callable[..., None], tuple[object, ...]]] = [
            (jobs_come_and_go, (store, 1)),
            (jobs_come_and_go, (store, 2)),
            (folders_become_links, (store, canary)),
            (people_download_and_delete, (store, 3)),
            (files_are_locked, (store,)),
            (clocks_leap, (store,)),
            (runs_are_started_and_killed, (store,)),
        ]
        processes = [
            multiprocessing.Process(target=target, args=(*arguments, until, report))
            for target, arguments in attackers
        ]
        for process in processes:
            process.start()
        for _ in processes:
            done, faults = report.get(timeout=minutes * 60 + 120)
            outcome.done.update(done)
            outcome.faults += faults
        for process in processes:
            process.join()
            if process.exitcode:
                outcome.faults.append(f"an attacker ended with {process.exitcode}")
        if daemon.poll() is not None:
            outcome.faults.append(f"the daemon ended with {daemon.returncode}")
        daemon.terminate()
        output = daemon.communicate(timeout=60)[0]
        if "Traceback" in output:
            outcome.faults.append(output[-2000:])
        last = subprocess.run(
            [*command, "clean", "--json"], cwd=store, capture_output=True, text=True, check=False
        )
        if last.returncode != 0:
            outcome.faults.append(
                f"the last run ended with {last.returncode}: {(last.stdout + last.stderr)[-1000:]}"
            )
        if _fingerprint(canary) != before:
            outcome.faults.append("the canary was touched")
        outcome.done["canary files lost"] += 20 - len(list(canary.rglob("*.tif")))
        verified = subprocess.run(
            [*command, "audit", "verify"], cwd=store, capture_output=True, text=True, check=False
        )
        if verified.returncode != 0:
            outcome.faults.append(f"the audit log: {verified.stdout}{verified.stderr}")
        with closing(sqlite3.connect(store / "jobs.db")) as database:
            rows = database.execute("SELECT id FROM jobs WHERE data_cleaned_at IS NOT NULL").fetchall()
        for (job,) in rows:
            outcome.done["jobs cleaned"] += 1
            if any((store / "results" / str(job)).rglob("*.tif")):
                outcome.faults.append(f"{job} is recorded as cleaned and has data")
    return outcome
