"""A small program with the paths, job table and routes of EEMT's web interface, as a process of its own.

Like that program:

- It keeps its database in ``/tmp`` (here ``--tmp``) although an empty ``jobs.db`` is in its folder.
- It gives uploads a UUID of their own, and leaves the upload of a deleted job.
- It builds the zip of the results in the request.
- It has a ``POST /api/cleanup`` without authentication that deletes rows.

A job runs in the request that submits it.  The workflow ``fail`` fails, and ``long`` never ends.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import uuid
import zipfile
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Form, Header, HTTPException, UploadFile
from fastapi.responses import FileResponse

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
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
)
"""
ADMIN = "secret"


def mount_cleanup(app: FastAPI, config: Path, authorize: Callable[..., object]) -> tuple[str, ...]:
    """Answer ``/api/cleanup`` by eemtcleanupd, in place of the program's own route."""
    from eemtcleanupd.web import install

    return install(app, config, authorize=authorize)


def require_admin(authorization: Annotated[str, Header()] = "") -> str:
    """Return the name of the administrator who sent the request."""
    if authorization != f"Bearer {ADMIN}":
        raise HTTPException(403, "Only administrators can trigger cleanup.")
    return "admin"


class JobStore:
    """The job table and the folders of the program."""

    def __init__(self, tmp: Path) -> None:
        self._database = tmp / "jobs.db" if tmp.exists() else Path("jobs.db")
        for folder in ("uploads", "results", "temp"):
            Path(folder).mkdir(exist_ok=True)
        self.sql(SCHEMA)

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._database)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def row(self, job_id: str) -> tuple[Any, ...]:
        """Return the row of a job, which the program reads by position."""
        if not (rows := self.sql("SELECT * FROM jobs WHERE id = ?", job_id)):
            raise HTTPException(404, "Job not found")
        return rows[0]

    def run(self, job_id: str, workflow: str) -> None:
        now = datetime.now().isoformat()  # noqa: DTZ005  (as the program writes it: local, with a T)
        self.sql("UPDATE jobs SET status = 'running', started_at = ? WHERE id = ?", now, job_id)
        folder = Path("temp", job_id)
        folder.mkdir()
        (folder / "work.tif").write_bytes(os.urandom(4096))
        if workflow == "long":
            return
        shutil.rmtree(folder)
        if workflow != "fail":
            monthly = Path("results", job_id, "global", "monthly")
            monthly.mkdir(parents=True)
            for month in ("jan", "feb"):
                (monthly / f"total_sun_{month}_sum.tif").write_bytes(os.urandom(20_000))
        status = "failed" if workflow == "fail" else "completed"
        self.sql("UPDATE jobs SET status = ?, completed_at = ? WHERE id = ?", status, now, job_id)


def application(tmp: Path) -> FastAPI:
    """Return the program; its folders are in the current one, its database is in ``tmp`` if that exists."""
    app, store = FastAPI(), JobStore(tmp)
    add_submission(app, store)
    add_jobs(app, store)

    @app.post("/api/cleanup")
    def cleanup() -> dict[str, int]:
        return {"deleted": len(store.sql("DELETE FROM jobs WHERE status = 'failed' RETURNING id"))}

    return app


def add_submission(app: FastAPI, store: JobStore) -> None:
    @app.post("/api/upload-file")
    def upload(file: UploadFile) -> dict[str, str]:
        name = f"{uuid.uuid4()}_{file.filename}"
        Path("uploads", name).write_bytes(file.file.read())
        return {"filename": name}

    @app.post("/api/submit-job")
    def submit(
        workflow_type: Annotated[str, Form()],
        uploaded_filename: Annotated[str, Form()],
        step: Annotated[float, Form()] = 15,
    ) -> dict[str, str]:
        job_id = str(uuid.uuid4())
        store.sql(
            "INSERT INTO jobs (id, workflow_type, status, parameters, dem_filename) VALUES (?, ?, ?, ?, ?)",
            job_id,
            workflow_type,
            "pending",
            json.dumps({"step": step}),
            uploaded_filename,
        )
        store.run(job_id, workflow_type)
        return {"job_id": job_id, "status": "pending"}


def add_jobs(app: FastAPI, store: JobStore) -> None:
    @app.get("/api/jobs")
    def jobs() -> list[dict[str, Any]]:
        rows = store.sql("SELECT * FROM jobs ORDER BY created_at DESC")
        return [{"id": row[0], "workflow_type": row[1], "status": row[2]} for row in rows]

    @app.get("/api/jobs/{job_id}")
    def job(job_id: str) -> dict[str, Any]:
        found = store.row(job_id)
        return {"id": found[0], "status": found[2], "dem_filename": found[7], "progress": found[9]}

    @app.get("/api/jobs/{job_id}/results")
    def results(job_id: str) -> FileResponse:
        store.row(job_id)
        folder, archive = Path("results", job_id), Path("results", f"{job_id}_results.zip")
        if not folder.is_dir():
            raise HTTPException(404, "Results not found")
        with zipfile.ZipFile(archive, "w") as zipped:
            for path in folder.rglob("*"):
                zipped.write(path, path.relative_to(folder))
        return FileResponse(archive)

    @app.delete("/api/jobs/{job_id}")
    def delete(job_id: str) -> dict[str, str]:
        store.row(job_id)
        shutil.rmtree(Path("results", job_id), ignore_errors=True)
        store.sql("DELETE FROM jobs WHERE id = ?", job_id)
        return {"message": "Job deleted"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tmp", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--cleanup", type=Path, help="Configuration of eemtcleanupd, whose routes are mounted."
    )
    arguments = parser.parse_args()
    program = application(arguments.tmp)
    if arguments.cleanup is not None:
        mount_cleanup(program, arguments.cleanup, require_admin)
    uvicorn.run(program, host="127.0.0.1", port=arguments.port, log_level="warning")
