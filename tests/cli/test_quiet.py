"""``--quiet``: a command that a timer runs prints nothing while all is well."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli


@pytest.fixture
def store(tmp_path: Path, run_cli: RunCli) -> JobStore:
    store = JobStore(tmp_path / "store", now=datetime.now(UTC))
    (store.path / "cleanup_config.yaml").write_text(
        "database: {timezone: UTC}\n"
        "backup: {enabled: true, path: ./backups}\n"
        "notifications: {audit_log: {enabled: true}}\n",
        encoding="utf-8",
    )
    store.job("a")
    assert run_cli("clean", "--quiet", cwd=store.path).stdout == ""
    return store


def test_what_is_intact_is_not_mentioned(store: JobStore, run_cli: RunCli) -> None:
    for command in (("audit", "verify"), ("backup", "verify")):
        loud = run_cli(*command, cwd=store.path)
        assert (loud.returncode, bool(loud.stdout)) == (0, True), command
        for call in (("--quiet", *command), (*command, "-q")):
            quiet = run_cli(*call, cwd=store.path)
            assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", ""), call


def test_what_is_damaged_is_printed(store: JobStore, run_cli: RunCli) -> None:
    log = store.path / "logs" / "cleanup_audit.jsonl"
    log.write_text(log.read_text(encoding="utf-8").replace('"a"', '"b"'), encoding="utf-8")
    (backup,) = (store.path / "backups").glob("a@*")
    backup.write_bytes(backup.read_bytes()[:-20])
    for command, place in ((("audit", "verify"), log.name), (("backup", "verify"), backup.name)):
        quiet = run_cli(*command, "-q", cwd=store.path)
        assert quiet.returncode == 1
        assert place in quiet.stdout


def test_doctor_prints_only_what_is_wrong(store: JobStore, run_cli: RunCli) -> None:
    loud, quiet = run_cli("doctor", cwd=store.path), run_cli("doctor", "-q", cwd=store.path)
    assert loud.returncode == quiet.returncode
    assert "OK " in loud.stdout
    assert "OK " not in quiet.stdout
