"""``eemtcleanupd token``: the audit log has what happened, and no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli


def test_a_token_that_does_not_exist_is_not_recorded_as_revoked(tmp_path: Path, run_cli: RunCli) -> None:
    store = JobStore(tmp_path / "store")
    (store.path / "cleanup_config.yaml").write_text("api: {tokens_file: ./tokens.json}\n")
    assert run_cli("token", "add", "ann", "--scope", "read", cwd=store.path).returncode == 0
    assert run_cli("token", "revoke", "alice", cwd=store.path).returncode == 2
    assert run_cli("token", "revoke", "ann", cwd=store.path).returncode == 0
    (log,) = (store.path / "logs").glob("*audit*.jsonl")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    revoked = [entry for entry in entries if "token_revoked" in entry.values()]
    assert len(revoked) == 1


def test_a_token_that_cannot_be_recorded_is_revoked_but_not_added(tmp_path: Path, run_cli: RunCli) -> None:
    store = JobStore(tmp_path / "store")
    config = store.path / "cleanup_config.yaml"
    config.write_text("api: {tokens_file: ./tokens.json}\n")
    assert run_cli("token", "add", "ann", "--scope", "read", cwd=store.path).returncode == 0
    before = (store.path / "tokens.json").read_bytes()
    unwritable = "notifications: {audit_log: {path: ./jobs.db/audit.jsonl}}\n"
    config.write_text(f"api: {{tokens_file: ./tokens.json}}\n{unwritable}")
    added = run_cli("token", "add", "bob", "--scope", "clean", cwd=store.path)
    assert (added.returncode, added.stdout) == (3, "")
    assert (store.path / "tokens.json").read_bytes() == before
    assert run_cli("token", "revoke", "ann", cwd=store.path).returncode == 3
    assert json.loads((store.path / "tokens.json").read_bytes()) == []


@pytest.mark.parametrize("days", ["nan", "inf", "1e9", "3000000", "-1"])
def test_a_validity_that_no_calendar_has_is_bad_usage(tmp_path: Path, run_cli: RunCli, days: str) -> None:
    store = JobStore(tmp_path / "store")
    (store.path / "cleanup_config.yaml").write_text("api: {tokens_file: ./tokens.json}\n")
    done = run_cli("token", "add", "ann", "--scope", "read", "--days", days, cwd=store.path)
    assert (done.returncode, done.stdout) == (2, "")
    assert not (store.path / "tokens.json").exists()
