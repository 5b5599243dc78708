"""Job stores of a given shape, built anew for every contender."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path

_SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, workflow_type TEXT NOT NULL, status TEXT NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, started_at TIMESTAMP, completed_at TIMESTAMP,
    parameters TEXT, dem_filename TEXT, error_message TEXT, progress INTEGER DEFAULT 0
)
"""
_PARAMETERS = '{"step": 15.0, "linke_value": 3.0, "albedo_value": 0.2, "num_threads": 4}'
_CONTENT = b"x" * 300


@dataclass(frozen=True, slots=True)
class Shape:
    """``jobs`` expired jobs of ``files`` files each, in ``folders`` folders (0: in the job's own).

    The folders lie side by side or in each other.  Each file has ``links`` names, which ``files`` counts.
    ``uploads`` are of one job; a single one is named by the job's row only, several by the job's id.
    ``live_rows`` are rows of jobs without files that ended an hour ago.
    """

    jobs: int
    files: int
    folders: int = 0
    is_deep: bool = False
    links: int = 1
    uploads: int = 0
    live_rows: int = 0

    def __str__(self) -> str:
        words = [f"{self.jobs:,} jobs" if self.jobs != 1 else "one job"] if self.jobs else []
        if self.files:
            words[-1] += f" of {self.files:,} files"
        if self.links > 1:
            words.append(f"{self.links} links to each")
        if self.is_deep:
            words.append(f"{self.folders:,} folders, each in the other")
        if self.uploads == 1:
            words.append("own upload each")
        elif self.uploads:
            words.append(f"{self.jobs * self.uploads:,} uploads `<id>_*`")
        if self.live_rows:
            words.append(f"{self.live_rows:,} rows that stay")
        return ", ".join(words)

    def small(self) -> Shape:
        """Return a shape of the same kind that is built in a moment."""
        folders = min(self.folders, 20)
        return replace(
            self,
            jobs=min(self.jobs, 20),
            files=min(self.files, max(5, folders * self.links)) if self.files else 0,
            folders=folders,
            live_rows=min(self.live_rows, 1000),
        )

    def build(self, store: Path) -> None:
        """Build a job store of this shape, whose expired jobs ended ten days ago, and wait for the disk."""
        _begin(store)
        ids = [f"job-{number:032x}" for number in range(self.jobs)]
        live = (f"live-{number:032x}" for number in range(self.live_rows))
        rows = [(job, 10 * 24, self._uploads(job)) for job in ids]
        _write_jobs(
            store, chain(((*row[:2], next(iter(row[2]), "")) for row in rows), ((j, 1, "") for j in live))
        )
        for job, _, uploads in rows:
            for upload in uploads:
                (store / "uploads" / upload).write_bytes(_CONTENT)
            if self.files:
                self._build_results(store / "results" / job)
        _settle(store / "results")
        os.sync()

    def _uploads(self, job: str) -> Sequence[str]:
        if self.uploads == 1:
            return (f"dem-of-{job}.tif",)
        return [f"{job}_{number}.tif" for number in range(self.uploads)]

    def _build_results(self, job: Path) -> None:
        job.mkdir()
        if not self.folders:
            _fill(job, self.files, self.links)
        path = job
        for folder in range(self.folders):
            path = (path if self.is_deep else job) / f"f{folder}"
            path.mkdir()
            _fill(path, self.files // self.folders, self.links)


def build_expired(store: Path, shape: Shape) -> None:
    """Build a store in place of the one before."""
    subprocess.run(["rm", "-rf", store], check=True)  # shutil.rmtree cannot remove what is very deep
    shape.build(store)


def _settle(place: Path) -> None:
    """Give all folders the time of the jobs' end: a run leaves jobs alone that still change."""
    ended = (datetime.now().astimezone() - timedelta(days=10)).timestamp()
    for folder, _, _ in os.walk(place):
        os.utime(folder, (ended, ended))


def _fill(folder: Path, files: int, links: int) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(files):
        name = f"raster-{number}.tif"
        if after := number % links:
            os.link(f"raster-{number - after}.tif", name, src_dir_fd=fd, dst_dir_fd=fd)
            continue
        file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
        os.write(file, _CONTENT)
        os.close(file)
    os.close(fd)


def _begin(store: Path) -> None:
    for name in ("results", "uploads", "temp"):
        (store / name).mkdir(parents=True)


def _write_jobs(store: Path, jobs: Iterable[tuple[str, float, str]]) -> None:
    now = datetime.now()  # noqa: DTZ005  (local, without a zone, as the web interface writes it)

    def row(job: str, hours: float, upload: str) -> tuple[str, str, str, str, str, str]:
        at = (now - timedelta(hours=hours)).isoformat()
        return (job, at, at, at, _PARAMETERS, upload or f"{job}.tif")

    database = sqlite3.connect(store / "jobs.db")
    database.execute(_SCHEMA)
    database.executemany(
        "INSERT INTO jobs VALUES (?, 'sol', 'completed', ?, ?, ?, ?, ?, NULL, 100)",
        (row(*each) for each in jobs),
    )
    database.commit()
    database.close()
