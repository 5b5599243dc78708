"""An error names the path as the operator knows it, and where the file is now."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from eemtcleanupd.errors import RootError
from eemtcleanupd.events import Event, RunFailed, RunStarted
from tests.cleanup.conftest import JobStore
from tests.cleanup.test_recovery import run_and_die
from tests.conftest import immutable
from tests.requirements import needs

pytestmark = pytest.mark.root


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "store")


@pytest.fixture
def stuck_file(store: JobStore) -> Iterator[Path]:
    """A file that root cannot delete, two folders below the results of a job."""
    store.job("a", files=0)
    file = store.results("a") / "global" / "monthly" / "total_sun.tif"
    file.parent.mkdir(parents=True)
    file.write_text("data")
    with immutable(file, root=store.path):
        yield file


def test_every_run_names_the_old_and_the_present_path(store: JobStore, stuck_file: Path) -> None:
    for known in (r"results/a/global/monthly/total_sun\.tif: ", r"results/a/…/total_sun\.tif: "):
        (note,) = store.run().failures
        assert re.match(known, note.message)
        (place,) = re.findall(rf"{store.path}[^)]*", note.message)
        assert Path(place).read_text() == "data"
        store.now += timedelta(days=1)


def test_a_file_directly_in_the_results_is_named_too(store: JobStore) -> None:
    store.job("b", files=0)
    file = store.results("b") / "x.tif"
    file.parent.mkdir()
    file.write_text("data")
    with immutable(file, root=store.path):
        (note,) = store.run().failures
        assert note.message.startswith("results/b/x.tif: ")
        (place,) = re.findall(rf"{store.path}[^)]*", note.message)
        assert Path(place).read_text() == "data"


def test_an_artifact_that_cannot_be_moved_is_named_with_its_folder(store: JobStore) -> None:
    store.job("c", files=1)
    folder = store.results("c")
    with immutable(folder, root=store.path):
        (note,) = store.run().failures
        assert "results/c/" in note.message
        assert folder.exists()


@pytest.fixture
def mount() -> Iterator[Callable[..., None]]:
    """Mount a filesystem until the test is over."""
    with ExitStack() as stack:

        def mount(*options: str | Path) -> None:
            subprocess.run(["mount", *options], check=True)
            unmount = ["umount", "--lazy", str(options[-1])]
            stack.callback(subprocess.run, unmount, check=False, capture_output=True)

        yield mount


def test_a_folder_that_cannot_be_listed_any_more_ends_the_run_with_a_message(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.job("a")
    listing = os.scandir

    def fail(event: Event) -> None:
        if isinstance(event, RunStarted):
            monkeypatch.setattr(os, "scandir", refuse)

    def refuse(folder: int | str) -> object:
        if isinstance(folder, str):
            return listing(folder)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(RootError, match="Input/output error"):
        store.run(on_event=fail)
    monkeypatch.undo()
    assert len(store.of(RunFailed)) == 1
    assert store.sql("SELECT outcome FROM cleanup_runs") == [("failed",)]
    assert store.run().successful.jobs == 1


def make_image(image: Path, mount: Callable[..., None], place: Path) -> Path:
    """Mount a new filesystem that notices damage."""
    if not Path("/dev/loop-control").exists():
        pytest.skip("needs loop devices")
    image.write_bytes(bytes(1 << 22))
    subprocess.run(["mkfs.ext4", "-q", "-O", "metadata_csum", image], check=True)
    mount("-o", "loop", image, place)
    return image


def damage(image: Path, files: Sequence[Path], mount: Callable[..., None]) -> None:
    """Damage files of a mounted image, so that they cannot be read any more."""
    inodes = [file.stat().st_ino for file in files]
    subprocess.run(["sync", "-f", files[0]], check=True)
    subprocess.run(["umount", files[0].parent], check=True)
    # A copy, because another mount namespace, such as that of another test, can still have the image mounted.
    copy = image.with_suffix(".damaged")
    shutil.copyfile(image, copy)
    for inode in inodes:
        change = ["debugfs", "-w", "-R", f"set_inode_field <{inode}> checksum 1", str(copy)]
        subprocess.run(change, check=True, capture_output=True)
    mount("-o", "loop", copy, files[0].parent)
    with pytest.raises(OSError, match="Bad message"):
        files[0].stat()


@needs("mkfs.ext4", "debugfs")
def test_an_upload_that_the_disk_has_damaged_keeps_its_job_and_no_other(
    store: JobStore, tmp_path: Path, mount: Callable[..., None]
) -> None:
    image = make_image(tmp_path / "image", mount, store.path / "uploads")
    damage(image, [store.upload(name) for name in ("a.tif", "orphan.tif")], mount)
    store.job("a", dem="a.tif")
    store.job("b")
    assert store.run(dry_run=True).successful.jobs == 1
    report = store.run(orphans__delete_after_hours=1)
    assert (report.outcome, [note.job_id for note in report.failures]) == ("errors", ["a"])
    assert "uploads/a.tif" in report.failures[0].message
    assert store.cleaned() == {"b"}
    assert store.results("a").exists()
    assert store.sql("SELECT * FROM cleanup_intents") == []


@needs("mkfs.ext4", "debugfs")
def test_a_damaged_upload_gives_away_no_copy_in_the_trash_that_its_job_needs(
    store: JobStore, tmp_path: Path, mount: Callable[..., None]
) -> None:
    image = make_image(tmp_path / "image", mount, store.path / "uploads")
    store.job("a", dem="a.tif")
    store.upload("a.tif").write_bytes(b"intact")
    store.run(trash__grace_hours=1)
    store.sql("UPDATE jobs SET status = 'running', completed_at = NULL, data_cleaned_at = NULL")
    store.results("a").mkdir()
    damage(image, [store.upload("a.tif")], mount)
    store.now += timedelta(hours=2)
    assert store.run(trash__grace_hours=1).trash_purged.jobs == 0
    (copy,) = (store.path / "uploads/.eemtcleanupd-trash").glob("*/a.tif")
    assert copy.read_bytes() == b"intact"


def test_a_job_that_the_disk_does_not_take_back_is_an_error_until_it_does(
    store: JobStore, mount: Callable[..., None]
) -> None:
    results = store.path / "results"
    mount("-t", "tmpfs", "tmpfs", results)
    store.job("a")
    assert run_and_die(store, lambda: any(results.glob(".eemtcleanupd-trash/*/a")))
    subprocess.run(["mount", "-o", "remount,ro", results], check=True)
    report = store.run()
    assert (report.outcome, [note.job_id for note in report.failures]) == ("errors", ["a"])
    assert store.cleaned() == set()
    subprocess.run(["mount", "-o", "remount,rw", results], check=True)
    assert store.run().outcome == "success"
    assert store.cleaned() == {"a"}
