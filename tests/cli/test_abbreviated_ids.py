"""The start of an id stands for it in every command, and an id that nobody knows is an error."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer

from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli

ONE, OTHER, THIRD = "32ffd03d-aaaa", "32ffd03d-bbbb", "7c91-cccc"
AMBIGUOUS = "32ffd03d"


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path / "store", now=datetime.now(UTC))
    config = "trash: {grace_hours: 24}\ndatabase: {timezone: UTC}\nbackup: {enabled: true, path: backups}\n"
    (store.path / "cleanup_config.yaml").write_text(config)
    for job in (ONE, OTHER, THIRD):
        store.job(job, dem=f"{job}.tif")
        store.upload(f"{job}.tif")
    return store


def held(store: JobStore) -> set[object]:
    return {row[0] for row in store.sql("SELECT job_id FROM cleanup_holds")}


def test_an_empty_id_holds_no_job_and_a_hold_on_it_can_be_released(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("hold", "", "--unknown-ok", cwd=store.path).returncode == 1
    assert run_cli("hold", ONE, cwd=store.path).returncode == 0
    store.sql("UPDATE cleanup_holds SET job_id = ''")  # as earlier versions set it
    assert run_cli("release", "", cwd=store.path).returncode == 0
    assert held(store) == set()


def test_hold_and_release_know_a_job_by_the_start_of_its_id(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("hold", "7c", cwd=store.path).returncode == 0
    assert run_cli("hold", "32ffd03d-b", cwd=store.path).returncode == 0
    assert held(store) == {THIRD, OTHER}
    assert run_cli("release", "3", cwd=store.path).returncode == 0
    assert held(store) == {THIRD}
    assert run_cli("release", ONE, cwd=store.path).returncode == 1


def test_an_unknown_job_is_held_only_on_request(store: JobStore, run_cli: RunCli) -> None:
    for unknown in ("nobody", "", "%", "32FFD03D-b", "c91"):
        done = run_cli("hold", unknown, cwd=store.path)
        assert (done.returncode, done.stdout) == (1, "")
    assert run_cli("holds", "--json", cwd=store.path).stdout.strip() == "[]"
    assert run_cli("hold", "nobody", "--unknown-ok", cwd=store.path).returncode == 0
    assert held(store) == {"nobody"}


def test_an_id_that_starts_another_one_is_itself(store: JobStore, run_cli: RunCli) -> None:
    store.job("7c91", files=0)
    assert run_cli("hold", "7c91", cwd=store.path).returncode == 0
    assert held(store) == {"7c91"}


@pytest.mark.parametrize("command", [("trash", "restore"), ("backup", "restore")], ids=" ".join)
def test_the_id_of_a_job_restores_no_other(
    store: JobStore, run_cli: RunCli, command: tuple[str, ...]
) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    store.job("7c91", days=1)
    assert run_cli(*command, "7c91", cwd=store.path).returncode == 1
    assert not store.results(THIRD).exists()


def test_the_id_of_a_job_releases_no_other(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("hold", THIRD, cwd=store.path).returncode == 0
    store.job("7c91")
    done = run_cli("release", "7c91", "--json", cwd=store.path)
    assert (done.returncode, json.loads(done.stdout)["job_id"]) == (1, "7c91")
    assert held(store) == {THIRD}


def test_the_id_of_a_job_is_removed_from_no_other_acknowledgement(store: JobStore, run_cli: RunCli) -> None:
    store.job("7c91-unknown", status="archived")
    assert run_cli("acknowledge", "7c91-unknown", cwd=store.path).returncode == 0
    store.job("7c91")
    assert run_cli("acknowledge", "7c91", "--remove", cwd=store.path).returncode == 1
    assert store.sql("SELECT job_id FROM cleanup_acknowledgements") == [("7c91-unknown",)]


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize(
    "command",
    [("hold",), ("release",), ("rerun",), ("trash", "restore"), ("backup", "restore")],
    ids=" ".join,
)
def test_an_ambiguous_id_is_an_error_that_lists_the_ids(
    store: JobStore, run_cli: RunCli, command: tuple[str, ...]
) -> None:
    for job in (ONE, OTHER) if command == ("release",) else ():
        run_cli("hold", job, cwd=store.path)
    if command in {("trash", "restore"), ("backup", "restore")}:
        assert run_cli("clean", cwd=store.path).returncode == 0
    done = run_cli(*command, AMBIGUOUS, cwd=store.path)
    assert (done.returncode, done.stdout) == (1, "")
    _, one, other, _ = done.stderr.splitlines()
    assert (ONE in one, OTHER in other) == (True, True)
    assert re.search(r"\d{4}-\d\d-\d\d|permanently", one), "its state and date"
    assert THIRD not in done.stderr


@pytest.mark.parametrize("command", [("trash", "restore"), ("backup", "restore")], ids=" ".join)
def test_a_restore_knows_a_job_by_the_start_of_its_id(
    store: JobStore, run_cli: RunCli, command: tuple[str, ...]
) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    if command[0] == "backup":
        assert run_cli("trash", "purge", "--yes", cwd=store.path).returncode == 0
    done = run_cli(*command, "7", "--json", cwd=store.path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["job_id"] == THIRD
    assert store.results(THIRD).exists()


@pytest.mark.parametrize("command", [("why",), ("hold",), ("acknowledge",), ("rerun", "--url", "http://x")])
def test_an_unknown_job_is_one_error_that_names_the_database(
    store: JobStore, run_cli: RunCli, command: tuple[str, ...]
) -> None:
    done = run_cli(*command, "nobody", cwd=store.path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "nobody" in done.stderr
    assert str(store.path / "jobs.db") in done.stderr


def commands_in(text: str) -> list[list[str]]:
    return [command.split()[1:] for command in re.findall(r"`(eemtcleanupd .*?)`", text)]


@pytest.mark.slow
def test_a_suggested_command_is_complete(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    for unknown in (("trash", "restore", "nobody"), ("release", "nobody"), ("acknowledge", "x", "--remove")):
        done = run_cli(*unknown, cwd=store.path)
        suggested = commands_in(done.stdout + done.stderr)
        assert (done.returncode, bool(suggested)) == (1, True)
        for command in suggested:
            assert run_cli(*command, cwd=store.path).returncode == 0
    hold = run_cli("hold", "7c", cwd=store.path)
    (restore,) = commands_in(hold.stderr)
    restored = run_cli(*restore, cwd=store.path)
    assert (restored.returncode, store.results(THIRD).exists()) == (0, True)
    assert run_cli("release", "7c", cwd=store.path).returncode == 0
    assert run_cli("clean", cwd=store.path).returncode == 0
    restored = run_cli("trash", "restore", "7c", cwd=store.path)
    (release,) = commands_in(restored.stdout)
    assert run_cli(*release, cwd=store.path).returncode == 0
    store.sql("UPDATE jobs SET completed_at = NULL, data_cleaned_at = NULL WHERE id = ?", THIRD)
    (acknowledge,) = commands_in(run_cli("why", "7c", cwd=store.path).stdout)
    assert run_cli(*acknowledge, cwd=store.path).returncode == 0


@pytest.mark.parametrize("command", [("release", "7c"), ("acknowledge", "7c", "--remove")])
def test_json_has_the_whole_id_of_a_job_that_is_not_held_or_acknowledged(
    store: JobStore, run_cli: RunCli, command: tuple[str, ...]
) -> None:
    done = run_cli(*command, "--json", cwd=store.path)
    assert (done.returncode, json.loads(done.stdout)["job_id"]) == (1, THIRD)


def test_rerun_knows_a_job_by_the_start_of_its_id(
    store: JobStore, run_cli: RunCli, httpserver: HTTPServer
) -> None:
    store.sql("UPDATE jobs SET parameters = '{}'")
    httpserver.expect_request("/api/submit-job").respond_with_json({"job_id": "new"})
    done = run_cli("rerun", "7c", "--url", httpserver.url_for(""), "--json", cwd=store.path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["job_id"] == THIRD


def test_history_lists_the_runs_that_an_ambiguous_id_can_mean(store: JobStore, run_cli: RunCli) -> None:
    for _ in range(2):
        assert run_cli("clean", cwd=store.path).returncode == 0
    ids = [run["run_id"] for run in json.loads(run_cli("history", "--json", cwd=store.path).stdout)]
    done = run_cli("history", ids[0][:6], cwd=store.path)
    assert done.returncode == 1
    assert all(each in done.stderr for each in ids)
    assert json.loads(run_cli("history", ids[0][:-1], "--json", cwd=store.path).stdout)["run_id"] == ids[0]
    assert run_cli("history", "nothing", cwd=store.path).returncode == 1
