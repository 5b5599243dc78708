"""Prints the modules that one job passes on its way from the command to its record.

``python -m tools.trace_job`` runs ``clean`` on a temporary job store, once with one job and once with two.
Every job passes the modules with more calls in the second run.
"""

from __future__ import annotations

import inspect
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import eemtcleanupd
from eemtcleanupd.demo import SCHEMA

_ROOT = Path(__file__).parents[1]
_PACKAGE = f"{Path(eemtcleanupd.__file__).parent}/"


@dataclass(frozen=True, slots=True)
class Trace:
    """The calls into each module, in order of the first call, and the switches between files."""

    calls: Mapping[str, int]
    switches: int

    def growth(self, other: Trace) -> dict[str, int]:
        """Return the modules with more calls in another trace, and how many more."""
        return {
            module: count - self.calls.get(module, 0)
            for module, count in other.calls.items()
            if count > self.calls.get(module, 0)
        }


def trace(jobs: int) -> Trace:
    """Trace one ``clean`` of a number of expired jobs, in a process of its own.

    Raises:
        RuntimeError: the command failed, or did not clean every job.
    """
    with tempfile.TemporaryDirectory() as folder:
        store, output = Path(folder) / "store", Path(folder) / "trace.json"
        _build_store(store, jobs)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("EEMT_")}
        code = "import sys; from tools.trace_job import record; record(sys.argv.pop())"
        done = subprocess.run(
            [sys.executable, "-c", code, output],
            cwd=store,
            env=environ | {"PYTHONPATH": str(_ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        with closing(sqlite3.connect(store / "jobs.db")) as database:
            query = "SELECT count(*) FROM jobs WHERE data_cleaned_at IS NOT NULL"
            if done.returncode or database.execute(query).fetchone() != (jobs,):
                raise RuntimeError(f"The traced command did not clean {jobs} jobs: {done.stderr}")
        return Trace(**json.loads(output.read_text(encoding="utf-8")))


def record(output: str) -> None:
    """Run ``clean`` in the current folder, which ends the process, and write the trace to a file."""
    import atexit

    calls: Counter[str] = Counter()
    switches, last = 0, ""

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal switches, last
        code = frame.f_code
        # Bodies of modules and classes run at import, which is not the path of a job.
        if event != "call" or not code.co_flags & inspect.CO_OPTIMIZED:
            return
        if code.co_filename.startswith(_PACKAGE):
            module = code.co_filename.removeprefix(_PACKAGE)
            calls[module] += 1
            if module != last:
                switches, last = switches + 1, module

    def write() -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        Path(output).write_text(json.dumps({"calls": calls, "switches": switches}), encoding="utf-8")

    from eemtcleanupd.cli.main import main

    atexit.register(write)
    sys.argv = ["eemtcleanupd", "clean"]
    threading.setprofile(profile)
    sys.setprofile(profile)
    main()


def _build_store(folder: Path, jobs: int) -> None:
    for name in ("results", "uploads", "temp", "logs"):
        (folder / name).mkdir(parents=True)
    with closing(sqlite3.connect(folder / "jobs.db")) as database, database:
        database.execute(SCHEMA)
        for number in range(jobs):
            job, upload = f"job{number}", f"dem{number}.tif"
            database.execute(
                "INSERT INTO jobs (id, workflow_type, status, created_at, completed_at, dem_filename)"
                " VALUES (?, 'eemt', 'completed', '2024-01-01 00:00:00', '2024-01-01T01:00:00', ?)",
                (job, upload),
            )
            (folder / "results" / job).mkdir()
            for file in (folder / "results" / job / "eemt.tif", folder / "uploads" / upload):
                file.write_text("data")
                os.utime(file, (0, 0))
            os.utime(folder / "results" / job, (0, 0))


def _print_modules(title: str, calls: Mapping[str, int]) -> None:
    in_cleanup = sum(module.startswith("cleanup/") for module in calls)
    print(f"{title} {len(calls)} modules, {in_cleanup} of them in cleanup/:")
    for module, count in calls.items():
        print(f"  {count:6}  {module}")


def main() -> None:
    """Trace one job and two jobs, and print both traces and their difference."""
    one, two = trace(1), trace(2)
    _print_modules("One `clean` of one job calls functions of", one.calls)
    _print_modules("One more job calls functions of", one.growth(two))
    print(f"Switches between files: {one.switches} with one job, {two.switches} with two.")


if __name__ == "__main__":
    main()
