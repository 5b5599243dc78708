"""Nobody shortens, replaces or rotates the audit log unnoticed, and no crash looks as if somebody had."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.errors import StoreError
from eemtcleanupd.events import AuditEntry
from eemtcleanupd.notifiers.audit_log import append
from eemtcleanupd.plugins import Plugins
from eemtcleanupd.store.ledger import Ledger
from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
MB = 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    """A store with a log of its own that one run has written."""
    store = JobStore(tmp_path / "store")
    store.job("first")
    run(store)
    return store


def run(store: JobStore, **options: object) -> None:
    config = store.config(**options)
    hooks = Plugins(config)
    clean(config, RunRequest(user="tester"), emit=lambda _: None, clock=lambda: store.now, hooks=hooks)


def log_of(store: JobStore) -> Path:
    return store.path / "logs" / "cleanup_audit.jsonl"


def head_of(store: JobStore) -> Path:
    return store.path / "logs" / "cleanup_audit.jsonl.head"


def lines_of(store: JobStore) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log_of(store).read_text().splitlines()]


def anchor_of(store: JobStore) -> tuple[object, ...]:
    return store.sql("SELECT seq, hash FROM cleanup_audit_anchors")[0]


def verified(store: JobStore, run_cli: RunCli) -> tuple[int, dict[str, Any]]:
    done = run_cli("audit", "verify", "--json", cwd=store.path)
    return done.returncode, json.loads(done.stdout)


def kinds(store: JobStore, run_cli: RunCli) -> set[str]:
    code, document = verified(store, run_cli)
    found = {finding["kind"] for finding in document["findings"]}
    assert code == (1 if found else 0)
    assert document["intact"] is not bool(found)
    return found


def with_head(store: JobStore) -> None:
    """Make the head agree with the last line, as everybody can who can write to its folder."""
    text = log_of(store).read_text() if log_of(store).exists() else ""
    last = json.loads(text.splitlines()[-1]) if text else {"seq": 0, "hash": "0" * 64}
    head_of(store).write_text(json.dumps({"seq": last["seq"], "hash": last["hash"]}))


def truncate(store: JobStore) -> None:
    lines = log_of(store).read_text().splitlines(keepends=True)
    log_of(store).write_text("".join(lines[:-2]))
    with_head(store)


def delete(store: JobStore) -> None:
    log_of(store).unlink()
    head_of(store).unlink()


def empty(store: JobStore) -> None:
    log_of(store).write_text("")
    with_head(store)


def replace(store: JobStore) -> None:
    """Put the complete and longer log of another store in place."""
    other = JobStore(store.path / "other")
    for name in ("x", "y", "z"):
        other.job(name)
        run(other)
    shutil.copy(log_of(other), log_of(store))
    shutil.copy(head_of(other), head_of(store))
    shutil.rmtree(other.path)


def rewrite_end(store: JobStore) -> None:
    """Write other last lines, whose chain and head are right."""
    lines = log_of(store).read_text().splitlines(keepends=True)
    log_of(store).write_text("".join(lines[:-2]))
    with_head(store)
    forged = [AuditEntry(NOW, "tester", "forged", {"number": number}) for number in range(2)]
    append(log_of(store), forged, max_bytes=MB)


ATTACKS: dict[str, tuple[Callable[[JobStore], None], str]] = {
    "truncated": (truncate, "truncated"),
    "deleted": (delete, "deleted"),
    "emptied": (empty, "deleted"),
    "replaced by another log": (replace, "foreign"),
    "rewritten at its end": (rewrite_end, "replaced"),
}


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_ledger_knows_that_the_log_was_changed(store: JobStore, run_cli: RunCli, attack: str) -> None:
    assert kinds(store, run_cli) == set()
    change, kind = ATTACKS[attack]
    change(store)
    assert kind in kinds(store, run_cli)


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_next_run_records_the_change_and_repairs_nothing(
    store: JobStore, run_cli: RunCli, attack: str
) -> None:
    seq, digest = anchor_of(store)
    ATTACKS[attack][0](store)
    for name in ("second", "third"):
        store.job(name)
        run(store)
    recorded = [line for line in lines_of(store) if line["action"] == "chain_mismatch"]
    assert len(recorded) == 1
    assert {"seq": seq, "hash": digest} in recorded[0]["details"]["expected"]
    assert "chain_mismatch" in kinds(store, run_cli)
    assert anchor_of(store) == (lines_of(store)[-1]["seq"], lines_of(store)[-1]["hash"])


def test_a_writer_without_the_database_hides_no_change(store: JobStore, run_cli: RunCli) -> None:
    truncate(store)
    for _ in range(5):  # tokens and refused requests are written so
        append(log_of(store), [AuditEntry(NOW, "somebody", "http_refused", {})], max_bytes=MB)
    assert kinds(store, run_cli) & {"foreign", "replaced"}
    store.job("second")
    run(store)
    assert "chain_mismatch" in kinds(store, run_cli)


def test_a_command_of_a_person_records_the_change_too(store: JobStore, run_cli: RunCli) -> None:
    delete(store)
    assert run_cli("hold", "first", cwd=store.path).returncode == 0
    assert [line["action"] for line in lines_of(store)] == ["chain_mismatch", "hold"]
    assert anchor_of(store) == (lines_of(store)[-1]["seq"], lines_of(store)[-1]["hash"])


def test_the_head_alone_reveals_a_truncation_by_accident(store: JobStore) -> None:
    lines = log_of(store).read_text().splitlines(keepends=True)
    log_of(store).write_text("".join(lines[:-1]))  # such as a restored copy
    append(log_of(store), [AuditEntry(NOW, "somebody", "http_refused", {})], max_bytes=MB)
    assert [line["action"] for line in lines_of(store)][-2:] == ["chain_mismatch", "http_refused"]


@pytest.mark.parametrize("text", ["[" * 1000, '{"seq": 1e999, "hash": ""}'], ids=["deep", "infinite"])
def test_a_head_of_any_content_is_a_finding(store: JobStore, run_cli: RunCli, text: str) -> None:
    head_of(store).write_text(text)
    done = run_cli("audit", "verify", cwd=store.path)
    assert (done.returncode, done.stderr) == (1, "")


# -- crashes -------------------------------------------------------------------------------------------


def test_lines_without_their_anchors_are_what_a_kill_leaves(store: JobStore, run_cli: RunCli) -> None:
    anchor, head = anchor_of(store), head_of(store).read_text()
    append(log_of(store), [AuditEntry(NOW, "auto_cleanup", "cleaning", {})], max_bytes=MB)
    head_of(store).write_text(head)  # killed before the head, and before the transaction
    assert anchor_of(store) == anchor
    assert kinds(store, run_cli) == set()
    store.job("second")
    run(store)
    assert kinds(store, run_cli) == set()
    assert "chain_mismatch" not in {line["action"] for line in lines_of(store)}


def test_an_incomplete_line_is_what_a_kill_leaves(store: JobStore, run_cli: RunCli) -> None:
    with log_of(store).open("a") as file:
        file.write('{"seq": 5, "timest')
    code, document = verified(store, run_cli)
    assert (code, len(document["interrupted"])) == (0, 1)
    store.job("second")
    run(store)
    code, document = verified(store, run_cli)
    assert (code, len(document["interrupted"])) == (0, 1)


def test_a_kill_between_the_record_of_a_change_and_its_anchor_repeats_no_record(store: JobStore) -> None:
    delete(store)
    before = store.path / "before.db"
    shutil.copy(store.path / "jobs.db", before)
    store.job("second")
    run(store)
    with closing(sqlite3.connect(before)) as connection:
        anchor = connection.execute("SELECT seq, hash FROM cleanup_audit_anchors").fetchone()
    store.sql("UPDATE cleanup_audit_anchors SET seq = ?, hash = ?", *anchor)  # as if never moved
    store.job("third")
    run(store)
    actions = [line["action"] for line in lines_of(store)]
    assert actions.count("chain_mismatch") == 1
    assert anchor_of(store) != anchor


def test_a_database_restored_from_a_backup_is_no_change_of_the_log(store: JobStore, run_cli: RunCli) -> None:
    copy = shutil.copy(store.path / "jobs.db", store.path / "backup.db")
    store.job("second")
    run(store)
    Path(copy).replace(store.path / "jobs.db")
    assert kinds(store, run_cli) == set()


def test_an_empty_head_is_what_a_power_cut_leaves(store: JobStore, run_cli: RunCli) -> None:
    head_of(store).write_bytes(b"")
    assert kinds(store, run_cli) == set()


# -- the database ----------------------------------------------------------------------------------------


def test_a_database_made_anew_is_reported(store: JobStore, run_cli: RunCli) -> None:
    store.job("second")
    run(store)  # the log says now that the ledger had an anchor
    (store.path / "jobs.db").unlink()
    for root in ("results", "uploads", "temp"):  # with the markers of the database before
        shutil.rmtree(store.path / root)
        (store.path / root).mkdir()
    store.sql(store.schema)
    assert kinds(store, run_cli) == {"anchor_missing"}
    run(store)
    last = [line for line in lines_of(store) if line["action"] == "chain_mismatch"]
    assert [line["details"]["ledger_lost"] for line in last] == [4]
    run(store)
    assert [line for line in lines_of(store) if line["action"] == "chain_mismatch"] == last


def test_a_log_from_before_the_anchors_is_intact(store: JobStore, run_cli: RunCli) -> None:
    store.sql("DROP TABLE cleanup_audit_anchors")
    assert kinds(store, run_cli) == set()
    run(store)
    assert kinds(store, run_cli) == set()
    assert anchor_of(store)[0] == lines_of(store)[-1]["seq"]


def test_a_reset_keeps_the_anchor(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("reset", "--yes", cwd=store.path).returncode == 0
    assert anchor_of(store)[0] == lines_of(store)[-1]["seq"]
    assert kinds(store, run_cli) == set()


def test_a_missing_database_lets_verify_claim_nothing(store: JobStore, run_cli: RunCli) -> None:
    (store.path / "jobs.db").unlink()
    code, document = verified(store, run_cli)
    assert (code, document["intact"], document["anchor"]) == (3, False, None)
    assert document["anchor_error"]


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize(
    ("seq", "digest"),
    [(2**62, "0" * 64), (-1, "0" * 64), (3, "x"), (3, None), ("x", "0" * 64), (10**14, "a" * 64)],
)
def test_a_forged_anchor_harms_neither_log_nor_run(
    store: JobStore, run_cli: RunCli, seq: object, digest: object
) -> None:
    store.sql("DROP TABLE cleanup_audit_anchors")
    store.sql("CREATE TABLE cleanup_audit_anchors (log, seq, hash, updated_at)")
    store.sql("INSERT INTO cleanup_audit_anchors VALUES (?, ?, ?, '')", str(log_of(store)), seq, digest)
    code, document = verified(store, run_cli)
    assert code != 0
    assert not document["intact"]
    with suppress(StoreError):  # nothing else
        run(store)
    assert max(line["seq"] for line in lines_of(store)) < 20


def test_two_logs_of_one_database_have_an_anchor_each(store: JobStore, run_cli: RunCli) -> None:
    store.job("second")
    run(store, notifications__audit_log__path=str(store.path / "elsewhere" / "audit.jsonl"))
    assert len(store.sql("SELECT * FROM cleanup_audit_anchors")) == 2
    assert kinds(store, run_cli) == set()


def test_an_anchor_is_never_moved_over_a_change(store: JobStore) -> None:
    anchor = anchor_of(store)
    config = store.config()
    hooks, ledger = Plugins(config), Ledger(store.open())
    truncate(store)
    hooks.audit([AuditEntry(NOW, "tester", "a", {}), AuditEntry(NOW, "tester", "b", {})])
    ledger.move_audit_anchor(lambda connection: hooks.anchor_audit(ledger, connection))
    assert anchor_of(store) == anchor


# -- rotation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["audit.jsonl", "audit[1].jsonl", "audit*.jsonl"])
def test_rotation_finds_its_files_whatever_the_name(store: JobStore, name: str) -> None:
    path = store.path / name
    for number in range(30):
        append(path, [AuditEntry(NOW, "u", "a", {"n": number})], max_bytes=2000)
    from eemtcleanupd.notifiers.audit_verify import verify

    assert verify(path).lines == 30
    assert verify(path).errors == ()
    assert len(verify(path).files) > 2


def test_rotation_overwrites_no_file(store: JobStore) -> None:
    path = store.path / "audit.jsonl"
    taken = [path.with_name(f"audit.jsonl.{number:09d}") for number in range(1, 8)]
    for file in taken:
        file.write_text("precious")
    for number in range(10):
        append(path, [AuditEntry(NOW, "u", "a", {"n": number})], max_bytes=10)
    assert {file.read_text() for file in taken} == {"precious"}


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("suffix", [".1", "-20260615", ".2026-06-15", "-1781524800"])
def test_a_rotation_by_logrotate_is_understood(store: JobStore, run_cli: RunCli, suffix: str) -> None:
    log_of(store).rename(log_of(store).with_name(log_of(store).name + suffix))
    assert kinds(store, run_cli) == set()
    store.job("second")
    run(store)
    assert kinds(store, run_cli) == set()
    assert verified(store, run_cli)[1]["lines"] == 8


def test_the_numbers_of_logrotate_count_backwards(store: JobStore, run_cli: RunCli) -> None:
    for number in range(2):
        name = log_of(store).name
        for old in (2, 1):
            file = log_of(store).with_name(f"{name}.{old}")
            if file.exists():
                file.rename(log_of(store).with_name(f"{name}.{old + 1}"))
        log_of(store).rename(log_of(store).with_name(f"{name}.1"))
        store.job(f"job-{number}")
        run(store)
    assert kinds(store, run_cli) == set()


def test_copytruncate_is_understood(store: JobStore, run_cli: RunCli) -> None:
    shutil.copy(log_of(store), log_of(store).with_name("cleanup_audit.jsonl.1"))
    log_of(store).write_text("")
    store.job("second")
    run(store)
    assert kinds(store, run_cli) == set()


def test_a_compressed_file_is_refused_in_words(store: JobStore, run_cli: RunCli) -> None:
    compressed = log_of(store).with_name("cleanup_audit.jsonl.1.gz")
    compressed.write_bytes(gzip.compress(log_of(store).read_bytes()))
    log_of(store).unlink()
    assert "compressed" in kinds(store, run_cli)


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_file_beside_the_log_is_not_read(store: JobStore, run_cli: RunCli, kind: str) -> None:
    for name in ("cleanup_audit.jsonl.1", "cleanup_audit.jsonl-20260615"):
        path = log_of(store).with_name(name)
        if kind == "link":
            path.symlink_to("/etc/passwd")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir()
    store.job("second")
    run(store)
    assert kinds(store, run_cli) == set()
