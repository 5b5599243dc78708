"""A job store that an earlier version cleaned: all commands read it unchanged, and a run continues it.

Each folder of ``tests/data/ledgers`` is what a version left of one store after two runs: the job database as
SQL, the audit log, and the lock and status of a daemon that was killed.  Its last day is yesterday here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli, settle
from tests.postgres import Server

LEDGERS = Path(__file__).parents[1] / "data" / "ledgers"
FIRST, BETA, ANCHORED = "2026-11-24", "2026-11-26", "2026-11-29"
VERSIONS = [
    pytest.param((FIRST, "sqlite"), marks=pytest.mark.slow),
    (BETA, "sqlite"),
    pytest.param((ANCHORED, "sqlite"), marks=pytest.mark.slow),
    (BETA, "postgres"),
]
"""The dates of versions with different tables; the first one knew SQLite only."""


@dataclass
class OldStore:
    """A store in the state of an earlier version; ``runs`` are its runs, oldest first."""

    store: JobStore
    version: str
    runs: list[str]
    ask: Callable[..., Any]

    @property
    def has_audit_log(self) -> bool:
        return self.version != FIRST


def _for_postgres(sql: str) -> str:
    """Return the statements that the same version executes on PostgreSQL."""
    sql = re.sub(r"\tuser VARCHAR", '\t"user" VARCHAR', sql)
    sql = sql.replace("\tid INTEGER NOT NULL", "\tid SERIAL NOT NULL")
    counted = ("audit", "log", "outbox", "storage")
    moved = (f"SELECT setval('cleanup_{name}_id_seq', 100);" for name in counted)
    return "\n".join([sql, *moved])


@pytest.fixture(params=VERSIONS, ids=" on ".join)
def old(request: pytest.FixtureRequest, tmp_path: Path, run_cli: RunCli) -> OldStore:
    version, backend = request.param
    url = None
    if backend == "postgres":
        server: Server = request.getfixturevalue("postgres")
        url = server.create()
    store = JobStore(tmp_path / "store", now=datetime.now(UTC), url=url)
    store.sql("DROP TABLE jobs")
    yesterday = store.now - timedelta(days=1)
    for file in (LEDGERS / version).iterdir():
        text = file.read_text()
        if not file.name.startswith("cleanup_audit"):  # whose lines have hashes
            text = text.replace("@STORE@", str(store.path)).replace("2026-11-29", f"{yesterday:%Y-%m-%d}")
        if file.name == "jobs.sql":
            _execute(store, text if url is None else _for_postgres(text))
            continue
        folder = store.path / "logs" if file.name.startswith("cleanup_audit") else store.path
        folder.mkdir(exist_ok=True)
        (folder / file.name).write_text(text)
    _make_folders(store)
    database = {} if url is None else {"database": url}
    (store.path / "cleanup_config.yaml").write_text(
        json.dumps({"database": {"timezone": "UTC"}, "trash": {"grace_hours": 1000}, "paths": database})
    )

    def ask(*command: str, code: int = 0) -> Any:
        done = run_cli(*command, "--json", cwd=store.path)
        assert (done.returncode, done.stderr) == (code, ""), (command, done.stdout)
        return json.loads(done.stdout)

    runs = [str(run) for (run,) in store.sql("SELECT id FROM cleanup_runs ORDER BY started_at")]
    return OldStore(store, version, runs, ask)


def _execute(store: JobStore, sql: str) -> None:
    for statement in re.split(r";\n", sql):
        words = statement.split()
        if words and words[0] not in {"BEGIN", "COMMIT;", "COMMIT"}:
            store.sql(statement.replace("%", "%%") if store.url and "?" in statement else statement)


def _make_folders(store: JobStore) -> None:
    """Make the folders that the ledger knows, with the trash and what the database says is in it."""
    for name, marker in store.sql("SELECT name, marker FROM cleanup_roots"):
        root = store.path / str(name)
        (root / ".eemtcleanupd-trash").mkdir(mode=0o700)
        (root / ".eemtcleanupd-trash" / ".root-id").write_text(str(marker))
        status = root.stat()
        store.sql(
            "UPDATE cleanup_roots SET device = ?, inode = ? WHERE name = ?",
            status.st_dev,
            status.st_ino,
            name,
        )
    for (artifacts,) in store.sql("SELECT artifacts FROM cleanup_intents"):
        for root, entry, _, item in json.loads(str(artifacts)):
            _fill(store.path / root / ".eemtcleanupd-trash" / item / entry)
    for job in ("held", "due"):
        _fill(store.results(job))
        settle(store.results(job), store.now - timedelta(days=30))


def _fill(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "day.tif").write_bytes(b"x" * 5000)


@pytest.mark.slow
def test_every_command_reads_it_before_the_first_run_and_changes_nothing(old: OldStore) -> None:
    before, files = old.store.content(), old.store.snapshot()
    ask = old.ask
    newest, oldest = ask("history")
    assert [oldest["run_id"], newest["run_id"]] == old.runs
    assert (oldest["space_freed"]["bytes"], newest["bytes_trashed"]) == (12288, 0)
    assert [job["job_id"] for job in ask("history", old.runs[0])["jobs"]] == ["cleaned"]

    status = ask("status")
    assert (status["running"], status["last_run"]["run_id"]) == (False, old.runs[1])
    assert status["trash"]["jobs"] == 1
    assert status["storage"]["by_status"]["successful"]["jobs"] == 2
    assert status["notifiers"].get("webhook", {"waiting": 0})["waiting"] == int(old.has_audit_log)

    assert ask("report")["trash"]["jobs"] == 1
    assert [item["job_id"] for item in ask("trash", "list")] == ["trashed"]
    assert [hold["job_id"] for hold in ask("holds")] == ["held"]
    assert ask("why", "held")["hold"]["reason"] == "for the thesis"
    assert ask("why", "due")["would_clean"]
    assert ask("why", "trashed")["purge_after"]
    assert ask("audit", "verify")["lines"] == (12 if old.has_audit_log else 0)
    assert {root["name"] for root in ask("roots")} == {"results", "uploads", "temp"}
    assert "problem" not in {finding["level"] for finding in ask("doctor")}
    plan = ask("clean", "--dry-run")
    assert (plan["cleaned_jobs"]["successful"], plan["error_count"]) == (1, 0)
    assert ask("backup", "list") == []
    assert (old.store.content(), old.store.snapshot()) == (before, files)


@pytest.mark.fast_parameters(1)
def test_the_first_run_continues_it(old: OldStore) -> None:
    ask = old.ask
    ask("clean")
    assert old.store.cleaned() == {"cleaned", "trashed", "due"}
    assert old.store.results("held").exists()
    newest, *earlier = ask("history")
    assert newest["bytes_trashed"] > 0
    assert [run["run_id"] for run in reversed(earlier)] == old.runs
    assert ask("audit", "verify")["intact"]
    assert {item["job_id"] for item in ask("trash", "list")} == {"trashed", "due"}
    ask("trash", "restore", "trashed")
    assert (old.store.results("trashed") / "day.tif").stat().st_size == 5000
    ask("release", "held")
    ask("clean")
    assert "held" in old.store.cleaned()


@pytest.mark.slow
def test_a_change_by_a_person_needs_no_run_before(old: OldStore) -> None:
    old.ask("hold", "due", "--reason", "wait")
    assert {hold["job_id"] for hold in old.ask("holds")} == {"held", "due"}
    old.ask("trash", "restore", "trashed")
    assert old.store.results("trashed").exists()
    old.ask("release", "held")
    assert [hold["job_id"] for hold in old.ask("holds")] == ["due", "trashed"]


@pytest.mark.slow
def test_a_daemon_starts_where_one_of_the_earlier_version_was_killed(old: OldStore) -> None:
    command = [sys.executable, "-m", "eemtcleanupd"]
    with subprocess.Popen([*command, "run"], cwd=old.store.path, stderr=subprocess.DEVNULL) as daemon:
        try:
            deadline = time.monotonic() + 30
            while subprocess.run(
                [*command, "status", "--healthy"], cwd=old.store.path, check=False
            ).returncode:
                assert time.monotonic() < deadline
            status = old.ask("status")
            assert (status["pid"], status["last_run"]["run_id"]) == (daemon.pid, old.runs[1])
            old.ask("stop")
            assert daemon.wait(30) == 0
        finally:
            daemon.kill()
    assert old.ask("audit", "verify")["intact"]


def test_the_versions_of_the_ledger_differ() -> None:
    """A version whose tables are those of another one would test nothing."""
    tables = {
        version: re.findall(
            r"CREATE TABLE (cleanup_\w+) \((.*?)\n\)", (LEDGERS / version / "jobs.sql").read_text(), re.S
        )
        for version in (FIRST, BETA, ANCHORED)
    }
    assert len({str(found) for found in tables.values()}) == 3
