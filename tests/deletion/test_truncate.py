"""Big files in steps: only while nobody else has them open, and counted to the byte."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion import truncate as steps
from eemtcleanupd.deletion.pool import DeletionPool, RemovalResult
from eemtcleanupd.deletion.rate_limit import RateLimits
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.model import TRASH_NAME
from tests.deletion.conftest import allocated

_MB = 1 << 20
Truncations = list[int]
Go = Callable[[], RemovalResult]


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
def go(trash: Trash) -> Go:
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


def test_a_big_file_goes_in_steps_and_is_counted_whole(
    root: Root, big: Path, go: Go, truncations: Truncations
) -> None:
    size = allocated(root.path / "job")
    removed = go()
    assert (removed.complete, removed.files, removed.bytes_freed) == (True, 1, size)
    assert [length for length in truncations if length > 200] == [4 * _MB, 3 * _MB, 2 * _MB, _MB]
    assert os.listdir(root.path / TRASH_NAME) == []


def test_who_has_the_file_open_reads_it_to_its_end(big: Path, go: Go, truncations: Truncations) -> None:
    content = big.read_bytes()
    with big.open("rb") as download:
        first = download.read(_MB)
        removed = go()
        assert first + download.read() == content
    assert (removed.complete, removed.files) == (True, 1)
    assert not [length for length in truncations if length > 200]


def test_who_comes_to_open_it_meanwhile_ends_the_steps(
    big: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As through a descriptor of it that does no harm by itself (O_PATH), which no path rule keeps out."""
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
    removed = go()
    os.close(pin)
    assert (removed.complete, removed.files, len(truncated)) == (True, 1, 1)


def test_an_inode_with_another_link_keeps_its_content(
    tmp_path: Path, big: Path, go: Go, truncations: Truncations
) -> None:
    content = big.read_bytes()
    os.link(big, tmp_path / "kept")
    removed = go()
    assert removed.complete
    assert (tmp_path / "kept").read_bytes() == content
    assert not [length for length in truncations if length > 200]


def test_a_link_to_a_big_file_is_not_followed(tmp_path: Path, root: Root, go: Go) -> None:
    (tmp_path / "kept").write_bytes(os.urandom(3 * _MB))
    (root.path / "job").mkdir()
    (root.path / "job" / "link").symlink_to(tmp_path / "kept")
    assert go().complete
    assert (tmp_path / "kept").stat().st_size == 3 * _MB


def test_a_name_that_somebody_moves_the_file_to_by_a_folder_kept_open_is_no_way_to_empty_it(
    tmp_path: Path, root: Root, trash: Trash, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell that stands in the job's folder can still rename what is in it, until the file is moved up."""
    folder = root.path / "job" / "folder"
    folder.mkdir(parents=True)
    (folder / "big").write_bytes(os.urandom(3 * _MB))
    inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    real = steps._take_lease

    def lease(fd: int) -> bool:
        with pytest.raises(FileNotFoundError):
            os.rename("big", tmp_path / "rescued", src_dir_fd=inside)
        return real(fd)

    monkeypatch.setattr(steps, "_lease", lease)
    trash.stage("item", ["job"])
    with DeletionPool(1, StopFlag(), limits=RateLimits(truncate_chunk_bytes=_MB)) as pool:
        assert pool.remove(trash, trash.mark_deleting("item")).result(timeout=60).complete
    os.close(inside)


def test_a_file_with_holes_takes_few_steps_however_long_it_is(
    root: Root, go: Go, truncations: Truncations
) -> None:
    with (root.path / "job").open("wb") as file:
        file.write(os.urandom(2 * _MB))
        file.seek(1 << 40)
        file.write(b"end")
    assert go().complete
    assert len([length for length in truncations if length > 200]) < 64


def test_without_a_lease_it_goes_by_one_unlink(
    big: Path, go: Go, truncations: Truncations, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int, command: int, *_: object) -> int:
        assert command in {fcntl.F_SETSIG, fcntl.F_SETLEASE}
        raise OSError(22, "no leases here")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert go().complete
    assert not [length for length in truncations if length > 200]


def test_a_stop_between_two_steps_leaves_the_rest_for_the_next_run_and_counts_what_went(
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
