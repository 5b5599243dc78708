"""A stand-in for the EEMT web interface in its container: its paths, its table and its own cleanup.

Without an argument it starts as the application does, and waits.  ``submit ID`` and ``list`` are requests.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

BASE_DIR = Path(__file__).parent
DB_PATH = Path("/tmp") / "jobs.db" if os.path.exists("/tmp") else BASE_DIR / "jobs.db"
TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, workflow_type TEXT NOT NULL, status TEXT NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, started_at TIMESTAMP, completed_at TIMESTAMP,
    parameters TEXT, dem_filename TEXT, error_message TEXT, progress INTEGER DEFAULT 0
)
"""


def main(action: str = "serve", job: str = "") -> None:
    with closing(sqlite3.connect(DB_PATH)) as connection, connection:
        connection.execute(TABLE)
        if action == "submit":
            folder = BASE_DIR / "results" / job
            folder.mkdir()
            (folder / "out.tif").write_bytes(bytes(5000))
            moment = datetime.now() - timedelta(days=10)  # noqa: DTZ005  (as the application does)
            os.utime(folder, (moment.timestamp(), moment.timestamp()))
            connection.execute(
                "INSERT INTO jobs (id, workflow_type, status, created_at, completed_at, parameters)"
                " VALUES (?, 'sol', 'completed', ?, ?, '{}')",
                (job, str(moment - timedelta(hours=9))[:19], moment.isoformat()),
            )
        elif action == "list":
            print(*(row[0] for row in connection.execute("SELECT id FROM jobs")))
        else:
            is_enabled = os.environ.get("EEMT_CLEANUP_ENABLED", "true") == "true"
            print(f"Own cleanup: {'enabled' if is_enabled else 'disabled'}", flush=True)
    if action == "serve":
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
