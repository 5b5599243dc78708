"""``eemtcleanupd token``: the audit log has what happened, and no more."""

from __future__ import annotations

import json
from pathlib import Path

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
