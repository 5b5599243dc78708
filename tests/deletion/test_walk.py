from __future__ import annotations

import os
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.walk import Folder, Measured, measure, walk
from tests.deletion.conftest import WithoutPrivileges, allocated, dig, open_descriptors


def _walked(root: Root, name: str) -> tuple[set[str], int]:
    seen: list[str] = []
    errors = walk(root, name, lambda folder, entry: seen.append(f"{folder.path}/{entry.name}"))
    assert len(seen) == len(set(seen))
    return set(seen), errors


def test_every_entry_is_visited_once_and_no_link_is_followed(root: Root, canary: Path) -> None:
    job = root.path / "job"
    (job / "a" / "b").mkdir(parents=True)
    (job / "empty").mkdir()
    for path in ("top", "a/f", "a/b/new\nline", os.fsdecode(b"a/b/\xff")):
        (job / path).write_text("")
    (job / "link").symlink_to(canary)
    os.mkfifo(job / "fifo")
    expected = {"top", "a/f", "a/b/new\nline", os.fsdecode(b"a/b/\xff"), "link", "fifo"}
    assert _walked(root, "job") == ({f"job/{path}" for path in expected}, 0)
    (root.path / "way-in").symlink_to(canary)
    assert _walked(root, "way-in") == (set(), 0)
    assert _walked(root, "missing") == (set(), 0)


@pytest.mark.slow
def test_three_thousand_levels_need_few_descriptors_and_are_walked_back_up(root: Root) -> None:
    """Some levels have a sibling that is entered only on the way back up."""
    job = root.path / "job"
    job.mkdir()
    dig(job, 3000)
    for level in range(0, 300, 3):
        (job.joinpath(*["level"] * level) / "sibling").mkdir()
        (job.joinpath(*["level"] * level) / "sibling" / f"file{level}").write_text("")
    before, most, depth = open_descriptors(), 0, 0

    def enter(folder: Folder) -> None:
        nonlocal most
        most = max(most, open_descriptors())

    def visit(folder: Folder, entry: os.DirEntry[str]) -> None:
        nonlocal depth
        depth = max(depth, len(folder.parts))
        names.add(entry.name)

    names: set[str] = set()
    assert walk(root, "job", visit, enter=enter) == 0
    assert names == {"bottom.log", *(f"file{level}" for level in range(0, 300, 3))}
    assert depth == 3001
    assert most - before < 100
    assert open_descriptors() == before


@pytest.mark.slow
def test_memory_does_not_grow_with_the_folders_in_a_folder(root: Root) -> None:
    (root.path / "job").mkdir()
    for number in range(5000):
        (root.path / "job" / f"folder-with-a-name-of-its-own-{number}").mkdir()
    tracemalloc.start()
    try:
        walk(root, "job", lambda *_: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_a_folder_that_is_moved_away_during_the_walk_ends_it_with_an_error(root: Root, canary: Path) -> None:
    """At 40 levels the first folders are closed; ``..`` must not lead to the new place of the folder."""
    job = root.path / "job"
    job.mkdir()
    dig(job, 40)
    (job / "level" / "sibling").mkdir()
    (job / "level" / "sibling" / "late").write_text("")
    seen = []

    def visit(folder: Folder, entry: os.DirEntry[str]) -> None:
        seen.append(entry.name)
        if entry.name == "bottom.log":
            (job / "level" / "level").rename(canary.parent / "elsewhere")

    before = open_descriptors()
    assert walk(root, "job", visit) == 1
    assert "bottom.log" in seen
    assert open_descriptors() == before


def test_an_unreadable_folder_is_an_error_and_its_siblings_are_walked(
    root: Root, without_privileges: WithoutPrivileges
) -> None:
    for name in ("a", "b", "c"):
        (root.path / "job" / name).mkdir(parents=True)
        (root.path / "job" / name / "file").write_text("")
    (root.path / "job" / "b").chmod(0)
    script = (
        "import sys; from pathlib import Path\n"
        "from eemtcleanupd.deletion.roots import open_root\n"
        "from eemtcleanupd.deletion.walk import walk\n"
        "from eemtcleanupd.model import RootName\n"
        "seen = []\n"
        "errors = walk(open_root(RootName.RESULTS, Path(sys.argv[1])), 'job',"
        " lambda folder, entry: seen.append(folder.path))\n"
        "print(errors, sorted(seen))\n"
    )
    try:
        assert without_privileges(script, root.path) == "1 ['job/a', 'job/c']\n"
    finally:
        (root.path / "job" / "b").chmod(0o700)  # an ordinary user could not remove it


@pytest.mark.root
def test_another_filesystem_is_not_entered(root: Root) -> None:
    (root.path / "job" / "mount").mkdir(parents=True)
    (root.path / "job" / "file").write_text("")
    script = (
        "import sys; from pathlib import Path\n"
        "from eemtcleanupd.deletion.roots import open_root\n"
        "from eemtcleanupd.deletion.walk import walk\n"
        "from eemtcleanupd.model import RootName\n"
        "seen = []\n"
        "walk(open_root(RootName.RESULTS, Path(sys.argv[1])), 'job', lambda f, e: seen.append(e.name))\n"
        "print(seen)\n"
    )
    shell = 'mount -t tmpfs none "$1/job/mount" && touch "$1/job/mount/inside" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, "sh", root.path, sys.executable, script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == "['file']\n"


def test_the_measured_size_is_the_allocated_space(root: Root) -> None:
    job = root.path / "job"
    (job / "d").mkdir(parents=True)
    (job / "d" / "raster").write_bytes(b"x" * 10_000)
    (job / "sparse").touch()
    os.truncate(job / "sparse", 1 << 30)
    (job / "link").symlink_to("/etc")
    newest = 4_000_000_000
    os.utime(job / "d" / "raster", (newest, newest))
    assert measure(root, "job", StopFlag()) == Measured(allocated(job), 3, float(newest), 0)


def test_hard_links_share_their_size(root: Root) -> None:
    for name in ("a", "b"):
        (root.path / name).mkdir()
    (root.path / "a" / "raster").write_bytes(b"x" * 8192)
    os.link(root.path / "a" / "raster", root.path / "b" / "raster")
    os.link(root.path / "a" / "raster", root.path / "upload")
    os.link(root.path / "a" / "raster", root.path / "a" / "twin")
    sizes = [measure(root, name, StopFlag()) for name in ("a", "b", "upload")]
    assert sum(size.bytes for size in sizes) == allocated(*(root.path / n for n in ("a", "b", "upload")))
    assert [size.files for size in sizes] == [2, 1, 1]


def test_a_missing_entry_has_no_size_and_a_socket_is_counted(root: Root) -> None:
    assert measure(root, "missing", StopFlag()) == Measured()
    (root.path / "job").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{root.fd}/job/socket")
    assert measure(root, "job", StopFlag()).files == 1


def test_a_stop_ends_the_walk(root: Root) -> None:
    (root.path / "job").mkdir()
    for number in range(10):
        (root.path / "job" / f"{number}").write_text("")
    stop, seen = StopFlag(), []

    def visit(folder: Folder, entry: os.DirEntry[str]) -> None:
        seen.append(entry.name)
        stop.set()

    walk(root, "job", visit, stop=stop)
    assert len(seen) == 1
