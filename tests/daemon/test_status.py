"""The status file: its JSON form, when it is written, and what an invalid one means."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eemtcleanupd import __version__
from eemtcleanupd.daemon.status import (
    BEAT_SECONDS,
    DaemonStatus,
    RunStatus,
    StatusFile,
    read_status,
    time_with_distance,
)
from eemtcleanupd.model import Trigger
from eemtcleanupd.store.address import StoreAddress

NOW = datetime(2026, 6, 15, 12, 0, 0, 123456, tzinfo=UTC)
STATUS = DaemonStatus(
    pid=1,
    version=__version__,
    state="running",
    started_at=NOW,
    heartbeat_at=NOW,
    next_run_at=None,
    schedule=None,
    dry_run=False,
    run=RunStatus(Trigger.SCHEDULE, NOW, 1, 2, 3),
    config_file="/srv/\udcff.yaml",
    config_loaded_at=NOW,
    config_attempts=1,
    config_attempted_at=NOW,
    config_error=None,
    last_error=None,
    unresponsive=("slack",),
)


@pytest.fixture
def address(tmp_path: Path) -> StoreAddress:
    return StoreAddress.of_file(tmp_path / "jobs.db")


def test_the_status_is_read_as_it_was_written_even_with_a_path_that_is_not_utf8(
    address: StoreAddress,
) -> None:
    StatusFile(address).write(STATUS)
    assert read_status(address) == STATUS


def test_times_keep_their_offset_and_lists_their_form(address: StoreAddress) -> None:
    StatusFile(address).write(STATUS)
    document = json.loads(address.own_file("status.json").read_bytes())
    assert document["started_at"] == "2026-06-15T12:00:00.123456+00:00"
    assert document["run"]["trigger"] == "schedule"
    assert document["unresponsive"] == ["slack"]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"pid": 1}', "\x00", "[" * 100_000],
    ids=["empty", "list", "object", "part", "NUL", "deep"],
)
def test_an_invalid_file_is_no_status(address: StoreAddress, content: str) -> None:
    address.own_file("status.json").write_text(content)
    assert read_status(address) is None


def test_no_text_of_the_file_acts_on_a_terminal(address: StoreAddress) -> None:
    text = "\x1b[2J\ud800"
    assert STATUS.run is not None
    run = replace(STATUS.run, trigger=text)
    forged = replace(STATUS, state=text, schedule=text, run=run, config_error=f"a\n{text}", last_error=text)
    StatusFile(address).write(forged)
    status = read_status(address)
    assert status is not None
    assert status.summary().isprintable()
    assert f"{status.state}{status.schedule}".isprintable()
    assert status.config_error == f"a\n{status.state}"


def test_an_unchanged_status_is_written_again_only_when_the_file_is_old(address: StoreAddress) -> None:
    file = StatusFile(address)
    file.write(STATUS)
    file.write(replace(STATUS, heartbeat_at=NOW + timedelta(seconds=BEAT_SECONDS - 1)))
    assert read_status(address) == STATUS
    later = replace(STATUS, heartbeat_at=NOW + timedelta(seconds=BEAT_SECONDS))
    file.write(later)
    assert read_status(address) == later


@pytest.mark.parametrize(
    ("distance", "text"),
    [
        (timedelta(hours=5.2), "5 hours from now"),
        (timedelta(seconds=-2), "2 seconds ago"),
        (timedelta(days=-20), "20 days ago"),
    ],
)
def test_a_time_is_shown_with_its_distance(distance: timedelta, text: str) -> None:
    assert text in time_with_distance(NOW + distance, NOW)


def test_a_status_that_could_not_be_written_is_written_as_soon_as_that_is_possible(
    address: StoreAddress,
) -> None:
    path = address.own_file("status.json")
    path.mkdir()
    file = StatusFile(address)
    file.write(STATUS)
    path.rmdir()
    file.write(STATUS)
    assert read_status(address) == STATUS


def test_the_summary_of_a_recovery_run_counts_no_jobs() -> None:
    status = replace(STATUS, run=RunStatus(Trigger.RECOVERY, NOW, 0, 0, 0))
    assert "recovery" in status.summary()
    assert "0 of 0" not in status.summary()
