"""Job stores of a given shape, built anew for every contender."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

_SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, workflow_type TEXT NOT NULL, status TEXT NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, started_at TIMESTAMP, completed_at TIMESTAMP,
    parameters TEXT, dem_filename TEXT, error_message TEXT, progress INTEGER DEFAULT 0
)
"""
_PARAMETERS = '{"step": 15.0, "linke_value": 3.0, "albedo_value": 0.2, "num_threads": 4}'


@dataclass(frozen=True, slots=True)
class Shape:
    """``jobs`` expired jobs of ``files`` files each, in ``folders`` folders, side by side or in each other.

    Each file has ``file_bytes`` and ``links`` names in all, which ``files`` counts.
    """

    jobs: int
    files: int
    folders: int
    file_bytes: int = 300
    is_deep: bool = False
    links: int = 1

    def __str__(self) -> str:
        jobs = "one job" if self.jobs == 1 else f"{self.jobs} jobs"
        files = f"{self.files:,} files"
        if self.links > 1:
            files += f" ({self.links} links each)"
        if self.file_bytes >= 1 << 20:
            files += f" of {self.file_bytes >> 20} MB"
        folders = "one folder" if self.folders == 1 else f"{self.folders} folders"
        return f"{jobs} of {files} in {folders}{', each in the other' if self.is_deep else ''}"

    @property
    def total_files(self) -> int:
        """The files of all jobs."""
        return self.jobs * self.files


def build_expired(store: Path, shape: Shape) -> None:
    """Build a job store whose jobs were all completed ten days ago, and wait until it is on the disk."""
    _begin(store)
    ids = [f"job-{number}" for number in range(shape.jobs)]
    _write_jobs(store, [(job, 10 * 24) for job in ids])
    for job in ids:
        path = store / "results" / job
        path.mkdir()
        for folder in range(shape.folders):
            path = (path if shape.is_deep else store / "results" / job) / f"f{folder}"
            path.mkdir()
            _fill(path, shape)
    _settle(store / "results")
    os.sync()


def _settle(place: Path) -> None:
    """Give all folders the time of the jobs' end: a run leaves jobs alone that still change."""
    ended = (datetime.now().astimezone() - timedelta(days=10)).timestamp()
    for folder, _, _ in os.walk(place):
        os.utime(folder, (ended, ended))


def _fill(folder: Path, shape: Shape) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(shape.files // shape.folders):
        name = f"raster-{number}.tif"
        if after := number % shape.links:
            os.link(f"raster-{number - after}.tif", name, src_dir_fd=fd, dst_dir_fd=fd)
            continue
        file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
        if shape.file_bytes >= 1 << 20:
            os.posix_fallocate(file, 0, shape.file_bytes)
        else:
            os.write(file, b"x" * shape.file_bytes)
        os.close(file)
    os.close(fd)


def build_rows(store: Path, rows: int, due: int = 0) -> None:
    """Build a job store of jobs without files: ``due`` completed ten days ago, the others an hour ago."""
    _begin(store)
    _write_jobs(store, ((f"job-{number:032x}", 240 if number < due else 1) for number in range(rows)))
    os.sync()


def _begin(store: Path) -> None:
    if store.exists():  # shutil.rmtree cannot remove what is very deep
        os.system(f"rm -rf '{store}'")
    for name in ("results", "uploads", "temp"):
        (store / name).mkdir(parents=True)


def _write_jobs(store: Path, jobs: Iterable[tuple[str, float]]) -> None:
    now = datetime.now()  # noqa: DTZ005  (local, without a zone, as the web interface writes it)

    def row(job: str, hours: float) -> tuple[str, str, str, str, str, str]:
        at = (now - timedelta(hours=hours)).isoformat()
        return (job, at, at, at, _PARAMETERS, f"{job}.tif")

    database = sqlite3.connect(store / "jobs.db")
    database.execute(_SCHEMA)
    database.executemany(
        "INSERT INTO jobs VALUES (?, 'sol', 'completed', ?, ?, ?, ?, ?, NULL, 100)",
        (row(*each) for each in jobs),
    )
    database.commit()
    database.close()
