"""Real roots, trees and trash for the tests of deletion."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.pool import DeletionPool, RemovalResult
from eemtcleanupd.deletion.roots import Root, open_root
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.model import RootName

WithoutPrivileges = Callable[..., str]


class Remove(Protocol):
    """Stages and removes entries of the root as one item."""

    def __call__(
        self, *names: str, workers: int = 4, stop: StopFlag | None = None, queue_limit: int = 4096
    ) -> RemovalResult: ...


@pytest.fixture(autouse=True)
def _root_when_needed(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs to run as root")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    """An empty root; the trees that a test leaves there can be too deep for pytest to remove."""
    (tmp_path / "results").mkdir()
    opened = open_root(RootName.RESULTS, tmp_path / "results")
    yield opened
    opened.close()
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


@pytest.fixture
def mount_tmpfs() -> Iterator[Callable[[Path, str], None]]:
    """Mount a small filesystem on a folder, which is created, until the test is over."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> None:
        folder.mkdir(mode=0o700, parents=True)
        options = f"size={size},mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
        mounted.append(folder)

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def trash(root: Root) -> Iterator[Trash]:
    """The root's trash."""
    opened = Trash(root)
    yield opened
    opened.close()


@pytest.fixture
def remove(trash: Trash) -> Remove:
    """Remove entries of the root through the trash and a new pool."""

    def run(
        *names: str, workers: int = 4, stop: StopFlag | None = None, queue_limit: int = 4096
    ) -> RemovalResult:
        trash.stage("item", names)
        with DeletionPool(workers, stop or StopFlag(), queue_limit=queue_limit) as pool:
            return pool.remove(trash, trash.mark_deleting("item")).result(timeout=100)

    return run


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A folder outside the root that must be unchanged at the end of the test."""
    folder = tmp_path / "canary"
    folder.mkdir()
    (folder / "alive").write_text("tweet")
    before = folder.stat()
    yield folder
    assert (folder / "alive").read_text() == "tweet"
    after = folder.stat()
    assert (after.st_mode, after.st_nlink, after.st_mtime_ns) == (
        before.st_mode,
        before.st_nlink,
        before.st_mtime_ns,
    )


@pytest.fixture
def without_privileges() -> WithoutPrivileges:
    """Run a script as a user without privileges: root without capabilities is one.

    The script gets ``argv`` as ``sys.argv[1:]``; the function returns its output.
    """

    def run(script: str, *argv: str | Path) -> str:
        drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
        if drop and shutil.which("setpriv") is None:
            pytest.skip("setpriv (util-linux) is not installed")
        done = subprocess.run(
            [*drop, sys.executable, "-c", script, *map(str, argv)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def allocated(*places: Path) -> int:
    """Return the allocated bytes of trees, each inode once, as du(1) does."""
    inodes = {}
    for place in places:
        paths = [place] if place.is_symlink() else [place, *place.rglob("*")]
        for path in paths:
            status = path.lstat()
            inodes[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(inodes.values())


def dig(start: Path, levels: int, name: str = "level") -> None:
    """Create a chain of folders that can be longer than the longest path; the last one has a file."""
    fd = os.open(start, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        child = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = child
    os.close(os.open("bottom.log", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def open_descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def fill(folder: Path, files: int) -> None:
    """Create a folder with empty files."""
    folder.mkdir(parents=True)
    for number in range(files):
        (folder / f"{number}.tif").touch()


def stage_for_deletion(trash: Trash, name: str) -> str:
    """Stage an entry of the trash's root and start its deletion; return the item for the pool."""
    trash.stage(name, [name])
    return trash.mark_deleting(name)


def helper_servers(pid: int | None = None) -> list[int]:
    """Return the processes that fork the helpers of a process."""
    return [
        child
        for child in _children(pid or os.getpid())
        if b"deletion.helper_process" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def helpers_of(pid: int | None = None) -> list[int]:
    """Return the helpers of a process."""
    return [helper for server in helper_servers(pid) for helper in _children(server)]


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(word) for task in tasks for word in (task / "children").read_text().split()]


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for a condition, for at most a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
