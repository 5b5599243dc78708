"""Big files are truncated gradually only while no other process has them open, and counted exactly."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.pool import DeletionPool, RemovalResult
from eemtcleanupd.deletion.rate_limit import RateLimits
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.model import TRASH_NAME
from tests.deletion.conftest import allocated

_MB = 1 << 20
Truncations = list[int]
RemoveJob = Callable[[], RemovalResult]


@pytest.fixture
def truncations(monkeypatch: pytest.MonkeyPatch) -> Truncations:
    """The lengths that files are truncated to."""
    seen: list[int] = []
    real = os.ftruncate

    def ftruncate(fd: int, length: int) -> None:
        seen.append(length)
        real(fd, length)

    monkeypatch.setattr(os, "ftruncate", ftruncate)
    return seen


@pytest.fixture
def remove_job(trash: Trash) -> RemoveJob:
    """Remove ``job`` of the root with steps of 1 MB."""

    def remove() -> RemovalResult:
        trash.stage("item", ["job"])
        with DeletionPool(1, StopFlag(), limits=RateLimits(truncate_chunk_bytes=_MB)) as pool:
            return pool.remove(trash, trash.mark_deleting("item")).result(timeout=60)

    return remove


@pytest.fixture(params=["job", "job/in/folder"])
def big(root: Root, request: pytest.FixtureRequest) -> Path:
    """A file of 5 MB, as an artifact and deep in one."""
    path = root.path / str(request.param) / "big.tif" if "/" in request.param else root.path / "job"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(5 * _MB))
    return path


def test_a_big_file_is_truncated_in_steps_and_counted_completely(
    root: Root, big: Path, remove_job: RemoveJob, truncations: Truncations
) -> None:
    size = allocated(root.path / "job")
    removed = remove_job()
    assert (removed.complete, removed.files, removed.bytes_freed) == (True, 1, size)
    assert [length for length in truncations if length > 200] == [4 * _MB, 3 * _MB, 2 * _MB, _MB]
    assert os.listdir(root.path / TRASH_NAME) == []


def test_a_process_that_has_the_file_open_can_read_all_of_it(
    big: Path, remove_job: RemoveJob, truncations: Truncations
) -> None:
    content = big.read_bytes()
    with big.open("rb") as download:
        first = download.read(_MB)
        removed = remove_job()
        assert first + download.read() == content
    assert (removed.complete, removed.files) == (True, 1)
    assert not [length for length in truncations if length > 200]


def test_an_open_during_truncation_ends_the_steps(
    big: Path, remove_job: RemoveJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process can open the file through an O_PATH descriptor, which does not prevent the lease."""
    truncated: list[int] = []
    pin = os.open(big, os.O_PATH)
    real = os.ftruncate

    def ftruncate(fd: int, length: int) -> None:
        real(fd, length)
        if length > 200:
            truncated.append(length)
            with pytest.raises(BlockingIOError):
                os.open(f"/proc/self/fd/{pin}", os.O_RDONLY | os.O_NONBLOCK)

    monkeypatch.setattr(os, "ftruncate", ftruncate)
    removed = remove_job()
    os.close(pin)
    assert (removed.complete, removed.files, len(truncated)) == (True, 1, 1)


def test_an_inode_with_another_link_keeps_its_content(
    tmp_path: Path, big: Path, remove_job: RemoveJob, truncations: Truncations
) -> None:
    content = big.read_bytes()
    os.link(big, tmp_path / "kept")
    removed = remove_job()
    assert removed.complete
    assert (tmp_path / "kept").read_bytes() == content
    assert not [length for length in truncations if length > 200]


def test_a_link_to_a_big_file_is_not_followed(tmp_path: Path, root: Root, remove_job: RemoveJob) -> None:
    (tmp_path / "kept").write_bytes(os.urandom(3 * _MB))
    (root.path / "job").mkdir()
    (root.path / "job" / "link").symlink_to(tmp_path / "kept")
    assert remove_job().complete
    assert (tmp_path / "kept").stat().st_size == 3 * _MB


def test_a_file_under_truncation_cannot_be_renamed_through_an_open_folder(
    tmp_path: Path, root: Root, trash: Trash, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process in the job's folder can rename the files there, but not a file that was moved up."""
    folder = root.path / "job" / "folder"
    folder.mkdir(parents=True)
    (folder / "big").write_bytes(os.urandom(3 * _MB))
    inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    real = fcntl.fcntl
    leases = 0

    def lease(fd: int, command: int, *arguments: int) -> int:
        nonlocal leases
        if command == fcntl.F_SETLEASE:
            leases += 1
            with pytest.raises(FileNotFoundError):
                os.rename("big", tmp_path / "rescued", src_dir_fd=inside)
        return real(fd, command, *arguments)

    monkeypatch.setattr(fcntl, "fcntl", lease)
    trash.stage("item", ["job"])
    with DeletionPool(1, StopFlag(), limits=RateLimits(truncate_chunk_bytes=_MB)) as pool:
        assert pool.remove(trash, trash.mark_deleting("item")).result(timeout=60).complete
    os.close(inside)
    assert leases == 1


def test_a_long_sparse_file_takes_few_steps(
    root: Root, remove_job: RemoveJob, truncations: Truncations
) -> None:
    with (root.path / "job").open("wb") as file:
        file.write(os.urandom(2 * _MB))
        file.seek(1 << 40)
        file.write(b"end")
    assert remove_job().complete
    assert len([length for length in truncations if length > 200]) < 64


def test_without_a_lease_the_file_is_removed_by_one_unlink(
    big: Path, remove_job: RemoveJob, truncations: Truncations, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int, command: int, *_: object) -> int:
        assert command in {fcntl.F_SETSIG, fcntl.F_SETLEASE}
        raise OSError(22, "no leases here")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert remove_job().complete
    assert not [length for length in truncations if length > 200]


def test_a_stop_between_two_steps_leaves_the_rest_for_the_next_run_and_counts_the_freed_bytes(
    root: Root, trash: Trash, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = allocated(root.path / "job")
    stop = StopFlag()
    real = os.ftruncate

    def ftruncate(fd: int, length: int) -> None:
        real(fd, length)
        if length > 200:
            stop.set()

    monkeypatch.setattr(os, "ftruncate", ftruncate)
    trash.stage("item", ["job"])
    with DeletionPool(1, stop, limits=RateLimits(truncate_chunk_bytes=_MB)) as pool:
        first = pool.remove(trash, trash.mark_deleting("item")).result(timeout=60)
    assert (first.complete, first.files) == (False, 0)
    assert _MB <= first.bytes_freed < 2 * _MB
    with DeletionPool(1, StopFlag()) as pool:
        second = pool.remove(trash, "item.deleting").result(timeout=60)
    assert (second.complete, second.files) == (True, 1)
    assert first.bytes_freed + second.bytes_freed == size
