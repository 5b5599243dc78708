"""The configuration file: changes are noticed however they are made, and reading is not a change."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from pathlib import Path

import pytest

from eemtcleanupd.daemon.config_reload import FileWatch
from eemtcleanupd.daemon.messages import Message, Notice
from tests.daemon.conftest import HEAD, DaemonHarness


def rename_over(file: Path) -> None:
    new = file.with_name(".cleanup_config.yaml.swp")
    new.write_text("retention: {failed_jobs: {hours: 5}}")
    new.replace(file)


def write_in_place(file: Path) -> None:
    file.write_text("retention: {failed_jobs: {hours: 5}}")


def move_away_and_write(file: Path) -> None:
    file.rename(file.with_name("cleanup_config.yaml~"))
    file.write_text("retention: {failed_jobs: {hours: 5}}")


def swap_config_map(file: Path) -> None:
    """Do as the kubelet does: make a new folder, and replace the link that all files go through."""
    new = file.parent / "..2026_new"
    new.mkdir()
    (new / file.name).write_text("retention: {failed_jobs: {hours: 5}}")
    (file.parent / "..data_tmp").symlink_to(new.name)
    (file.parent / "..data_tmp").replace(file.parent / "..data")


def settled_to_hours(daemon: DaemonHarness) -> float:
    """Let a second pass without another change, and return the value in force."""
    daemon.elapsed += 1
    return daemon.config.retention.failed_jobs.hours


def is_debouncing(daemon: DaemonHarness) -> bool:
    return daemon.seconds_to_wait() < 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like a mounted ConfigMap: the file is reached through ``..data``."""
    old = tmp_path / "..2026_old"
    old.mkdir()
    (old / "cleanup_config.yaml").write_text("dry_run: false")
    (tmp_path / "..data").symlink_to(old.name)
    return tmp_path


@pytest.mark.parametrize("change", [rename_over, write_in_place, move_away_and_write, swap_config_map])
def test_every_kind_of_change_of_the_file_is_noticed(folder: Path, change: Callable[[Path], None]) -> None:
    file = folder / "cleanup_config.yaml"
    if change is swap_config_map:
        file.symlink_to("..data/cleanup_config.yaml")
    else:
        file.write_text("dry_run: false")
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    watch = FileWatch(file, inbox.put)
    try:
        change(file)
        assert inbox.get(timeout=10) is Notice.CONFIG_FILE_CHANGED
    finally:
        watch.close()


def test_reading_the_file_and_writing_other_files_is_not_a_change(tmp_path: Path) -> None:
    file = tmp_path / "cleanup_config.yaml"
    file.write_text("dry_run: false")
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    watch = FileWatch(file, inbox.put)
    try:
        for _ in range(3):
            file.read_text()
            (tmp_path / "jobs.db-journal").write_text("busy")
            (tmp_path / "jobs.db-journal").unlink()
        os.utime(tmp_path)
        write_in_place(file)  # the events come in order, so this causes the first message
        inbox.get(timeout=10)
        read_before = file.read_text()
    finally:
        watch.close()
    assert read_before.startswith("retention")


def test_a_change_is_in_force_when_the_file_has_been_quiet_for_a_moment(daemon: DaemonHarness) -> None:
    daemon.start("retention: {failed_jobs: {hours: 12}}")
    daemon.write("retention: {failed_jobs: {hours: 33}}")
    daemon.until(lambda: is_debouncing(daemon))
    assert daemon.config.retention.failed_jobs.hours == 12
    daemon.until(lambda: settled_to_hours(daemon) == 33)


def test_an_incomplete_file_is_not_loaded_while_it_is_being_written(daemon: DaemonHarness) -> None:
    daemon.start("retention: {failed_jobs: {hours: 12}}")
    daemon.file.write_text(HEAD + "retention: {failed_jobs: {ho")
    daemon.until(lambda: is_debouncing(daemon))
    daemon.write("retention: {failed_jobs: {hours: 33}}")
    daemon.until(lambda: settled_to_hours(daemon) == 33)
    assert daemon.status().config_error is None


def test_a_change_that_the_watch_misses_is_found_by_comparing_the_content(daemon: DaemonHarness) -> None:
    """The watch does not see a change of the file that a link points to."""
    target = daemon.store.path / "elsewhere" / "linked.yaml"
    target.parent.mkdir()
    target.write_text(f"{HEAD}retention: {{failed_jobs: {{hours: 12}}}}")
    daemon.file.symlink_to(target)
    daemon.start()
    target.write_text(f"{HEAD}retention: {{failed_jobs: {{hours: 33}}}}")
    for _ in range(3):
        daemon.pass_time(seconds=31)
    assert daemon.config.retention.failed_jobs.hours == 33


def test_a_folder_that_cannot_be_watched_causes_only_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    file = tmp_path / "missing" / "cleanup_config.yaml"
    FileWatch(file, inbox.put).close()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(file) in record.getMessage()
