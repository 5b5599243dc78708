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
    """Stages, dooms and removes entries of the root as one item."""

    def __call__(
        self, *names: str, workers: int = 4, stop: StopFlag | None = None, queue_limit: int = 4096
    ) -> RemovalResult: ...


@pytest.fixture(autouse=True)
def _root_when_needed(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs to run as root")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    """An empty root; what a test leaves in its folder may be too deep for pytest to remove."""
    (tmp_path / "results").mkdir()
    opened = open_root(RootName.RESULTS, tmp_path / "results")
    yield opened
    opened.close()
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


@pytest.fixture
def trash(root: Root) -> Iterator[Trash]:
    """The root's trash."""
    opened = Trash(root)
    yield opened
    opened.close()


@pytest.fixture
def remove(trash: Trash) -> Remove:
    """Remove entries of the root through the trash and a pool of their own."""

    def run(
        *names: str, workers: int = 4, stop: StopFlag | None = None, queue_limit: int = 4096
    ) -> RemovalResult:
        trash.stage("item", names)
        with DeletionPool(workers, stop or StopFlag(), queue_limit=queue_limit) as pool:
            return pool.remove(trash, trash.mark_deleting("item")).result(timeout=100)

    return run


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A folder outside the root that must be found untouched when the test ends."""
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
    """Run a script as an ordinary owner of its files: root without capabilities is one.

    The script sees ``argv`` as ``sys.argv[1:]``; what it prints is returned.
    """

    def run(script: str, *argv: str | Path) -> str:
        drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
        if drop and shutil.which("setpriv") is None:
            pytest.skip("there is no setpriv (util-linux)")
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
    """Return the bytes that trees occupy, each inode once, as du(1) counts them."""
    inodes = {}
    for place in places:
        found = [place] if place.is_symlink() else [place, *place.rglob("*")]
        for path in found:
            status = path.lstat()
            inodes[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(inodes.values())


def dig(start: Path, levels: int, name: str = "level") -> None:
    """Make a chain of folders below one, deeper than any path may be long; the last has a file."""
    fd = os.open(start, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom.log", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def open_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def fill(folder: Path, files: int) -> None:
    """Make a folder with so many empty files."""
    folder.mkdir(parents=True)
    for number in range(files):
        (folder / f"{number}.tif").touch()


def doomed(trash: Trash, name: str) -> str:
    """Stage an entry of the trash's root and doom it; returns the item, which can be removed now."""
    trash.stage(name, [name])
    return trash.mark_deleting(name)


def servers(of: int | None = None) -> list[int]:
    """Return what forks the helpers of a process; other tests of this worker may have servers running."""
    return [
        child
        for child in _children(of or os.getpid())
        if b"deletion.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def helpers_of(of: int | None = None) -> list[int]:
    """Return the helpers of a process."""
    return [helper for server in servers(of) for helper in _children(server)]


def _children(of: int) -> list[int]:
    tasks = Path(f"/proc/{of}/task").iterdir()
    return [int(word) for task in tasks for word in (task / "children").read_text().split()]


def wait_until(condition: Callable[[], object]) -> None:
    """Return as soon as a condition holds, which must be within a minute."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)
