"""Create a demo job store with several hundred jobs of every kind, for trying out a cleanup.

The table, the folders and the time formats are those of the EEMT web interface.  The store also contains
difficult cases: uploads shared with live jobs, hard links between results, a symlink and row names that point
out of the store, orphans, an undated job, and an unknown status.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from eemtcleanupd.errors import ConfigError
from eemtcleanupd.files import create_new, open_folder
from eemtcleanupd.policy.ownership import ARCHIVE_SUFFIX
from eemtcleanupd.store.values import local_timestamp, utc_timestamp

MIN_JOBS = 40
CANARY = "canary/keep-me.txt"
"""A file outside all roots that rows and links point to; no run may delete it."""

# The exact statement of the web interface.
SCHEMA = """CREATE TABLE jobs (
            id TEXT PRIMARY KEY,
            workflow_type TEXT NOT NULL,
            status TEXT NOT NULL,
            created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
            started_at TIMESTAMP,
            completed_at TIMESTAMP,
            parameters TEXT,
            dem_filename TEXT,
            error_message TEXT,
            progress INTEGER DEFAULT 0
        )"""

_CONFIG = """\
# A demo job store; delete it when you are done.  Paths are relative to this file.
retention:
  successful_jobs:
    hours: 168  # 7 days
    keep_metadata: true
    keep_logs: false
  failed_jobs:
    hours: 12
    keep_metadata: true
    keep_error_logs: true  # *.log, *.err and *.out are kept in logs/jobs/<id>/

paths:
  database: ./jobs.db
  uploads: ./uploads
  results: ./results
  temp: ./temp
  logs: ./logs

performance:
  batch_size: 100
  parallel_delete: true
  max_workers: 4
"""

_STATUSES = ("completed",) * 13 + ("failed",) * 4 + ("cancelled", "pending", "running")
_ERRORS = {
    "failed": ("Docker not available or image not found", "r.sun.mp: out of memory", "DEM has no projection"),
    "cancelled": ("Job cancelled by user",),
}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_SITES = ("mcn_10m", "VCaldera_0939_DEM_025m", "topo", "Catalina_Mtns_dem", "boulder_creek_1m")
_OLDEST_DAYS = 120
_KIB = 1024
_NOISE_BYTES = 4 * _KIB * _KIB


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """The contents of a demo: jobs by status, number of files, and the sum of their sizes in bytes.

    A file with several hard links counts once.
    """

    directory: Path
    jobs: Mapping[str, int]
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of table ``jobs``, its columns in order."""

    id: str
    workflow_type: str
    status: str
    created_at: str
    started_at: str | None
    completed_at: str | None
    parameters: str
    dem_filename: str
    error_message: str | None
    progress: int


def build(directory: Path, *, jobs: int, seed: int, now: datetime) -> DemoSummary:
    """Create a demo job store; equal arguments give equal stores, byte for byte.

    The folder must be empty or not exist.  A job has about twenty files, and ended minutes to four months
    before ``now``.

    Raises:
        ConfigError: the folder is not empty, or cannot be created; nothing was changed.
        ValueError: ``jobs`` is less than ``MIN_JOBS``.
    """
    if jobs < MIN_JOBS:
        raise ValueError(f"A demo needs at least {MIN_JOBS} jobs, not {jobs}.")
    try:
        with open_folder(directory, create=0o777) as folder:
            is_own = os.fstat(folder).st_uid == os.geteuid()
            occupied = bool(os.listdir(folder))  # noqa: PTH208  (a descriptor)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be used for a demo: {error.strerror}.") from error
    if not is_own:  # the owner could redirect what is written
        raise ConfigError(f"{directory} belongs to another user. Choose a new folder.")
    if occupied:
        raise ConfigError(f"{directory} is not empty. Choose a new or an empty folder.")

    rng = random.Random(seed)  # noqa: S311  (not used for secrets)
    rows = _rows(rng, jobs, now)
    files = _Files(directory, rng)
    files.text(CANARY, "This file is outside the job store. No cleanup may delete it.\n")
    files.text("cleanup_config.yaml", _CONFIG)
    for name in ("uploads", "results", "temp", "logs"):
        (directory / name).mkdir()
    for row in rows:
        if "/" not in row.id:
            _write_job(files, rng, row)
    for upload in dict.fromkeys(row.dem_filename for row in rows if "/" not in row.dem_filename):
        files.noise(f"uploads/{upload}", rng.randint(64, 1536) * _KIB)
    _write_difficult_cases(files, rng, rows)
    for row in rows:
        if row.completed_at is not None and "/" not in row.id:
            _date_artifacts(directory, row.id, datetime.fromisoformat(row.completed_at))
    _write_database(directory / "jobs.db", rows)
    return DemoSummary(
        directory=directory,
        jobs=dict(Counter(row.status for row in rows)),
        files=files.count + 1,
        size_bytes=files.size_bytes + (directory / "jobs.db").stat().st_size,
    )


class _Files:
    """Writes the files of a demo and counts them."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.count = 0
        self.size_bytes = 0
        self._directory = directory
        self._noise = memoryview(rng.randbytes(_NOISE_BYTES))

    def noise(self, name: str, size_bytes: int) -> None:
        """Write a file of random bytes, which are as incompressible as a raster."""
        self._write(name, self._noise[:size_bytes])

    def text(self, name: str, text: str) -> None:
        self._write(name, text.encode())

    def _write(self, name: str, content: bytes | memoryview) -> None:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(create_new(path, 0o666), "wb") as file:
            file.write(content)
        self.count += 1
        self.size_bytes += len(content)

    def hard_link(self, name: str, target: str) -> None:
        (self._directory / name).hardlink_to(self._directory / target)

    def symlink(self, name: str, target: str) -> None:
        (self._directory / name).symlink_to(target)


def _rows(rng: random.Random, jobs: int, now: datetime) -> list[_Row]:
    ordinary = jobs - 4
    uploads = [f"{_uuid(rng)}_{rng.choice(_SITES)}.tif" for _ in range(max(2, ordinary // 2))]
    rows = [
        _row(rng, _STATUSES[number % len(_STATUSES)], _age_days(rng), rng.choice(uploads), now)
        for number in range(ordinary)
    ]
    # For every seed, the oldest job shares its upload with a running job.
    first_running = next(number for number, row in enumerate(rows) if row.status == "running")
    rows[first_running] = replace(rows[first_running], dem_filename=uploads[0])
    rows[0] = _row(rng, "completed", _OLDEST_DAYS, uploads[0], now)
    rows += [
        replace(_row(rng, "completed", 60, rng.choice(uploads), now), id="../canary"),
        _row(rng, "failed", 45, f"../{CANARY}", now),
        _row(rng, "archived", 90, rng.choice(uploads), now),
        replace(_row(rng, "completed", 30, rng.choice(uploads), now), completed_at=None),
    ]
    return sorted(rows, key=lambda row: row.created_at)


def _age_days(rng: random.Random) -> float:
    # The cube favours young jobs: a third of them ended within the last week, some minutes ago.
    return max(_OLDEST_DAYS * rng.random() ** 3, 3 / 1440)


def _row(rng: random.Random, status: str, age_days: float, upload: str, now: datetime) -> _Row:
    workflow = rng.choice(("sol", "eemt"))
    parameters: dict[str, float] = {"step": 15.0, "linke_value": 3.0, "albedo_value": 0.2, "num_threads": 4}
    if workflow == "eemt":
        parameters |= {"start_year": 2018, "end_year": 2020}
    is_live = status in {"pending", "running"}
    if is_live:
        age_days /= _OLDEST_DAYS  # at most a day ago
    completed = now - timedelta(days=age_days)
    started = completed - timedelta(seconds=rng.uniform(5, 7200))
    created = started - timedelta(seconds=rng.uniform(0, 60))
    return _Row(
        id=_uuid(rng),
        workflow_type=workflow,
        status=status,
        created_at=utc_timestamp(created),
        started_at=None if status == "pending" else local_timestamp(started, None),
        completed_at=None if is_live else local_timestamp(completed, None),
        parameters=json.dumps(parameters),
        dem_filename=upload,
        error_message=rng.choice(_ERRORS[status]) if status in _ERRORS else None,
        progress={"pending": 0, "running": 40, "failed": 5, "cancelled": 40}.get(status, 100),
    )


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _write_job(files: _Files, rng: random.Random, row: _Row) -> None:
    """Write the files that a job of this status has: results, an archive, logs, working files."""
    results, temp = f"results/{row.id}", f"temp/{row.id}"
    match row.status:
        case "pending":
            return
        case "running":
            _write_rasters(files, rng, row, days=3)
            files.noise(f"{temp}/dem_projected.tif", rng.randint(64, 512) * _KIB)
        case "failed" | "cancelled":
            if rng.random() < 0.7:
                _write_rasters(files, rng, row, days=rng.choice((1, 2, 20)))
                files.text(f"{results}/workflow.log", f"{row.started_at} ERROR {row.error_message}\n" * 20)
            if rng.random() < 0.3:  # a crash leaves its working files behind
                files.noise(f"{temp}/sun_{row.id[:8]}.tmp", rng.randint(16, 256) * _KIB)
        case _:
            _write_rasters(files, rng, row, days=rng.choices((2, 6, 12, 90), (50, 35, 13, 2))[0])
            if rng.random() < 0.2:
                files.noise(f"{results}{ARCHIVE_SUFFIX}", rng.randint(64, 2048) * _KIB)


def _write_rasters(files: _Files, rng: random.Random, row: _Row, *, days: int) -> None:
    results = f"results/{row.id}"
    names = [f"global/daily/total_sun_day_{day:03}.tif" for day in range(1, days + 1)]
    names += [f"insol/daily/hours_sun_day_{day:03}.tif" for day in range(1, days + 1)]
    for month in _MONTHS[:days]:
        names.append(f"global/monthly/total_sun_{month}_sum.tif")
        if row.workflow_type == "eemt":
            names += [f"eemt/EEMT_{model}_{month}_2020.tif" for model in ("Topo", "Trad")]
    for name in names:
        files.noise(f"{results}/{name}", rng.randint(1, 24) * _KIB)


def _write_difficult_cases(files: _Files, rng: random.Random, rows: list[_Row]) -> None:
    """Add the difficult cases to the oldest jobs, which are expired."""
    completed = [
        row.id for row in rows if row.status == "completed" and row.completed_at and "/" not in row.id
    ]
    oldest, second, newest = completed[0], completed[1], completed[-1]
    files.noise(f"results/{oldest}/global/shared_dem.tif", 512 * _KIB)
    files.hard_link(f"results/{second}/global/shared_dem.tif", f"results/{oldest}/global/shared_dem.tif")
    files.noise(f"results/{oldest}/global/shared_slope.tif", 512 * _KIB)
    files.hard_link(f"results/{newest}/global/shared_slope.tif", f"results/{oldest}/global/shared_slope.tif")
    files.symlink(f"results/{oldest}/canary.txt", f"../../{CANARY}")
    files.noise(os.fsdecode(b"results/%s/total_sun_\xff\xfe.tif" % oldest.encode()), 4 * _KIB)
    files.noise(f"results/{second}/eemt/EEMT_stack.tif", _NOISE_BYTES)

    orphan = _uuid(rng)
    files.noise(f"results/{orphan}/global/daily/total_sun_day_001.tif", 64 * _KIB)
    files.noise(f"temp/{orphan}/dem_projected.tif", 64 * _KIB)
    files.noise(f"uploads/{_uuid(rng)}_forgotten.tif", 256 * _KIB)


def _date_artifacts(directory: Path, job_id: str, ended: datetime) -> None:
    """Give the folders and the zip of a job the time of its end, as if it had written them."""
    places = [directory / "results" / job_id, directory / "temp" / job_id]
    folders = [folder for place in places for folder, _, _ in os.walk(place)]
    archive = directory / "results" / f"{job_id}{ARCHIVE_SUFFIX}"
    for path in (*map(Path, folders), *([archive] if archive.exists() else [])):
        os.utime(path, (ended.timestamp(), ended.timestamp()))


def _write_database(path: Path, rows: list[_Row]) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(SCHEMA)
        connection.executemany("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(astuple, rows))
