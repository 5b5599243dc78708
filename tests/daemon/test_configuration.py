"""That a change of the file is noticed, however it is made, and that looking at it is no change."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from pathlib import Path

import pytest

from eemtcleanupd.daemon.config_reload import FileWatch, _HintHandler
from eemtcleanupd.daemon.messages import ConfigFileChanged, Message
from tests.daemon.conftest import HEAD, Living


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
    """Do as the kubelet does: a new folder, and one rename of the link that all files lead through."""
    new = file.parent / "..2026_new"
    new.mkdir()
    (new / file.name).write_text("retention: {failed_jobs: {hours: 5}}")
    (file.parent / "..data_tmp").symlink_to(new.name)
    (file.parent / "..data_tmp").replace(file.parent / "..data")


def settled_to_hours(living: Living) -> float:
    """Let a second pass, in which nothing more happens to the file, and return what is in force."""
    living.elapsed += 1
    return living.daemon.config.retention.failed_jobs.hours


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a ConfigMap is mounted: the file leads through ``..data``."""
    old = tmp_path / "..2026_old"
    old.mkdir()
    (old / "cleanup_config.yaml").write_text("dry_run: false")
    (tmp_path / "..data").symlink_to(old.name)
    return tmp_path


@pytest.mark.parametrize("change", [rename_over, write_in_place, move_away_and_write, swap_config_map])
def test_every_way_to_change_the_file_is_noticed(folder: Path, change: Callable[[Path], None]) -> None:
    file = folder / "cleanup_config.yaml"
    if change is swap_config_map:
        file.symlink_to("..data/cleanup_config.yaml")
    else:
        file.write_text("dry_run: false")
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    watch = FileWatch(file, inbox.put)
    try:
        change(file)
        assert inbox.get(timeout=10) == ConfigFileChanged()
    finally:
        watch.close()


def test_reading_the_file_and_writing_others_beside_it_is_no_change(tmp_path: Path) -> None:
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
        write_in_place(file)  # the events come in order: what is first in the inbox came of this
        inbox.get(timeout=10)
        read_before = file.read_text()
    finally:
        watch.close()
    assert read_before.startswith("retention")


def test_a_change_is_in_force_once_the_file_has_settled(living: Living) -> None:
    living.start("retention: {failed_jobs: {hours: 12}}")
    living.write("retention: {failed_jobs: {hours: 33}}")
    living.until(lambda: living.daemon._settling.seconds_left() is not None)
    assert living.daemon.config.retention.failed_jobs.hours == 12
    living.until(lambda: settled_to_hours(living) == 33)


def test_a_file_that_is_still_being_written_is_waited_for(living: Living) -> None:
    living.start("retention: {failed_jobs: {hours: 12}}")
    living.file.write_text(HEAD + "retention: {failed_jobs: {ho")
    living.until(lambda: living.daemon._settling.seconds_left() is not None)
    living.write("retention: {failed_jobs: {hours: 33}}")
    living.until(lambda: living.daemon._settling._digest == living.daemon._configuration.digest())
    living.until(lambda: settled_to_hours(living) == 33)
    assert living.status().config_error is None


def test_a_change_that_no_watcher_saw_is_found_by_the_slow_look(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_HintHandler, "on_any_event", lambda *_: None)
    living.start("retention: {failed_jobs: {hours: 12}}")
    living.write("retention: {failed_jobs: {hours: 33}}")
    for _ in range(3):
        living.pass_time(seconds=31)
    assert living.daemon.config.retention.failed_jobs.hours == 33


def test_a_folder_that_cannot_be_watched_is_warned_of_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    FileWatch(tmp_path / "gone" / "cleanup_config.yaml", inbox.put).close()
    assert "cannot be watched" in caplog.text
