"""The audit log is complete, nothing is deleted without it, and every change to it is detected."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.errors import AuditError, ConfigError
from eemtcleanupd.events import AuditEntry, Event
from eemtcleanupd.notifiers.audit_chain import chain_backwards
from eemtcleanupd.notifiers.audit_log import append
from eemtcleanupd.notifiers.audit_reader import read_page
from eemtcleanupd.notifiers.audit_verify import verify
from eemtcleanupd.plugins import Plugins
from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli
from tests.notifiers.conftest import Configure

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
MB = 1024 * 1024


def entry(number: int) -> AuditEntry:
    return AuditEntry(NOW, "auto_cleanup", "cleaned", {"job_id": f"job-{number}", "bytes_freed": number})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "logs" / "audit.jsonl"
    for number in range(1, 10):
        append(path, [entry(number)], max_bytes=MB)
    return path


def errors(path: Path) -> list[tuple[int, str]]:
    return [(error.line, error.message) for error in verify(path).errors]


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def test_a_line_has_all_documented_keys(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    append(path, [AuditEntry(NOW, "ann", "hold", {"job_id": "x"}, "192.0.2.7")], max_bytes=MB)
    line = json.loads(path.read_text())
    assert line["timestamp"] == "2026-06-15T12:00:00.000+00:00"
    assert (line["user"], line["action"], line["details"]) == ("ann", "hold", {"job_id": "x"})
    assert line["ip_address"] == "192.0.2.7"
    assert (line["seq"], line["prev"]) == (1, "0" * 64)


def test_a_text_copy_has_the_documented_form(configure: Configure, tmp_path: Path) -> None:
    hooks = Plugins(configure("notifications: {audit_log: {text_copy: true}}"))
    hooks.audit([AuditEntry(NOW, "ann", "hold", {"job_id": "a\nb"}, "192.0.2.7"), entry(1)])
    hooks.audit([entry(2)])
    chain = [json.loads(line) for line in (tmp_path / "logs/cleanup_audit.jsonl").read_text().splitlines()]
    text = tmp_path / "logs/cleanup_audit.log"
    lines = [line.split(" - ", 2) for line in text.read_text().splitlines()]
    assert [level for _, level, _ in lines] == ["INFO"] * 3
    for (stamp, _, document), line in zip(lines, chain, strict=True):
        assert datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").astimezone() == NOW
        copied = json.loads(document)
        assert copied == {key: line[key] for key in copied}
        assert {"timestamp", "user", "action", "details"} <= copied.keys()
    assert text.stat().st_mode & 0o007 == 0
    assert errors(tmp_path / "logs/cleanup_audit.jsonl") == []


def test_nothing_is_deleted_without_the_text_copy_that_was_asked_for(store: JobStore) -> None:
    store.job("a")
    (store.path / "logs").mkdir()
    (store.path / "logs/cleanup_audit.log").symlink_to("/dev/null")
    with pytest.raises(AuditError):
        run(store, notifications__audit_log__text_copy=True)
    assert store.results("a").exists()


def test_a_text_copy_is_never_the_chain_itself(configure: Configure) -> None:
    with pytest.raises(ConfigError):
        configure("notifications: {audit_log: {text_copy: true, path: ./audit.log}}")


def test_an_unchanged_chain_is_intact(log: Path) -> None:
    assert verify(log).lines == 9
    assert errors(log) == []


def _forged(line: str) -> str:
    """Change a line and give it the hash that it should then have."""
    import hashlib

    body = line.rpartition(', "hash": "')[0].replace("job-5", "job-X")
    return f'{body}, "hash": "{hashlib.sha256(body.encode()).hexdigest()}"}}\n'


def _renumbered(line: str, number: str) -> str:
    return _forged(line.replace('"seq": 5', f'"seq": {number}'))


TAMPERED: dict[str, tuple[Callable[[list[str]], list[str]], int, str]] = {
    "changed": (lambda ls: [x.replace("job-5", "job-X") for x in ls], 5, "line 5 "),
    "changed with its hash": (lambda ls: [_forged(x) if "job-5" in x else x for x in ls], 6, "line 6 "),
    "no finite number": (lambda ls: [*ls[:4], _renumbered(ls[4], "1e999"), *ls[5:]], 5, ""),
    "a number of 4300 digits": (lambda ls: [*ls[:4], _renumbered(ls[4], "9" * 4300), *ls[5:]], 5, ""),
    "no JSON": (lambda ls: [*ls[:4], "oops\n", *ls[5:]], 5, ""),
    "removed": (lambda ls: [*ls[:4], *ls[5:]], 5, "line 5 "),
    "several removed": (lambda ls: [*ls[:4], *ls[7:]], 5, "lines 5 to 7 "),
    "first removed": (lambda ls: ls[1:], 1, "line 1 "),
    "last removed": (lambda ls: ls[:-1], 9, "line 9 "),
    "inserted": (lambda ls: [*ls[:5], ls[2], *ls[5:]], 6, "line 3 "),
    "reordered": (lambda ls: [*ls[:3], ls[4], ls[3], *ls[5:]], 4, "line 4 "),
    "truncated": (lambda ls: [*ls[:-1], ls[-1][:40]], 9, ""),
}


@pytest.mark.parametrize("change", TAMPERED)
def test_a_change_is_reported_with_its_line(log: Path, change: str) -> None:
    edit_lines, line, lines_in_chain = TAMPERED[change]
    edit(log, edit_lines)
    number, message = errors(log)[0]
    assert number == line
    assert lines_in_chain in message


def test_a_change_of_any_byte_is_detected(log: Path) -> None:
    data = log.read_bytes()
    for index in range(0, len(data), 7):
        changed = bytearray(data)
        changed[index] ^= 1
        log.write_bytes(changed)
        number = data[:index].count(b"\n") + 1
        assert {line for line, _ in errors(log)} & {number, number + 1}, f"byte {index} of line {number}"


def test_the_last_line_cannot_be_forged_alone(log: Path) -> None:
    edit(log, lambda lines: [*lines[:-1], _forged(lines[-1].replace("job-9", "job-5"))])
    assert [line for line, _ in errors(log)] == [9]


@pytest.mark.parametrize("limit", [7, 400])
def test_pages_contain_each_line_once_and_reading_one_reads_few_others(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "audit.jsonl"
    for first in range(1, 2000, 100):
        append(path, [entry(number) for number in range(first, first + 100)], max_bytes=MB // 8)
    with path.open("a") as file:
        file.write('{"seq": 2001, "torn')
    assert len(list(tmp_path.glob("audit.jsonl.*"))) > 2
    found: list[int] = []
    before = None
    while True:
        page = read_page(path, before, "", limit)
        found += [line["seq"] for line in page.entries]
        if page.before is None:
            break
        before = page.before
        assert sum(json.loads(line)["seq"] >= before for line in chain_backwards(path, before)) < 150
    assert found == list(range(2000, 0, -1))
    assert read_page(path, 10**30, "", 1).entries[0]["seq"] == 2000
    assert read_page(path, -1, "", 1).entries == ()


def test_rotation_keeps_the_chain_and_every_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for number in range(60):
        append(path, [entry(number)], max_bytes=3000)
    files = sorted(path.parent.glob("audit.jsonl.0*"))
    assert len(files) > 3
    assert verify(path).lines == 60
    assert errors(path) == []
    files[1].unlink()
    assert len(errors(path)) == 1


def test_a_line_truncated_by_a_crash_is_kept_and_the_chain_continues(log: Path) -> None:
    with log.open("a") as file:
        file.write('{"seq": 10, "timest')
    append(log, [entry(11)], max_bytes=MB)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    assert lines[-2]["action"] == "torn_line"
    assert lines[-2]["details"] == {"text": '{"seq": 10, "timest'}
    assert lines[-1]["details"]["job_id"] == "job-11"
    assert verify(log).lines == 12
    assert errors(log) == []
    assert verify(log).interrupted == ((log, 10),)


@pytest.mark.slow
def test_many_processes_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    program = (
        "import sys; from pathlib import Path; from datetime import datetime, UTC\n"
        "from eemtcleanupd.events import AuditEntry; from eemtcleanupd.notifiers.audit_log import append\n"
        "for n in range(50):\n"
        "    entry = AuditEntry(datetime.now(UTC), 'u', 'a', {'n': n, 'x': 'y' * 50})\n"
        "    append(Path(sys.argv[1]), [entry], max_bytes=8000)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, path]) for _ in range(4)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    assert verify(path).lines == 200
    assert errors(path) == []


def plugins(store: JobStore, **options: object) -> Plugins:
    return Plugins(store.config(**options))


def run(store: JobStore, **options: object) -> list[Event]:
    events: list[Event] = []
    clean(
        store.config(),
        RunRequest(user="tester"),
        emit=events.append,
        clock=lambda: store.now,
        hooks=plugins(store, **options),
    )
    return events


def lines_of(store: JobStore) -> list[dict[str, object]]:
    path = store.path / "logs" / "cleanup_audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_records_each_action_before_and_after(store: JobStore) -> None:
    store.job("a")
    run(store)
    lines = lines_of(store)
    assert [line["action"] for line in lines] == ["run_started", "cleaning", "cleaned", "run_finished"]
    assert {line["user"] for line in lines} == {"tester"}
    details = lines[2]["details"]
    assert isinstance(details, dict)
    assert details["job_id"] == "a"
    assert details["artifacts"] == ["results/a/"]
    assert details["bytes_freed"] > 0


def test_a_run_that_cannot_write_the_audit_log_deletes_nothing(store: JobStore) -> None:
    store.job("a")
    (store.path / "logs").mkdir()
    (store.path / "logs" / "cleanup_audit.jsonl").mkdir()
    before = store.results("a")
    with pytest.raises(AuditError, match=r"cleanup_audit.jsonl .*notifications.audit_log.path"):
        run(store)
    assert before.exists()
    assert "data_cleaned_at" not in {row[1] for row in store.sql("PRAGMA table_info(jobs)")}


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("line", range(1, 4))
def test_a_run_stops_before_any_action_that_a_full_disk_left_unrecorded(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, line: int
) -> None:
    for number in range(20):
        store.job(f"job-{number}")
    real, written = os.fsync, [0]
    path = str(store.path / "logs" / "cleanup_audit.jsonl")

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == path:
            written[0] += 1
            if written[0] > line:
                raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(AuditError, match="No space left on device"):
        run(store)
    monkeypatch.setattr(os, "fsync", real)
    announced = {
        str(line["details"]["job_id"])  # type: ignore[index]
        for line in lines_of(store)
        if line["action"] == "cleaning"
    }
    deleted = {f"job-{n}" for n in range(20) if not store.results(f"job-{n}").exists()}
    assert deleted <= announced
    assert store.cleaned() <= deleted
    run(store)
    assert store.cleaned() == {f"job-{n}" for n in range(20)}
    assert errors(store.path / "logs" / "cleanup_audit.jsonl") == []


def test_a_refused_run_is_recorded(store: JobStore) -> None:
    store.job("a")
    run(store)
    shutil.rmtree(store.path / "results")
    with pytest.raises(Exception, match="results"):
        run(store)
    assert lines_of(store)[-1]["action"] == "run_failed"


def test_audit_verify_prints_text_and_json(run_cli: RunCli, store: JobStore) -> None:
    store.job("a")
    run(store)
    good = run_cli("audit", "verify", cwd=store.path)
    assert good.returncode == 0
    assert "4 lines in 1 file" in good.stdout
    edit(store.path / "logs" / "cleanup_audit.jsonl", lambda lines: [*lines[:1], *lines[2:]])
    bad = run_cli("audit", "verify", "--json", cwd=store.path)
    assert bad.returncode == 1
    document = json.loads(bad.stdout)
    assert not document["intact"]
    assert document["findings"][0]["line"] == 2


@pytest.mark.slow
def test_actions_of_people_are_recorded_with_their_name(run_cli: RunCli, store: JobStore) -> None:
    store.job("a")
    assert run_cli("hold", "a", "--reason", "thesis", cwd=store.path).returncode == 0
    assert run_cli("release", "a", cwd=store.path).returncode == 0
    assert run_cli("release", "a", cwd=store.path).returncode == 1
    lines = lines_of(store)
    assert [line["action"] for line in lines] == ["hold", "release"]
    assert lines[0]["user"] == "root" if os.getuid() == 0 else lines[0]["user"]
