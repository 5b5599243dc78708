"""``eemtcleanupd hold``: how long a hold lasts."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path / "store")
    store.job("a")
    return store


@pytest.mark.parametrize(
    ("option", "text", "hours"), [("--for", "7d", 168), ("--until", "90m", 1.5), ("--for", "24", 24)]
)
def test_a_hold_lasts_for_a_duration(
    option: str, text: str, hours: float, store: JobStore, run_cli: RunCli
) -> None:
    before = datetime.now(UTC)
    held = json.loads(run_cli("hold", "a", option, text, "--json", cwd=store.path).stdout)
    until = datetime.fromisoformat(held["held_until"])
    assert before <= until - timedelta(hours=hours) <= datetime.now(UTC)


def test_a_hold_lasts_until_a_time(store: JobStore, run_cli: RunCli) -> None:
    held = json.loads(
        run_cli("hold", "a", "--until", "2099-12-31T18:00+01:00", "--json", cwd=store.path).stdout
    )
    assert held["held_until"] == "2099-12-31T17:00:00+00:00"


@pytest.mark.parametrize(
    "text", ["yesterday", "2001-01-01", "-1d", "-5", "0", "0001-01-01", "99999999d", "2099"]
)
def test_no_other_end_is_taken(text: str, store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("hold", "a", "--until", text, cwd=store.path).returncode == 2
    assert json.loads(run_cli("holds", "--json", cwd=store.path).stdout) == []


def test_a_reason_that_is_not_utf8_is_kept(store: JobStore, run_cli: RunCli) -> None:
    held = run_cli("hold", "a", "--reason", "caf\udce9", "--json", cwd=store.path)
    assert held.returncode == 0, held.stderr
    (hold,) = json.loads(run_cli("holds", "--json", cwd=store.path).stdout)
    assert hold["reason"].startswith("caf")


def test_a_new_hold_says_what_it_replaces_and_keeps_the_reason(store: JobStore, run_cli: RunCli) -> None:
    first = json.loads(run_cli("hold", "a", "--reason", "paper", "--json", cwd=store.path).stdout)
    assert (first["reason"], first["replaced"]) == ("paper", None)
    second = json.loads(run_cli("hold", "a", "--for", "7d", "--json", cwd=store.path).stdout)
    assert second["reason"] == "paper"
    assert (second["replaced"]["reason"], second["replaced"]["until"]) == ("paper", None)
    third = json.loads(run_cli("hold", "a", "--reason", "thesis", "--json", cwd=store.path).stdout)
    assert (third["reason"], third["replaced"]["reason"]) == ("thesis", "paper")
    assert third["replaced"]["until"][:19] == second["held_until"][:19]  # the ledger has seconds
    (held,) = json.loads(run_cli("holds", "--json", cwd=store.path).stdout)
    assert (held["reason"], held["until"]) == ("thesis", None)


def test_a_hold_that_has_ended_is_not_replaced(store: JobStore, run_cli: RunCli) -> None:
    run_cli("hold", "a", "--reason", "paper", cwd=store.path)
    store.sql("UPDATE cleanup_holds SET until = '2020-01-01 00:00:00'")
    held = json.loads(run_cli("hold", "a", "--json", cwd=store.path).stdout)
    assert (held["replaced"], held["reason"]) == (None, "no reason given")


def test_until_and_for_are_one_option(store: JobStore, run_cli: RunCli) -> None:
    done = run_cli("hold", "a", "--until", "2099-01-01", "--for", "7d", cwd=store.path)
    assert done.returncode == 2
    assert json.loads(run_cli("holds", "--json", cwd=store.path).stdout) == []


def test_release_says_which_hold_it_removed(store: JobStore, run_cli: RunCli) -> None:
    run_cli("hold", "a", "--reason", "paper", cwd=store.path)
    done = json.loads(run_cli("release", "a", "--json", cwd=store.path).stdout)
    assert (done["was_held"], done["removed"]["reason"], done["removed"]["until"]) == (True, "paper", None)
    again = json.loads(run_cli("release", "a", "--json", cwd=store.path).stdout)
    assert (again["was_held"], again["removed"]) == (False, None)
