"""EEMT's way to clean, as a program: ``python -m benchmarks.eemt STORE``.

It works on one job at a time: it adds up the sizes of all files, removes them, and records the job in a
transaction of its own.  It knows no rules but the age, and must not be used for anything but comparison.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path


def clean(store: Path) -> None:
    """Clean the jobs that ended more than a week ago."""
    with closing(sqlite3.connect(store / "jobs.db")) as database:
        for column in ("data_cleaned_at TIMESTAMP", "data_size_mb REAL"):
            database.execute(f"ALTER TABLE jobs ADD COLUMN {column}")
        now = datetime.now()  # noqa: DTZ005  (local, without a zone, as the web interface writes it)
        expired = database.execute(
            "SELECT id, dem_filename FROM jobs WHERE status = 'completed' AND completed_at < ?",
            ((now - timedelta(days=7)).isoformat(),),
        ).fetchall()
        for job, upload in expired:
            size = sum(_remove(store / folder / job) for folder in ("results", "temp"))
            size += _remove(store / "uploads" / upload)
            database.execute(
                "UPDATE jobs SET data_cleaned_at = ?, data_size_mb = ? WHERE id = ?",
                (now.isoformat(), size / 1024**2, job),
            )
            database.commit()


def _remove(path: Path) -> int:
    if path.is_file():
        size = path.stat().st_size
        path.unlink()
        return size
    if not path.exists():
        return 0
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    shutil.rmtree(path)
    return size


if __name__ == "__main__":
    clean(Path(sys.argv[1]))
