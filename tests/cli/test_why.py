"""``eemtcleanupd why``: what the next run would do with a job, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path / "store")
    (store.path / "cleanup_config.yaml").write_text("database: {timezone: UTC}\n")
    store.job("due", dem="shared.tif")
    store.job("used", dem=None)
    store.job("live", "running", days=None, dem="shared.tif")
    store.upload("shared.tif")
    return store


def asked(store: JobStore, run_cli: RunCli, job_id: str) -> dict[str, Any]:
    done = run_cli("why", job_id, "--json", cwd=store.path)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_due_job_goes_and_its_shared_upload_stays(store: JobStore, run_cli: RunCli) -> None:
    before = store.content()
    due = asked(store, run_cli, "du")
    assert (due["job_id"], due["would_clean"], due["shared"]) == ("due", True, ["uploads/shared.tif"])
    assert store.content() == before


def test_a_live_job_stays(store: JobStore, run_cli: RunCli) -> None:
    live = asked(store, run_cli, "live")
    assert (live["would_clean"], live["shared"], live["kept_until"]) == (False, [], None)


def test_a_job_that_still_changes_stays(store: JobStore, run_cli: RunCli) -> None:
    (store.results("used") / "new.tif").write_text("new")
    used = asked(store, run_cli, "used")
    assert not used["would_clean"]
    assert used["why"] != asked(store, run_cli, "due")["why"]


def test_a_cleaned_job_says_when(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("clean", "--force", cwd=store.path).returncode == 0
    due = asked(store, run_cli, "due")
    assert (due["cleaned"], due["would_clean"]) == (True, False)
    assert due["cleaned_at"]
    assert "due" in run_cli("why", "due", cwd=store.path).stdout


def test_an_unknown_and_an_ambiguous_job_are_errors(store: JobStore, run_cli: RunCli) -> None:
    store.job("due2")
    assert run_cli("why", "nobody", cwd=store.path).returncode == 1
    done = run_cli("why", "d", cwd=store.path)
    assert done.returncode == 1
    assert "due2" in done.stderr
