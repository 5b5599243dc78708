"""``eemtcleanupd acknowledge``: a known warning is counted and not repeated, until its reason changes."""

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
    (store.path / "cleanup_config.yaml").write_text(
        "database: {timezone: UTC}\nnotifications: {audit_log: {enabled: true}}\n", encoding="utf-8"
    )
    store.job("old-1", "archived")
    store.job("old-2", "archived")
    store.job("due")
    return store


def document(run_cli: RunCli, store: JobStore, *args: str, exit_code: int = 0) -> Any:
    done = run_cli(*args, "--json", cwd=store.path)
    assert done.returncode == exit_code, done.stderr
    return json.loads(done.stdout)


def warned(run: Any) -> list[str]:
    return sorted(job["job_id"] for job in run["skipped"])


def test_a_run_counts_what_is_acknowledged(store: JobStore, run_cli: RunCli) -> None:
    assert warned(document(run_cli, store, "clean", "--dry-run")) == ["old-1", "old-2"]
    document(run_cli, store, "acknowledge", "old-1", "--reason", "moved by hand")
    for options in (["--dry-run"], []):
        run = document(run_cli, store, "clean", *options)
        assert (warned(run), run["acknowledged"]) == (["old-2"], 1)
    assert store.sql("SELECT skipped FROM cleanup_runs") == [(1,)]
    assert "old-1" not in run_cli("clean", cwd=store.path).stdout
    assert "old-1" in run_cli("clean", "--verbose", cwd=store.path).stdout


def test_another_reason_is_reported_again(store: JobStore, run_cli: RunCli) -> None:
    document(run_cli, store, "acknowledge", "old-1")
    store.sql("UPDATE jobs SET status = 'frozen'")
    run = document(run_cli, store, "clean", "--dry-run")
    assert (warned(run), run["acknowledged"]) == (["due", "old-1", "old-2"], 0)


def test_it_is_listed_explained_and_removed(store: JobStore, run_cli: RunCli) -> None:
    document(run_cli, store, "acknowledge", "old-1", "--reason", "moved by hand")
    (known,) = document(run_cli, store, "acknowledge", "--list")
    assert (known["job_id"], known["reason"]) == ("old-1", "moved by hand")
    assert document(run_cli, store, "why", "old-1")["acknowledgement"] == known
    assert document(run_cli, store, "why", "old-2")["acknowledgement"] is None
    assert document(run_cli, store, "status")["acknowledged"] == 1
    document(run_cli, store, "acknowledge", "old", "--remove")
    assert document(run_cli, store, "acknowledge", "--list") == []
    assert (
        document(run_cli, store, "acknowledge", "old-1", "--remove", exit_code=1)["was_acknowledged"] is False
    )
    assert warned(document(run_cli, store, "clean", "--dry-run")) == ["old-1", "old-2"]
    log = (store.path / "logs" / "cleanup_audit.jsonl").read_text(encoding="utf-8")
    actions = [json.loads(line)["action"] for line in log.splitlines()]
    assert actions == ["acknowledge", "acknowledgement_removed"]
    assert document(run_cli, store, "audit", "verify")["intact"]


def test_only_what_runs_warn_about_is_acknowledged(store: JobStore, run_cli: RunCli) -> None:
    for job in ("due", "no-such-job", "old"):
        assert document(run_cli, store, "acknowledge", job, exit_code=1)["error"]
    assert document(run_cli, store, "acknowledge", "--list") == []


@pytest.mark.parametrize(
    "args", [[], ["old-1", "--list"], ["--remove"], ["old-1", "--remove", "--reason", "x"]]
)
def test_contradicting_options_are_an_error(args: list[str], store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("acknowledge", *args, cwd=store.path).returncode == 2


@pytest.mark.slow
def test_a_ledger_from_an_earlier_version_has_no_acknowledgements(store: JobStore, run_cli: RunCli) -> None:
    document(run_cli, store, "clean", "--force")
    store.sql("DROP TABLE cleanup_acknowledgements")
    assert warned(document(run_cli, store, "clean", "--dry-run")) == ["old-1", "old-2"]
    assert document(run_cli, store, "acknowledge", "--list") == []
    assert document(run_cli, store, "why", "old-1")["acknowledgement"] is None
    document(run_cli, store, "acknowledge", "old-1")
    assert warned(document(run_cli, store, "clean", "--dry-run")) == ["old-2"]


@pytest.mark.slow
def test_the_warning_about_an_orphan_is_acknowledged_by_its_path(store: JobStore, run_cli: RunCli) -> None:
    (store.path / "cleanup_config.yaml").write_text(
        "database: {timezone: UTC}\norphans: {delete_after_hours: 0}\nsafety: {min_idle_minutes: 0}\n"
    )
    for name in ("kept", "other"):
        store.results(name).mkdir()
        (store.results(name) / ".eemt-keep").touch()
    (store.path / "uploads" / "deletable.tif").touch()
    run = document(run_cli, store, "clean", "--allow-orphans")
    assert warned(run) == ["old-1", "old-2", "results/kept/", "results/other/"]
    document(run_cli, store, "acknowledge", "results/nothing", exit_code=1)
    document(run_cli, store, "acknowledge", "uploads/../jobs.db", exit_code=1)
    known = document(run_cli, store, "acknowledge", "results/kept")
    assert (known["job_id"], known["acknowledged"]) == ("results/kept/", True)
    run = document(run_cli, store, "clean", "--allow-orphans")
    assert (warned(run), run["acknowledged"]) == (["old-1", "old-2", "results/other/"], 1)
    (store.results("kept") / ".eemt-keep").unlink()  # nothing keeps it now, acknowledged or not
    document(run_cli, store, "clean", "--allow-orphans")
    assert not store.results("kept").exists()
    document(run_cli, store, "acknowledge", "results/kept", "--remove")
    assert document(run_cli, store, "acknowledge", "--list") == []


@pytest.mark.slow
def test_an_orphan_that_no_rule_deletes_is_acknowledged(store: JobStore, run_cli: RunCli) -> None:
    for name in ("young", "other"):
        store.results(name).mkdir()
    assert "2 orphans" in run_cli("clean", cwd=store.path).stdout
    assert document(run_cli, store, "acknowledge", "results/young/")["job_id"] == "results/young/"
    for options in ([], ["--dry-run"]):
        orphans = document(run_cli, store, "clean", *options)["orphans"]
        assert {each["path"]: each["acknowledged"] for each in orphans} == {
            "results/young/": True,
            "results/other/": False,
        }
        assert "1 orphan " in run_cli("clean", *options, cwd=store.path).stdout
    document(run_cli, store, "acknowledge", "results/old-1/", exit_code=1)  # the folder of a job
    store.results("lost+found").mkdir()
    document(run_cli, store, "acknowledge", "results/lost+found/", exit_code=1)  # no run warns of it


def test_an_orphan_that_the_next_run_deletes_is_not_acknowledged(store: JobStore, run_cli: RunCli) -> None:
    (store.path / "cleanup_config.yaml").write_text(
        "database: {timezone: UTC}\norphans: {delete_after_hours: 0}\nsafety: {min_idle_minutes: 0}\n"
    )
    store.results("gone").mkdir()
    document(run_cli, store, "acknowledge", "results/gone/", exit_code=1)
