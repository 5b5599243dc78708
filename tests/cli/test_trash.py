"""``trash`` and ``holds`` on the command line."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from eemtcleanupd.cleanup.restore import RestoreResult
from eemtcleanupd.cli.trash import print_restored
from eemtcleanupd.formatting import human_size, local_minute
from eemtcleanupd.model import Artifact, Found, RootName
from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli, immutable


@pytest.fixture
def store(tmp_path: Path, run_cli: RunCli) -> JobStore:
    store = JobStore(tmp_path / "store", now=datetime.now(UTC))
    (store.path / "cleanup_config.yaml").write_text("trash: {grace_hours: 24}\ndatabase: {timezone: UTC}\n")
    store.job("a")
    store.job("b", "failed")
    assert run_cli("clean", cwd=store.path).returncode == 0
    return store


def test_list_shows_items_with_the_time_of_their_deletion(store: JobStore, run_cli: RunCli) -> None:
    assert "a (completed, " in run_cli("trash", "list", cwd=store.path).stdout
    listed = json.loads(run_cli("trash", "list", "--json", cwd=store.path).stdout)
    assert {each["job_id"] for each in listed} == {"a", "b"}
    assert all(each["bytes"] > 0 and each["purge_after"] and each["artifacts"] for each in listed)


@pytest.mark.slow
def test_a_restored_job_is_held(store: JobStore, run_cli: RunCli) -> None:
    done = run_cli("trash", "restore", "a", cwd=store.path)
    assert done.returncode == 0, done.stderr
    assert "results/a/\n" in done.stdout
    assert store.results("a").exists()
    assert run_cli("holds", cwd=store.path).stdout.startswith("a ")
    assert run_cli("clean", cwd=store.path).returncode == 0
    assert store.results("a").exists()
    (held,) = json.loads(run_cli("holds", "--json", cwd=store.path).stdout)
    assert held["job_id"] == "a"
    assert held["until"]
    log = (store.path / "logs" / "cleanup_audit.jsonl").read_text()
    assert '"action": "restoring"' in log
    assert '"action": "restored"' in log


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("job_id", ["a b;c", "-x", "--config=evil.yaml"])
def test_a_suggested_command_is_about_the_job_whatever_its_id_is(
    store: JobStore, run_cli: RunCli, job_id: str
) -> None:
    store.job(job_id)
    run_cli("clean", cwd=store.path)
    done = run_cli("trash", "restore", "--", job_id, cwd=store.path)
    (command,) = re.findall(r"`eemtcleanupd (.*)`", done.stdout)
    assert run_cli(*shlex.split(command), cwd=store.path).returncode == 0
    assert run_cli("holds", "--json", cwd=store.path).stdout.strip() == "[]"


def test_restoring_an_unknown_job_is_one_error(store: JobStore, run_cli: RunCli) -> None:
    done = run_cli("trash", "restore", "nobody", cwd=store.path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "nobody" in done.stderr
    assert done.stderr.count("\n") == 1


def test_purge_empties_the_trash(store: JobStore, run_cli: RunCli) -> None:
    purge = ("trash", "purge", "--yes", "--json")
    purged = json.loads(run_cli(*purge, "--older-than", "1", cwd=store.path).stdout)
    assert (purged["purged"], purged["space_freed"]["bytes"], purged["error_count"]) == (0, 0, 0)
    done = run_cli(*purge, cwd=store.path)
    assert (done.returncode, json.loads(done.stdout)["purged"]) == (0, 2)
    assert json.loads(run_cli("trash", "list", "--json", cwd=store.path).stdout) == []


def test_purge_says_what_it_could_not_delete_and_why(store: JobStore, run_cli: RunCli) -> None:
    file = next(path for path in store.path.joinpath("results/.eemtcleanupd-trash").rglob("*.tif"))
    with immutable(file, root=store.path):  # the purge renames its folder
        done = run_cli("trash", "purge", "--yes", cwd=store.path)
        again = json.loads(run_cli("trash", "purge", "--yes", "--json", cwd=store.path).stdout)
    assert done.returncode == 1
    assert file.name in done.stdout
    assert [file.name in each["error"] for each in again["errors"]] == [True]


def test_list_begins_with_the_number_the_bytes_and_the_next_deletion(
    store: JobStore, run_cli: RunCli
) -> None:
    first, *items = run_cli("trash", "list", cwd=store.path).stdout.splitlines()
    listed = json.loads(run_cli("trash", "list", "--json", cwd=store.path).stdout)
    assert len(items) == len(listed) == 2
    next_one = min(datetime.fromisoformat(each["purge_after"]) for each in listed)
    for part in ("2 items", human_size(sum(each["bytes"] for each in listed)), local_minute(next_one)):
        assert part in first
    for name in ("a", "b"):
        assert run_cli("hold", name, cwd=store.path).returncode == 0
    assert local_minute(next_one) not in run_cli("trash", "list", cwd=store.path).stdout  # held: not deleted
    listed = json.loads(run_cli("trash", "list", "--json", cwd=store.path).stdout)
    assert [each["held"] for each in listed] == [True, True]


def runs(store: JobStore, run_cli: RunCli) -> list[str]:
    return [run["trigger"] for run in json.loads(run_cli("history", "--json", cwd=store.path).stdout)]


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("dry_run", [False, True])
def test_purge_names_the_held_and_shared_items_that_it_keeps(
    store: JobStore, run_cli: RunCli, dry_run: bool
) -> None:
    for name in ("c", "d"):
        store.job(name, dem="shared.tif")
    store.upload("shared.tif")
    assert run_cli("clean", cwd=store.path).returncode == 0
    store.sql("UPDATE jobs SET data_cleaned_at = NULL WHERE id = 'c'")  # submitted again
    store.sql("UPDATE jobs SET status = 'running' WHERE id = 'c'")
    assert run_cli("hold", "a", "--reason", "paper", cwd=store.path).returncode == 0
    (store.path / "cleanup_config.yaml").write_text(f"dry_run: {dry_run}\ndatabase: {{timezone: UTC}}\n")
    done = json.loads(run_cli("trash", "purge", "--yes", "--json", cwd=store.path).stdout)
    assert (done["dry_run"], {each["job_id"] for each in done["kept"]}) == (dry_run, {"a", "c", "d"})
    reasons = {each["job_id"]: each["reason"] for each in done["kept"]}
    assert "paper" in reasons["a"]
    assert "uploads/shared.tif" in reasons["d"]
    if not dry_run:  # the answer of the API has the same list
        (run,) = store.sql("SELECT skipped FROM cleanup_runs WHERE trigger = 'trash'")
        assert run == (3,)
    text = run_cli("trash", "purge", "--yes", cwd=store.path).stdout
    assert all(f"{name}: {reason}" in text for name, reason in reasons.items())


@pytest.mark.slow
def test_a_purge_is_not_the_last_run_and_an_idle_one_is_no_run(store: JobStore, run_cli: RunCli) -> None:
    def last_run() -> object:
        return json.loads(run_cli("status", "--json", cwd=store.path).stdout)["last_run"]

    cleanup = last_run()
    purge = ("trash", "purge", "--yes")
    assert run_cli(*purge, "--older-than", "2d", cwd=store.path).returncode == 0
    assert runs(store, run_cli) == ["manual"]
    assert run_cli(*purge, cwd=store.path).returncode == 0
    assert (runs(store, run_cli), last_run()) == (["trash", "manual"], cleanup)
    assert run_cli(*purge, cwd=store.path).returncode == 0
    assert (runs(store, run_cli), last_run()) == (["trash", "manual"], cleanup)
    assert json.loads(run_cli("report", "--json", cwd=store.path).stdout)["last_run"] == cleanup


def test_purge_takes_durations_and_can_be_quiet(store: JobStore, run_cli: RunCli) -> None:
    young = run_cli("trash", "purge", "--yes", "--older-than", "2d", "--json", cwd=store.path)
    assert json.loads(young.stdout)["purged"] == 0
    for wrong in ("-1", "1e300", "soon", "nan"):
        assert run_cli("trash", "purge", "--yes", "--older-than", wrong, cwd=store.path).returncode == 2
    quiet = run_cli("trash", "purge", "--yes", "-q", cwd=store.path)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert json.loads(run_cli("trash", "list", "--json", cwd=store.path).stdout) == []


DESTROY = (("trash", "purge"), ("reset",))


@pytest.mark.parametrize("command", DESTROY)
def test_without_a_terminal_only_yes_destroys(
    store: JobStore, run_cli: RunCli, command: tuple[str, ...]
) -> None:
    before = (store.snapshot(), store.cleaned())
    done = run_cli(*command, "--json", cwd=store.path)
    assert (done.returncode, json.loads(done.stdout)["success"]) == (2, False)
    assert "--yes" in done.stderr
    assert (store.snapshot(), store.cleaned()) == before
    assert run_cli(*command, "--yes", cwd=store.path).returncode == 0
    assert (store.snapshot(), store.cleaned()) != before


@pytest.mark.parametrize("command", DESTROY)
def test_on_a_terminal_the_command_asks_before_it_destroys(store: JobStore, command: tuple[str, ...]) -> None:
    before = (store.snapshot(), store.cleaned())
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "eemtcleanupd", *command, "--json"],
        cwd=store.path,
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.write(leader, b"n\n")
    out, err = process.communicate(timeout=60)
    os.close(leader)
    os.close(follower)
    assert json.loads(out)["success"] is False  # and nothing else
    assert b"[y/N]" in err
    assert process.returncode != 0
    assert (store.snapshot(), store.cleaned()) == before


def test_purge_with_dry_run_in_the_configuration_deletes_nothing(store: JobStore, run_cli: RunCli) -> None:
    (store.path / "cleanup_config.yaml").write_text("dry_run: true\n")
    before = store.snapshot()
    done = run_cli("trash", "purge", "--yes", cwd=store.path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[DRY RUN] Would purge 2 items (")
    assert store.snapshot() == before


def test_a_dry_purge_leaves_out_what_another_job_needs(store: JobStore, run_cli: RunCli) -> None:
    store.job("taker", dem="dem.tif")
    store.upload("dem.tif")
    assert run_cli("clean", cwd=store.path).returncode == 0
    store.job("user", "running", days=None, dem="dem.tif")
    (store.path / "cleanup_config.yaml").write_text("dry_run: true\n")
    planned = json.loads(run_cli("trash", "purge", "--yes", "--json", cwd=store.path).stdout)
    (store.path / "cleanup_config.yaml").write_text("trash: {grace_hours: 24}\n")
    purged = json.loads(run_cli("trash", "purge", "--yes", "--json", cwd=store.path).stdout)
    assert planned["purged"] == purged["purged"] == 2
    assert planned["space_freed"] == purged["space_freed"]


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize(
    ("job", "warns"), [("typo", True), ("a", True), ("cleaned", True), ("started", True), ("young", False)]
)
def test_a_hold_that_comes_too_late_is_a_warning(
    store: JobStore, run_cli: RunCli, job: str, warns: bool
) -> None:
    for name in ("cleaned", "started", "young"):
        store.job(name, days=1)
    store.sql("UPDATE jobs SET data_cleaned_at = '2026-06-01T00:00:00' WHERE id = 'cleaned'")
    store.sql(
        "INSERT INTO cleanup_intents (id, run_id, kind, state, job_id, artifacts, created_at)"
        " VALUES ('x.1', 'x', 'job', 'open', 'started', '[]', '2026-06-01 00:00:00')"
    )
    done = run_cli("hold", job, "--unknown-ok", cwd=store.path)
    assert done.returncode == 0
    holds = json.loads(run_cli("holds", "--json", cwd=store.path).stdout)
    assert [held["job_id"] for held in holds] == [job]
    assert ("[WARNING] " in done.stderr) == warns
    assert (f"job {job}" in done.stderr.lower()) == warns


def test_a_missing_item_is_not_restored(store: JobStore, run_cli: RunCli) -> None:
    trash = store.path / "results" / ".eemtcleanupd-trash"
    (item,) = (path for path in trash.iterdir() if (path / "a").exists())
    shutil.rmtree(item)
    done = run_cli("trash", "restore", "a", cwd=store.path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "results/a/" in done.stderr
    done = run_cli("trash", "restore", "a", "--json", cwd=store.path)
    assert done.returncode == 1
    assert "restored" not in json.loads(done.stdout or "{}")


def test_a_restore_in_part_prints_both_parts_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    upload = Found(Artifact(RootName.UPLOADS, "dem.tif"), is_folder=False)
    results = Found(Artifact(RootName.RESULTS, "a"), is_folder=True)
    result = RestoreResult("a", (results,), None, ((upload, "Input/output error"),), ("no owner",))
    assert print_restored(result, as_json=False) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["Restored results/a/"]
    assert "uploads/dem.tif: Input/output error" in printed.err
    assert "no owner" in printed.err
    assert print_restored(result, as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == {
        "job_id": "a",
        "restored": ["results/a/"],
        "not_restored": [{"artifact": "uploads/dem.tif", "error": "Input/output error"}],
        "warnings": ["no owner"],
        "held_until": None,
    }


def test_holds_marks_jobs_that_the_database_does_not_have(store: JobStore, run_cli: RunCli) -> None:
    for job_id in ("a", "gone"):
        assert run_cli("hold", job_id, "--unknown-ok", cwd=store.path).returncode == 0
    held = json.loads(run_cli("holds", "--json", cwd=store.path).stdout)
    assert {each["job_id"]: each["has_row"] for each in held} == {"a": True, "gone": False}
    shown = run_cli("holds", cwd=store.path).stdout.splitlines()
    assert [line.split()[0] for line in shown if "no such job" in line] == ["gone"]
