"""Orphans: what may count as one, when so many are a mistake, and what a dry run says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eemtcleanupd.errors import BreakerError, RootError
from eemtcleanupd.events import JobSkipped, OrphanFound, PurgePlanned
from eemtcleanupd.model import Trigger
from tests.cleanup.conftest import JobStore
from tests.requirements import needs

DELETE: dict[str, Any] = {"orphans__delete_after_hours": 24}
GRACE: dict[str, Any] = {"trash__grace_hours": 24}


def fill(store: JobStore, count: int) -> None:
    for number in range(count):
        store.job(f"job-{number:03}", days=1, files=1)


def entries(store: JobStore) -> int:
    return sum(1 for name in os.listdir(store.path / "results") if not name.startswith("."))


@pytest.fixture
def full(store: JobStore) -> JobStore:
    """A store of 30 young jobs that a run has seen, two days ago."""
    store.wait(days=0)
    fill(store, 30)
    store.run()
    store.wait(days=2)
    return store


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("options", [{}, DELETE])
def test_an_emptied_job_table_stops_the_run(full: JobStore, force: bool, options: dict[str, Any]) -> None:
    full.sql("DELETE FROM jobs")
    before = full.snapshot()
    with pytest.raises(BreakerError, match="0 rows"):
        full.run(force=force, **options)
    assert full.snapshot() == before


def test_a_table_that_lost_less_than_half_of_its_rows_is_believed(full: JobStore) -> None:
    full.sql("DELETE FROM jobs WHERE id < 'job-006'")
    full.sql("UPDATE jobs SET status = 'running'")
    report = full.run(**DELETE)
    assert (report.orphans.jobs, entries(full)) == (6, 24)


def test_a_run_of_the_trash_alone_does_not_make_an_emptied_table_believable(full: JobStore) -> None:
    full.sql("DELETE FROM jobs")
    full.request(Trigger.TRASH)
    with pytest.raises(BreakerError):
        full.run(**DELETE)


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("dry_run", [False, True])
def test_more_orphans_than_the_fraction_of_a_folder_stop_the_run(full: JobStore, dry_run: bool) -> None:
    full.sql("DELETE FROM jobs WHERE id < 'job-007'")
    full.job("due")
    with pytest.raises(BreakerError, match=r"7 of 31 entries in results"):
        full.run(force=True, dry_run=dry_run, **DELETE)
    assert entries(full) == 31
    assert full.cleaned() == set()
    assert full.run(**DELETE, safety__max_orphan_fraction=0.5).orphans.jobs == 7


def test_orphans_with_most_of_the_bytes_stop_the_run(full: JobStore) -> None:
    (full.results("job-000") / "big").write_bytes(bytes(3 << 20))
    full.sql("DELETE FROM jobs WHERE id = 'job-000'")
    full.wait(days=2)
    with pytest.raises(BreakerError, match="3 MB"):
        full.run(**DELETE)
    assert full.request(allow_orphans=True, **DELETE).orphans.jobs == 1


def test_the_operator_can_allow_them(full: JobStore) -> None:
    full.sql("DELETE FROM jobs WHERE id < 'job-010'")
    assert full.request(allow_orphans=True, **DELETE).orphans.jobs == 10


def test_folders_of_another_ledger_are_refused(full: JobStore) -> None:
    if full.url is None:
        (full.path / "jobs.db").unlink()
    else:
        for table in full.tables():
            full.sql(f"DROP TABLE {table}")
    full.sql(full.schema)
    full.job("stranger", files=0)
    before = full.snapshot()
    for options in ({}, DELETE):
        with pytest.raises(RootError, match="another job database"):
            full.run(force=True, **options)
    with pytest.raises(RootError, match="another job database"):
        full.run(dry_run=True)
    assert full.snapshot() == before


@pytest.mark.parametrize("attribute", ["mtime", "ctime"])
def test_the_age_of_an_orphan_is_that_of_its_last_change_of_any_kind(store: JobStore, attribute: str) -> None:
    copied = store.upload("dem.tif")
    store.wait(hours=25 if attribute == "mtime" else 23)
    moment = store.now.timestamp() if attribute == "mtime" else 0
    os.utime(copied, (moment, moment))
    assert store.run(**DELETE).orphans.jobs == 0
    assert copied.exists()


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_orphan_from_after_the_end_of_the_calendar_is_not_due(store: JobStore, dry_run: bool) -> None:
    store.job("a")
    orphan = store.upload("orphan.tif")
    os.utime(orphan, (1e12, 1e12))
    if orphan.stat().st_mtime != 1e12:
        pytest.skip("this filesystem has no such times")
    report = store.run(dry_run=dry_run, **DELETE)
    assert (report.outcome, report.successful.jobs, report.orphans.jobs) == ("success", 1, 0)
    assert orphan.exists()


def test_what_belongs_to_the_filesystem_is_no_orphan(store: JobStore) -> None:
    names = ["lost+found", "aquota.user", ".snapshots", ".nfs0001", "$RECYCLE.BIN", "#recycle", "@eaDir"]
    for root in ("results", "uploads", "temp"):
        for name in names:
            (store.path / root / name).mkdir()
    store.upload("nobodys.tif")
    store.wait(days=2)
    report = store.run(**DELETE)
    assert (report.orphans_found, report.orphans.jobs) == (1, 1)
    assert {path.name for path in (store.path / "uploads").iterdir()} == {*names, ".eemtcleanupd-trash"}


def test_no_path_of_the_configuration_is_an_orphan_or_an_artifact(store: JobStore) -> None:
    tokens = store.upload("tokens")
    secret = store.upload("hook_url")
    secret.write_text("http://127.0.0.1:9/")
    store.job("a", dem="tokens")
    store.wait(days=2)
    report = store.run(**DELETE, api__tokens_file=str(tokens), notifications__webhook__url_file=str(secret))
    assert report.orphans_found == 0
    assert tokens.exists()
    assert secret.exists()
    assert any(isinstance(event, JobSkipped) and event.notable for event in store.events)


def test_the_configuration_file_itself_is_no_orphan(store: JobStore) -> None:
    store.config_file = store.upload("cleanup_config.yaml")
    paths = {name: str(store.path / name) for name in ("results", "uploads", "temp")}
    database = str(store.path / "jobs.db")
    store.config_file.write_text(json.dumps({"paths": {**paths, "database": database}}), encoding="utf-8")
    store.wait(days=2)
    assert store.run(**DELETE).orphans_found == 0
    assert store.config_file.exists()


def test_a_hard_link_to_a_file_of_the_configuration_is_never_moved(store: JobStore, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch()
    for name in ("a_dem.tif", "orphan"):
        os.link(tokens, store.path / "uploads" / name)
    store.job("a")
    store.wait(days=2)
    report = store.run(**DELETE, api__tokens_file=str(tokens))
    assert (report.successful.jobs, report.orphans.jobs, report.skipped) == (0, 0, 2)
    assert (store.path / "uploads/a_dem.tif").exists()
    assert (store.path / "uploads/orphan").exists()


def test_no_file_that_is_named_after_one_of_the_configuration_is_an_orphan(store: JobStore) -> None:
    """Such as the locks and anchors of logs, their copies, and what rotation leaves."""
    names = ["audit.jsonl", "audit.jsonl.head", "audit.jsonl.000000042", "audit.log", "run.log-20260615"]
    for name in (*names, "auditor", "runs.log"):
        (store.path / "results" / name).touch()
    store.upload("audit.log")
    store.wait(days=2)
    report = store.run(
        **DELETE,
        logging__file=str(store.path / "results/run.log"),
        notifications__audit_log__path=str(store.path / "results/audit.jsonl"),
    )
    assert (report.orphans_found, report.orphans.jobs) == (3, 3)
    assert {path.name for path in (store.path / "results").iterdir()} == {*names, ".eemtcleanupd-trash"}


_BIND = """
import subprocess, sys
from pathlib import Path
from tests.cleanup.conftest import JobStore
from eemtcleanupd.errors import RootError
store = JobStore(Path(sys.argv[1]))
ups = store.path / "results" / "ups"
(ups / "deep").mkdir(parents=True)
source = ups / "deep" if sys.argv[2] == "deep" else ups
subprocess.run(["mount", "--bind", source, store.path / "uploads"], check=True)
store.upload("live.tif")
store.job("live", "running", days=None, dem="live.tif", files=0)
store.wait(days=2)
try:
    store.run(orphans__delete_after_hours=24)
except RootError as error:
    print(error)
print((source / "live.tif").exists())
"""


@pytest.mark.slow
@pytest.mark.root
@needs("unshare", "mount")
@pytest.mark.parametrize("depth", ["flat", "deep"])
def test_a_folder_that_is_mounted_inside_another_is_refused(tmp_path: Path, depth: str) -> None:
    command = ["unshare", "-m", "--propagation", "private", sys.executable, "-c", _BIND]
    done = subprocess.run(
        [*command, tmp_path / "store", depth], capture_output=True, text=True, check=True, timeout=60
    )
    message, kept = done.stdout.splitlines()
    assert "inside paths.results" in message
    assert kept == "True"


def test_a_dry_run_shows_and_counts_what_a_run_deletes_of_orphans_and_trash(store: JobStore) -> None:
    store.wait(days=0)
    store.job("trashed", dem="trashed.tif")
    store.upload("trashed.tif")
    store.run(**GRACE)
    store.job("due")
    store.upload("nobodys.tif")
    store.upload("kept.tif")
    store.wait(days=2)
    os.utime(store.path / "uploads/kept.tif", (store.now.timestamp(), store.now.timestamp()))
    planned = store.run(dry_run=True, **DELETE)
    labels = {event.found.label: event.planned for event in store.events if isinstance(event, OrphanFound)}
    (purge,) = [event for event in store.events if isinstance(event, PurgePlanned)]
    done = store.run(**DELETE)
    assert labels == {"uploads/nobodys.tif": True, "uploads/kept.tif": False}
    assert purge.job_id == "trashed"
    assert planned.orphans == done.orphans
    assert planned.trash_purged == done.trash_purged
    assert planned.bytes_freed == done.bytes_freed > 0


def test_an_upload_that_a_row_names_in_another_composition_is_no_orphan(store: JobStore) -> None:
    upload = store.upload("gro\u0308\u00dfe.tif")
    store.job("a", "running", days=None, dem="gr\u00f6\u00dfe.tif", files=0)
    store.wait(days=2)
    assert store.run(**DELETE).orphans.jobs == 0
    assert upload.exists()
