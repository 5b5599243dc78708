"""What the shell offers for ids and names, and what it never does."""

from __future__ import annotations

import shlex
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli

HOSTILE = ("$(touch pwned)", "a;reboot", "-rf", "x\ny", "../up", "~root", "`id`", "it's")


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path / "store")
    (store.path / "cleanup_config.yaml").write_text(
        "database: {timezone: UTC}\n"
        "trash: {grace_hours: 24}\n"
        "api: {tokens_file: ./tokens}\n"
        "notifications: {audit_log: {enabled: true}}\n",
        encoding="utf-8",
    )
    store.job("alpha")
    store.job("alto", "archived")
    store.job("beta", days=1)
    return store


def offered(run_cli: RunCli, store: JobStore, line: str, **env: str) -> list[str]:
    """Return what bash is offered for the last word of a line."""
    words = ["eemtcleanupd", *shlex.split(line)] + ([""] if line.endswith(" ") else [])
    done = run_cli(
        env={
            "_EEMTCLEANUPD_COMPLETE": "bash_complete",
            "COMP_WORDS": shlex.join(words),
            "COMP_CWORD": str(len(words) - 1),
            **env,
        },
        cwd=store.path,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_jobs_are_offered_by_their_start(store: JobStore, run_cli: RunCli) -> None:
    before = store.content()
    for command in ("why", "hold", "rerun", "acknowledge"):
        assert offered(run_cli, store, f"{command} al") == ["alpha", "alto"]
    assert offered(run_cli, store, "--config cleanup_config.yaml why b") == ["beta"]
    assert store.content() == before


def test_ids_and_names_of_each_kind_are_offered(store: JobStore, run_cli: RunCli) -> None:
    def run(*args: str) -> None:
        assert run_cli(*args, cwd=store.path).returncode == 0, args

    run("hold", "beta")
    run("acknowledge", "alto")
    run("clean", "--force")
    run("token", "add", "grafana", "--scope", "read")
    (run_id,) = (row[0] for row in store.sql("SELECT id FROM cleanup_runs"))
    for line, words in {
        "release ": ["beta"],
        "acknowledge --remove ": ["alto"],
        "trash restore ": ["alpha"],
        "history 2": [run_id],
        "token revoke ": ["grafana"],
        "notify-test ": ["audit_log"],
        "backup restore ": [],
        "stat": ["status"],
        "trash re": ["restore"],
    }.items():
        assert offered(run_cli, store, line) == words, line


def test_what_a_shell_would_run_is_not_offered(store: JobStore, run_cli: RunCli) -> None:
    for name in HOSTILE:
        store.job(name, files=0)
    assert offered(run_cli, store, "why ") == ["alpha", "alto", "beta"]


def test_few_of_many_jobs_are_offered(store: JobStore, run_cli: RunCli) -> None:
    for number in range(200):
        store.sql(
            "INSERT INTO jobs (id, workflow_type, status) VALUES (?, 'sol', 'running')", f"many{number}"
        )
    assert len(offered(run_cli, store, "why many")) == 50


def test_nothing_is_offered_without_a_usable_store(store: JobStore, run_cli: RunCli) -> None:
    assert offered(run_cli, store, "why a", EEMT_CLEANUP_CONFIG="/missing.yaml") == []
    (store.path / "cleanup_config.yaml").write_text("retention: 7\n", encoding="utf-8")
    assert offered(run_cli, store, "why a") == []


@pytest.mark.slow
def test_a_locked_database_is_not_waited_for(store: JobStore, run_cli: RunCli) -> None:
    with closing(sqlite3.connect(store.path / "jobs.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        assert offered(run_cli, store, "why a") == []
        assert time.monotonic() - began < 20  # the database would be waited for longer
        connection.execute("ROLLBACK")
