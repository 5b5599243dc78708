"""Rows that are hidden, and names that a column or a filesystem takes for one: in doubt, both stay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eemtcleanupd.errors import NoDatabaseError, StoreError
from eemtcleanupd.events import JobSkipped, Warned
from tests.cleanup.conftest import JobStore
from tests.postgres import Server
from tests.requirements import needs

DELETE: dict[str, Any] = {"orphans__delete_after_hours": 24}


@pytest.fixture
def postgres_store(tmp_path: Path, postgres: Server) -> JobStore:
    return JobStore(tmp_path / "server", url=postgres.create())


def shared(store: JobStore) -> Path:
    """Let an expired job and a running one name an upload."""
    store.job("due", dem="dem.tif")
    store.job("live", "running", days=None, dem="dem.tif", files=1)
    return store.upload("dem.tif")


def test_row_level_security_that_hides_a_job_is_refused(postgres_store: JobStore) -> None:
    upload = shared(postgres_store)
    postgres_store.sql("ALTER TABLE jobs ENABLE ROW LEVEL SECURITY")
    postgres_store.sql("ALTER TABLE jobs FORCE ROW LEVEL SECURITY")
    postgres_store.sql("CREATE POLICY visible ON jobs USING (status <> 'running')")
    with pytest.raises(StoreError, match="row-level security"):
        postgres_store.run()
    assert upload.exists()
    assert postgres_store.results("live").exists()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_view_is_refused(store: JobStore, request: pytest.FixtureRequest, kind: str) -> None:
    if kind == "postgres":
        store = request.getfixturevalue("postgres_store")
    upload = shared(store)
    store.sql("ALTER TABLE jobs RENAME TO all_jobs")
    store.sql("CREATE VIEW jobs AS SELECT * FROM all_jobs WHERE status <> 'running'")
    with pytest.raises(StoreError) as refused:
        store.run()
    assert not isinstance(refused.value, NoDatabaseError), "a table is not merely missing"
    assert upload.exists()


@pytest.mark.parametrize("collation", ["NOCASE", "RTRIM"])
def test_the_columns_own_idea_of_equality_protects_too(store: JobStore, collation: str) -> None:
    store.sql("DROP TABLE jobs")
    store.sql(
        store.schema.replace("dem_filename TEXT", f"dem_filename TEXT COLLATE {collation}").replace(
            "id TEXT PRIMARY KEY", f"id TEXT PRIMARY KEY COLLATE {collation}"
        )
    )
    other = {"NOCASE": "DEM.tif", "RTRIM": "dem.tif "}[collation]
    store.job("due", dem="dem.tif")
    store.job("live", "running", days=None, dem=other, files=0)
    store.job("free", dem="free.tif")
    store.upload("free.tif")
    upload = store.upload("dem.tif")
    assert store.run().successful.jobs == 2
    assert upload.exists()
    assert not (store.path / "uploads/free.tif").exists()
    store.sql("DELETE FROM jobs WHERE id = 'live'")
    store.wait(seconds=0)
    assert store.run(force=True).orphans.jobs == 0


def test_citext_protects_another_case(postgres_store: JobStore, postgres: Server) -> None:
    store = postgres_store
    postgres.admin("CREATE EXTENSION citext", str(store.url).rpartition("/")[2])
    store.sql(
        "ALTER TABLE jobs ALTER COLUMN dem_filename TYPE public.citext, ALTER COLUMN id TYPE public.citext"
    )
    store.job("due", dem="X.tif")
    store.job("live", "running", days=None, dem="x.tif", files=0)
    upload = store.upload("X.tif")
    assert store.run().successful.jobs == 1
    assert upload.exists()
    assert store.cleaned() == {"due"}


@pytest.mark.sqlite
def test_ids_that_differ_only_in_case_are_two_jobs(store: JobStore) -> None:
    store.sql("DROP TABLE jobs")
    store.sql(store.schema.replace("id TEXT PRIMARY KEY", "job_id TEXT COLLATE NOCASE"))
    for job, status in (("run", "completed"), ("RUN", "running")):
        store.sql(
            "INSERT INTO jobs (job_id, workflow_type, status, completed_at, created_at)"
            " VALUES (?, 'sol', ?, '2026-01-02T00:00:00', '2026-01-01 00:00:00')",
            job,
            status,
        )
        store.results(job).mkdir()
    assert store.run().successful.jobs == 1
    assert store.sql("SELECT job_id FROM jobs WHERE data_cleaned_at IS NOT NULL") == [("run",)]
    assert store.results("RUN").exists()


def test_composed_and_decomposed_names_in_the_table_protect_each_other(store: JobStore) -> None:
    store.job("due", dem="gr\u00f6\u00dfe.tif")
    store.job("live", "running", days=None, dem="gro\u0308\u00dfe.tif", files=0)
    upload = store.upload("gr\u00f6\u00dfe.tif")
    report = store.run()
    assert (report.successful.jobs, report.skipped) == (0, 1)
    assert upload.exists()
    (skipped,) = [event for event in store.events if isinstance(event, JobSkipped) and event.notable]
    assert "spelling" in skipped.reason


_FOLDING = """
import os, subprocess, sys
from pathlib import Path
from tests.cleanup.conftest import JobStore
base = Path(sys.argv[1])
store = JobStore(base / "store")
image, results = base / "image", store.path / "results"
image.touch(); os.truncate(image, 64 << 20)
subprocess.run(["mkntfs", "-q", "-F", image], check=True, capture_output=True)
subprocess.run(["lowntfs-3g", "-o", "ignore_case,umask=0077", image, results], check=True)
store.job("Run_Alpha", files=1)
store.job("run_alpha", "running", days=None, files=0)
store.job("Other", files=1)
(results / "Other").rename(results / "xxx"); (results / "xxx").rename(results / "other")
store.job("plain", files=1)
store.run()
print(sorted(store.cleaned()), sorted(path.name for path in results.iterdir() if path.name[0] != "."))
"""


@pytest.mark.slow
@pytest.mark.root
@needs("mkntfs", "lowntfs-3g", "unshare")
@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")
def test_on_a_filesystem_that_ignores_case_both_jobs_stay(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-c", _FOLDING, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['plain'] ['other', 'run_alpha']\n"


def test_an_orphan_in_another_composition_is_reported(store: JobStore) -> None:
    store.upload("u\u0308.tif")
    store.job("live", "running", days=None, dem="\u00fc.tif", files=0)
    store.wait(days=2)
    store.run(**DELETE)
    assert any("u" in event.message for event in store.events if isinstance(event, Warned))


def test_an_entry_that_another_job_needs_does_not_keep_its_namesake_from_its_record(store: JobStore) -> None:
    """``results/a_results.zip`` is the zip of job ``a``, and would be the folder of job ``a_results.zip``."""
    store.job("a", days=1)
    store.job("a_results.zip", files=0)
    archive = store.path / "results/a_results.zip"
    archive.write_bytes(b"zip")
    assert store.run().successful.jobs == 1
    assert store.cleaned() == {"a_results.zip"}
    assert archive.exists()
    assert store.run().skipped == 0
