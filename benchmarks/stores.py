"""Job stores of a given shape, built anew for every contender."""

from __future__ import annotations

import os
import shutil
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
_FILE_BYTES = 300


@dataclass(frozen=True, slots=True)
class Shape:
    """``jobs`` expired jobs of ``files`` files each, in ``folders`` folders."""

    jobs: int
    files: int
    folders: int

    def __str__(self) -> str:
        if self.jobs == 1:
            return f"one job of {self.files:,} files in {self.folders} folders"
        return f"{self.jobs} jobs of {self.files:,} files in {self.folders} folders"


def build_expired(store: Path, shape: Shape) -> None:
    """Build a job store whose jobs were all completed ten days ago, and wait until it is on the disk."""
    _begin(store)
    ids = [f"job-{number}" for number in range(shape.jobs)]
    _write_jobs(store, ids, datetime.now().astimezone() - timedelta(days=10))
    for job in ids:
        for folder in range(shape.folders):
            path = store / "results" / job / f"folder-{folder}"
            path.mkdir(parents=True)
            for file in range(shape.files // shape.folders):
                (path / f"raster-{file}.tif").write_bytes(b"x" * _FILE_BYTES)
    os.sync()


def build_idle(store: Path, rows: int) -> None:
    """Build a job store of jobs without files, completed an hour ago: none is due."""
    _begin(store)
    ids = (f"job-{number:032x}" for number in range(rows))
    _write_jobs(store, ids, datetime.now().astimezone() - timedelta(hours=1))
    os.sync()


def _begin(store: Path) -> None:
    shutil.rmtree(store, ignore_errors=True)
    for name in ("results", "uploads", "temp"):
        (store / name).mkdir(parents=True)


def _write_jobs(store: Path, ids: Iterable[str], completed: datetime) -> None:
    at = completed.replace(tzinfo=None).isoformat()
    database = sqlite3.connect(store / "jobs.db")
    database.execute(_SCHEMA)
    database.executemany(
        "INSERT INTO jobs VALUES (?, 'sol', 'completed', ?, ?, ?, ?, ?, NULL, 100)",
        ((job, at, at, at, _PARAMETERS, f"{job}.tif") for job in ids),
    )
    database.commit()
    database.close()
