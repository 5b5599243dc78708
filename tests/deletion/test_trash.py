from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.trash import Trash, deleting_name, group_name
from eemtcleanupd.errors import LockHeldError, RootError
from eemtcleanupd.model import TRASH_NAME


def _tree(place: Path) -> dict[str, str]:
    return {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()}


def test_the_trash_is_a_private_folder_in_the_root(root: Root, trash: Trash) -> None:
    status = (root.path / TRASH_NAME).lstat()
    assert status.st_mode == 0o040700
    assert os.path.samestat(status, os.fstat(trash.fd))


def test_only_one_run_at_a_time_holds_the_trash(root: Root, trash: Trash) -> None:
    with pytest.raises(LockHeldError, match="results"):
        Trash(root)
    trash_fd, trash.fd = trash.fd, os.open("/", os.O_RDONLY)
    os.close(trash_fd)  # the run ended or was killed
    Trash(root).close()


def test_a_trash_that_other_users_could_change_is_refused(root: Root, canary: Path) -> None:
    place = root.path / TRASH_NAME
    place.symlink_to(canary)
    with pytest.raises(RootError, match=TRASH_NAME):
        Trash(root)
    place.unlink()
    place.write_text("")
    with pytest.raises(RootError, match=TRASH_NAME):
        Trash(root)
    place.unlink()
    place.mkdir()
    for mode in (0o720, 0o702):
        place.chmod(mode)
        with pytest.raises(RootError, match="mode"):
            Trash(root)


@pytest.mark.root
def test_a_trash_of_another_user_is_refused(root: Root) -> None:
    place = root.path / TRASH_NAME
    place.mkdir(0o700)
    os.chown(place, 12345, -1)
    with pytest.raises(RootError, match="12345"):
        Trash(root)


def test_staging_moves_existing_entries_and_restoring_moves_them_back(root: Root, trash: Trash) -> None:
    odd = os.fsdecode(b"new\nline \xff")
    (root.path / "job" / "d").mkdir(parents=True)
    (root.path / "job" / "d" / "f").write_text("data")
    (root.path / odd).write_text("odd")
    (root.path / "other").write_text("stays")
    before = _tree(root.path)
    assert trash.stage("run.1", ["job", "missing", odd]) == ("job", odd)
    assert {path.name for path in root.path.iterdir()} == {TRASH_NAME, "other"}
    assert list(trash.items()) == [("run.1", False)]
    assert trash.restore("run.1") == ()
    assert _tree(root.path) == before
    assert list(trash.items()) == []


def test_an_empty_item_is_removed(trash: Trash) -> None:
    assert trash.stage("run.1", ["missing", "gone"]) == ()
    assert not trash.exists("run.1")
    assert trash.restore("run.1") == ()


_names = st.one_of(
    st.sampled_from(["", ".", "..", "/", "a/b", "../x", "/etc", "nul\0", TRASH_NAME, "x" * 256, "\ud800"]),
    st.text(max_size=8).map(lambda text: f"{text}/"),
)


@given(name=_names)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
def test_an_invalid_entry_name_undoes_the_staging(root: Root, trash: Trash, name: str) -> None:
    (root.path / "job").mkdir(exist_ok=True)
    with pytest.raises(OSError) as caught:  # noqa: PT011  (its errno follows)
        trash.stage("run.1", ["job", name])
    assert caught.value.errno in {errno.EINVAL, errno.ENAMETOOLONG}
    assert caught.value.filename == name
    assert (root.path / "job").is_dir()
    assert list(trash.items()) == []


def test_an_entry_that_cannot_be_moved_back_after_a_failed_staging_stays_in_the_trash(
    root: Root, trash: Trash, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (root.path / name).write_text(name)
    rename = os.rename

    def refuse_c(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        if source == "c":
            (root.path / "a").write_text("of another user")
            raise OSError(errno.EBUSY, "busy", source)
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "rename", refuse_c)
    with pytest.raises(OSError, match="'c'"):
        trash.stage("run.1", ["a", "b", "c"])
    assert (root.path / "a").read_text() == "of another user"
    assert (root.path / "b").read_text() == "b"
    assert (root.path / TRASH_NAME / "run.1" / "a").read_text() == "a"


@pytest.mark.parametrize("has_noreplace", [True, False])
def test_restoring_never_replaces_an_existing_entry(
    root: Root, trash: Trash, monkeypatch: pytest.MonkeyPatch, has_noreplace: bool
) -> None:
    if not has_noreplace:
        monkeypatch.setattr("eemtcleanupd.deletion.trash.RENAME_NOREPLACE", 1 << 30)
    for name in ("folder", "file", "free"):
        (root.path / name).mkdir()
    trash.stage("run.1", ["folder", "file", "free"])
    (root.path / "folder").mkdir()  # empty: rename(2) would replace it
    (root.path / "file").write_text("newer")
    new = (root.path / "folder").stat().st_ino
    assert set(trash.restore("run.1")) == {"folder", "file"}
    assert (root.path / "folder").stat().st_ino == new
    assert (root.path / "file").read_text() == "newer"
    assert (root.path / "free").is_dir()
    assert {path.name for path in (root.path / TRASH_NAME / "run.1").iterdir()} == {"folder", "file"}


def test_an_item_under_deletion_cannot_be_restored(root: Root, trash: Trash) -> None:
    (root.path / "job").mkdir()
    trash.stage("run.1", ["job"])
    assert trash.mark_deleting("run.1") == deleting_name("run.1") == "run.1.deleting"
    assert list(trash.items()) == [("run.1", True)]
    assert not trash.exists("run.1")
    assert trash.restore("run.1") == ()
    assert not (root.path / "job").exists()
    assert trash.mark_deleting("run.1") == "run.1.deleting"  # again, after a kill
    assert (root.path / TRASH_NAME / "run.1.deleting" / "job").is_dir()


def test_only_folders_are_items(root: Root, trash: Trash, canary: Path) -> None:
    (root.path / TRASH_NAME / ".root-id").write_text("")
    (root.path / TRASH_NAME / "link").symlink_to(canary)
    assert list(trash.items()) == []


def test_entries_of_a_group_share_a_folder_and_come_back_one_by_one(root: Root, trash: Trash) -> None:
    group = group_name("run", 1)
    for name in ("a", "b"):
        (root.path / name).write_text(name)
        assert trash.stage(f"{group}/{name}", [name]) == (name,)
    assert trash.stage(f"{group}/missing", ["missing"]) == ()
    assert list(trash.items()) == [(group, False)]
    (root.path / "a").write_text("another")
    assert trash.restore(f"{group}/a") == ("a",)  # its place is taken
    assert trash.restore(f"{group}/missing") == ()
    assert trash.restore(f"{group}/b") == ()
    assert (root.path / "b").read_text() == "b"
    assert trash.exists(f"{group}/a")
    (root.path / "a").unlink()
    assert trash.restore(f"{group}/a") == ()
    assert list(trash.items()) == []
    assert trash.stage(f"{group}/a", ["a"]) == ("a",)  # the folder is made again


def test_one_rename_starts_the_deletion_of_a_group(root: Root, trash: Trash) -> None:
    group = group_name("run", 2)
    for name in ("a", "b"):
        (root.path / name).write_text(name)
        trash.stage(f"{group}/{name}", [name])
    assert trash.mark_deleting(f"{group}/a") == deleting_name(f"{group}/a") == f"{group}.deleting/a"
    assert trash.exists(deleting_name(f"{group}/b"))
    assert trash.restore(f"{group}/b") == ()
    assert not (root.path / "b").exists()
    assert not trash.remove_group(f"{group}.deleting")
    for name in ("a", "b"):
        (root.path / TRASH_NAME / f"{group}.deleting" / name).unlink()
    assert trash.remove_group(f"{group}.deleting")
    assert list(trash.items()) == []


def test_a_folder_of_a_group_that_cannot_be_removed_is_left_to_a_later_run(
    root: Root, trash: Trash, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = group_name("run", 3)
    (root.path / "a").write_text("a")
    trash.stage(f"{group}/a", ["a"])
    trash.mark_deleting(f"{group}/a")
    (root.path / TRASH_NAME / f"{group}.deleting/a").unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rmdir", full)
    assert not trash.remove_group(f"{group}.deleting")
    monkeypatch.undo()
    assert trash.remove_group(f"{group}.deleting")


@pytest.mark.parametrize("item", ["../a", "a/..", "a/b/c", "/a", "a/"])
def test_no_item_leads_out_of_the_trash(root: Root, trash: Trash, item: str) -> None:
    for act in (lambda: trash.stage(item, ["x"]), lambda: trash.restore(item), lambda: trash.exists(item)):
        with pytest.raises(OSError):  # noqa: PT011  (any)
            act()


def test_no_entry_moves_through_a_link_in_place_of_a_group(root: Root, trash: Trash, canary: Path) -> None:
    group = group_name("run", 1)
    for name in ("a", "b"):
        (root.path / name).write_text(name)
    trash.stage(f"{group}/a", ["a"])
    (root.path / TRASH_NAME / group).rename(root.path / "moved")
    (root.path / TRASH_NAME / group).symlink_to(canary)
    trash.stage(f"{group}/b", ["b"])
    assert sorted(path.name for path in (root.path / "moved").iterdir()) == ["a", "b"]
    other = group_name("run", 2)
    (root.path / TRASH_NAME / other).symlink_to(canary)
    with pytest.raises(NotADirectoryError):
        trash.stage(f"{other}/moved", ["moved"])
    assert trash.restore(f"{other}/alive") == ()
    assert not trash.exists(f"{other}/alive")


def test_the_deletion_of_one_entry_leaves_the_others_of_its_group(root: Root, trash: Trash) -> None:
    group = group_name("run", 1)
    for name in ("a", "b"):
        (root.path / name).write_text(name)
        trash.stage(f"{group}/{name}", [name])
    for name in ("a", "missing", "a"):
        trash.isolate(f"{group}/{name}")
    trash.isolate(f"{group_name('run', 2)}/missing")
    assert trash.exists(deleting_name(f"{group}/a"))
    assert trash.restore(f"{group}/b") == ()
    assert (root.path / "b").read_text() == "b"
