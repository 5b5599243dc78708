"""Removal of hostile trees, mostly through the trash and the pool, as a run does."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion import tree as module
from eemtcleanupd.deletion.pool import DeletionPool
from eemtcleanupd.deletion.rate_limit import DeletionControls, RateLimits
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.deletion.tree import FolderTask, Shard, empty_folder
from eemtcleanupd.model import TRASH_NAME
from tests.conftest import immutable
from tests.deletion.conftest import Remove, WithoutPrivileges, allocated, dig, open_descriptors

_REMOVE = """
import sys
from pathlib import Path
from eemtcleanupd.deletion.pool import DeletionPool
from eemtcleanupd.deletion.roots import open_root
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.model import RootName
from eemtcleanupd.cancellation import StopFlag
root = open_root(RootName.RESULTS, Path(sys.argv[1]))
trash = Trash(root)
trash.stage("item", ["job"])
with DeletionPool(2, StopFlag()) as pool:
    removed = pool.remove(trash, trash.mark_deleting("item")).result(timeout=60)
print(removed.complete, removed.error_count)
for error in removed.errors:
    print(error)
"""


def _left(root: Root) -> list[str]:
    """Return the names of all entries that are left in the trash."""
    names = []
    for _, folders, files in os.walk(root.path / TRASH_NAME):
        names += files + [name for name in folders if not name.endswith(".deleting")]
    return sorted(names)


def test_a_tree_is_removed_completely_and_nothing_else_is(root: Root, canary: Path, remove: Remove) -> None:
    job = root.path / "job"
    (job / "a" / "b").mkdir(parents=True)
    (job / "a" / "empty").mkdir()
    for name in (b"plain", b"new\nline", b"\xff\xfe", b"-rf", b"x" * 255, b"  ", b"*"):
        (job / "a" / "b" / os.fsdecode(name)).write_text("data")
    (job / "folder-link").symlink_to(canary)
    (job / "a" / "file-link").symlink_to(canary / "alive")
    (job / "a" / "dangling").symlink_to("nowhere")
    (job / "a" / "up").symlink_to("..")
    os.mkfifo(job / "fifo")
    if os.geteuid() == 0:
        os.mknod(job / "device", 0o600 | 0o020000, os.makedev(1, 3))
    (root.path / "neighbour").write_text("stays")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{root.fd}/job/socket")
        before = open_descriptors()
        removed = remove("job")
    assert open_descriptors() <= before
    assert removed.complete
    assert (removed.errors, removed.error_count) == ((), 0)
    assert (removed.files, removed.folders) == (7 + 6 + (os.geteuid() == 0), 4)
    assert _left(root) == []
    assert sorted(os.listdir(root.path)) == sorted([TRASH_NAME, "neighbour"])


def test_an_artifact_can_be_a_link_or_a_file(root: Root, canary: Path, remove: Remove) -> None:
    (root.path / "link").symlink_to(canary)
    (root.path / "upload.tif").write_bytes(b"x" * 5000)
    before = allocated(root.path / "link", root.path / "upload.tif")
    removed = remove("link", "upload.tif")
    assert (removed.complete, removed.files, removed.bytes_freed) == (True, 2, before)


@pytest.mark.slow
def test_three_thousand_levels_are_removed_with_few_descriptors(
    root: Root, without_privileges: WithoutPrivileges
) -> None:
    (root.path / "job").mkdir()
    dig(root.path / "job", 3000)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
    assert without_privileges(limited + _REMOVE, root.path) == "True 0\n"
    assert _left(root) == []


def test_a_folder_that_was_replaced_by_a_link_is_not_entered(root: Root, canary: Path) -> None:
    """The replacement happens after the folder was listed and before it is opened."""
    (root.path / "link").symlink_to(canary)
    moved_up: list[str] = []
    controls = DeletionControls(StopFlag())
    stats = empty_folder(
        root.fd,
        FolderTask("link", "job/folder", root.device),
        controls,
        lambda name, _: moved_up.append(name),
    )
    controls.close()
    assert (stats.files, stats.folders, stats.error_count, moved_up) == (1, 0, 0, [])
    assert not (root.path / "link").is_symlink()


def test_a_process_that_keeps_creating_files_cannot_block_a_run_forever(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root.path / "folder"
    folder.mkdir()
    rmdir = os.rmdir

    def create_and_rmdir(name: str, *, dir_fd: int) -> None:
        (folder / "new").write_text("")
        rmdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", create_and_rmdir)
    controls = DeletionControls(StopFlag())
    stats = empty_folder(root.fd, FolderTask("folder", "job", root.device), controls, lambda *_: None)
    controls.close()
    assert (stats.error_count, stats.folders) == (1, 0)
    assert stats.errors[0][:2] == ("job", "folder")


@given(of=st.integers(1, 5), files=st.integers(0, 40), folders=st.integers(0, 5))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_shards_of_a_folder_are_disjoint_and_complete(
    root: Root, monkeypatch: pytest.MonkeyPatch, of: int, files: int, folders: int
) -> None:
    monkeypatch.setattr(module, "STRIPE_INODES", 2)
    folder = root.path / "folder"
    folder.mkdir()
    for number in range(files):
        (folder / f"file-{number}").touch()
    expected = [0] * of
    for file in folder.iterdir():
        expected[file.stat().st_ino // 2 % of] += 1
    for number in range(folders):
        (folder / f"folder-{number}").mkdir()
    controls = DeletionControls(StopFlag())
    moved_up: list[str] = []
    results = [
        empty_folder(
            root.fd,
            FolderTask("folder", "", root.device, Shard(number, of)),
            controls,
            lambda name, _label: moved_up.append(name),
        )
        for number in range(of)
    ]
    controls.close()
    assert [stats.files for stats in results] == expected
    assert sum(stats.error_count for stats in results) == 0
    assert len(moved_up) == folders
    folder.rmdir()  # it is empty, and still there


def test_files_are_removed_in_batches_sorted_by_inode(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root.path / "folder"
    folder.mkdir()
    inodes = {}
    for number in range(300):
        (folder / f"file-{number}").touch()
        inodes[f"file-{number}"] = (folder / f"file-{number}").stat().st_ino
    unlink, removed = os.unlink, list[int]()

    def record(name: str, *, dir_fd: int) -> None:
        removed.append(inodes[name])
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", record)
    monkeypatch.setattr(module, "BATCH_ENTRIES", 100)
    controls = DeletionControls(StopFlag())
    empty_folder(root.fd, FolderTask("folder", "", root.device), controls, lambda *_: None)
    controls.close()
    assert len(removed) == 300
    assert all(removed[i : i + 100] == sorted(removed[i : i + 100]) for i in (0, 100, 200))


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize("mode", [0o000, 0o500, 0o300, 0o600])
def test_folders_of_this_user_are_removed_whatever_their_mode(
    root: Root, without_privileges: WithoutPrivileges, mode: int
) -> None:
    (root.path / "job" / "a" / "b").mkdir(parents=True)
    (root.path / "job" / "a" / "b" / "file").write_text("data")
    for folder in ("job/a/b", "job/a"):
        (root.path / folder).chmod(mode)
    assert without_privileges(_REMOVE, root.path) == "True 0\n"
    assert _left(root) == []


@pytest.mark.root
def test_a_folder_of_another_user_stays_and_its_siblings_are_removed(
    root: Root, without_privileges: WithoutPrivileges
) -> None:
    for name in ("a", "theirs", "z"):
        (root.path / "job" / name).mkdir(parents=True)
        for number in range(30):
            (root.path / "job" / name / f"{name}{number}").write_text("")
    os.chown(root.path / "job" / "theirs", 12345, 12345)
    (root.path / "job" / "theirs").chmod(0o555)
    output = without_privileges(_REMOVE, root.path).splitlines()
    assert output[0].split()[0] == "False"
    assert int(output[0].split()[1]) >= 1
    assert 1 <= len(output) - 1 <= 20
    assert all("theirs" in line for line in output[1:])
    assert all(name.startswith("theirs") for name in _left(root) if not name.startswith("job"))
    assert len([name for name in _left(root) if name.startswith("theirs") and name != "theirs"]) == 30


@pytest.fixture
def stuck_files(root: Root) -> Iterator[list[Path]]:
    """Files in ``job/sub`` that not even root can remove until the test ends."""
    folder = root.path / "job" / "sub"
    folder.mkdir(parents=True)
    files = [folder / f"stuck{number:02}" for number in range(25)]
    for file in files:
        file.write_text("data")
    with immutable(*files, root=root.path):
        yield files


@pytest.mark.root
@pytest.mark.parametrize("queue_limit", [0, 4096])
def test_paths_that_cannot_be_removed_are_named_and_the_rest_is_removed(
    root: Root, remove: Remove, stuck_files: list[Path], queue_limit: int
) -> None:
    """Without a queue, most folders are found only after the first error."""
    for number in range(50):
        (root.path / "job" / f"d{number}" / "deeper" / "still").mkdir(parents=True)
        (root.path / "job" / f"d{number}" / "deeper" / "still" / "file").write_text("data")
        (root.path / "job" / "sub" / f"loose{number}").write_text("data")
    removed = remove("job", queue_limit=queue_limit)
    assert not removed.complete
    assert (removed.files, removed.folders) == (100, 151)
    assert removed.error_count == 25
    assert len(removed.errors) == 20
    if queue_limit:
        assert all(label.startswith("job/sub/stuck") for label, _, _ in removed.errors)
    for _, place, _ in removed.errors:
        assert (root.path / TRASH_NAME / "item.deleting" / place).exists()
    assert [name for name in _left(root) if name.startswith(("stuck", "loose", "file"))] == [
        file.name for file in stuck_files
    ]


@pytest.mark.root
def test_a_mount_inside_is_not_entered_and_the_rest_is_removed(root: Root, canary: Path) -> None:
    for name in ("a", "bind", "tmpfs", "z"):
        (root.path / "job" / "sub" / name).mkdir(parents=True)
        (root.path / "job" / "sub" / name / "file").write_text("data")
    shell = (
        'mount --bind "$2" "$1/job/sub/bind"; mount -t tmpfs none "$1/job/sub/tmpfs"\n'
        'touch "$1/job/sub/tmpfs/inside"; "$0" -c "$3" "$1"\n'
        'find "$1" -name inside | wc -l; find "$1" -name alive | wc -l'
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-ec", shell, sys.executable, root.path, canary, _REMOVE],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    output = done.stdout.splitlines()
    assert output[0].startswith("False")
    assert output[-2:] == ["1", "1"]
    assert any("job/sub/bind" in line for line in output)
    assert any("job/sub/tmpfs" in line for line in output)
    # Outside the namespace, the folders that the mounts covered are visible.
    assert [name for name in _left(root) if name in {"a", "z"}] == []


_shape = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 20_000), st.booleans()), min_size=1, max_size=40
)


@given(shape=_shape, links=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 5)), max_size=30))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
def test_the_freed_bytes_equal_the_allocated_bytes(
    root: Root,
    trash: Trash,
    shape: list[tuple[int, int, bool]],
    links: list[tuple[int, int]],
) -> None:
    """An inode with several links counts when the last one is removed, by any of eight workers."""
    jobs = [root.path / f"job{number}" for number in range(6)]
    outside = root.path / "outside"
    for folder in (*jobs, outside):
        (folder / "sub").mkdir(parents=True, exist_ok=True)
    files = []
    for number, (owner, size, is_kept) in enumerate(shape):
        file = jobs[owner] / "sub" / f"file{number}"
        file.write_bytes(b"x" * size)
        files.append(file)
        if is_kept:
            os.link(file, outside / f"file{number}")
    for number, (source, owner) in enumerate(links):
        os.link(files[source % len(files)], jobs[owner] / f"link{number}")
    expected = allocated(*jobs, outside) - allocated(outside)
    with DeletionPool(8, StopFlag()) as pool:
        futures = []
        for job in jobs:
            trash.stage(job.name, [job.name])
            futures.append(pool.remove(trash, trash.mark_deleting(job.name)))
        removed = [future.result(timeout=60) for future in futures]
    assert all(result.complete for result in removed)
    assert sum(result.bytes_freed for result in removed) == expected
    assert pool.bytes_freed == expected
    assert pool.files == sum(result.files for result in removed) == len(shape) + len(links)
    subprocess.run(["rm", "-rf", outside], check=True)


def test_a_hundred_links_in_as_many_folders_count_once(root: Root, remove: Remove) -> None:
    for number in range(100):
        (root.path / "job" / f"d{number}").mkdir(parents=True)
    first = root.path / "job" / "d0" / "raster"
    first.write_bytes(b"x" * 100_000)
    for number in range(1, 100):
        os.link(first, root.path / "job" / f"d{number}" / "raster")
    before = allocated(root.path / "job")
    assert remove("job", workers=8).bytes_freed == before


def test_what_moves_up_from_a_folder_of_others_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of the store can enter the item, but not every folder of root below it."""
    private = tmp_path / "private"
    (private / "folder").mkdir(parents=True)
    (private / "folder/big").write_bytes(b"x" * (2 << 20))
    seen = {}
    rename = os.rename

    def watched(source: str, target: str, **folders: int) -> None:
        seen[source] = stat.S_IMODE(os.stat(source, dir_fd=folders["src_dir_fd"]).st_mode)
        rename(source, target, **folders)

    monkeypatch.setattr(os, "rename", watched)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    tasks = [("private", "private")]
    item_fd = os.open(tmp_path, os.O_RDONLY)
    with closing(DeletionControls(StopFlag())) as controls:
        controls.apply(RateLimits(truncate_chunk_bytes=1 << 20))
        while tasks:
            empty_folder(
                item_fd,
                FolderTask(*tasks.pop(), os.fstat(item_fd).st_dev),
                controls,
                lambda *task: tasks.append(task),
            )
    os.close(item_fd)
    assert seen == {"folder": 0o700, "big": 0o600}
    assert not any(tmp_path.iterdir())
