from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from eemtcleanupd.deletion.roots import Root, UploadIndex, check_roots, open_root
from eemtcleanupd.errors import RootError
from eemtcleanupd.model import RootName


class _Opener:
    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(self, name: RootName, path: Path) -> Root:
        root = open_root(name, path)
        self._stack.callback(root.close)
        return root


@pytest.fixture
def opener() -> Iterator[_Opener]:
    with ExitStack() as stack:
        yield _Opener(stack)


def test_a_root_is_opened_where_its_symlink_points(tmp_path: Path, opener: _Opener) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to("disk")
    root = opener(RootName.RESULTS, tmp_path / "results")
    status = (tmp_path / "disk").stat()
    assert (root.path, root.device, root.inode) == (tmp_path / "disk", status.st_dev, status.st_ino)
    assert os.path.samestat(os.fstat(root.fd), status)
    assert not os.get_inheritable(root.fd)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: None, "paths.results"),
        (lambda path: path.write_text(""), "paths.results"),
        (lambda path: path.symlink_to(path.name), "symlink loop"),
        (lambda path: path.symlink_to("nowhere"), "paths.results"),
    ],
)
def test_a_root_that_is_not_a_folder_is_refused(tmp_path: Path, make: object, reason: str) -> None:
    assert callable(make)
    make(tmp_path / "results")
    with pytest.raises(RootError, match=reason) as caught:
        open_root(RootName.RESULTS, tmp_path / "results")
    assert caught.value.exit_code == 3


def test_separate_roots_beside_the_database_are_accepted(tmp_path: Path, opener: _Opener) -> None:
    roots = []
    for name in RootName:
        (tmp_path / name).mkdir()
        roots.append(opener(name, tmp_path / name))
    check_roots(roots, tmp_path / "jobs.db")


@pytest.mark.parametrize(
    ("results", "uploads", "database", "reason"),
    [
        ("/", "uploads", "jobs.db", r"paths\.results is /\."),
        ("data", "data", "jobs.db", "paths.uploads"),
        ("data", "link", "jobs.db", "paths.uploads"),
        ("data", "data/uploads", "jobs.db", r"^paths\.uploads .*paths\.results"),
        ("data/uploads", "data", "jobs.db", r"^paths\.results .*paths\.uploads"),
        ("link/uploads", "data", "jobs.db", r"^paths\.results .*paths\.uploads"),
        ("data", "uploads", "data/jobs.db", r"paths\.results .*jobs\.db"),
        ("data", "uploads", "link/uploads/jobs.db", r"paths\.uploads .*jobs\.db|paths\.results .*jobs\.db"),
        ("home", "uploads", "jobs.db", r"paths\.results .*home"),
        ("link-home", "uploads", "jobs.db", r"paths\.results .*home"),
    ],
)
def test_a_root_in_which_a_mistake_could_delete_unrelated_data_is_refused(
    tmp_path: Path,
    opener: _Opener,
    monkeypatch: pytest.MonkeyPatch,
    results: str,
    uploads: str,
    database: str,
    reason: str,
) -> None:
    for folder in ("data/uploads", "uploads", "home"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "link-home").symlink_to("home")
    user = pwd.struct_passwd(("ann", "x", 1000, 1000, "", str(tmp_path / "home"), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwall", lambda: [user])
    roots = [opener(RootName.RESULTS, tmp_path / results), opener(RootName.UPLOADS, tmp_path / uploads)]
    with pytest.raises(RootError) as caught:
        check_roots(roots, tmp_path / database)
    assert re.search(reason, str(caught.value))
    assert "\n" not in str(caught.value)


def found(index: UploadIndex, *ids: str) -> list[tuple[str, str, bool]]:
    return sorted((owner, each.artifact.name, each.is_folder) for owner, each in index.named_after(ids))


def test_uploads_are_found_by_every_id_that_their_name_begins_with(tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff_x")
    for name in ("a_b_x.tif", "a_x.tif", "plain.tif", "_x", odd):
        (tmp_path / name).touch()
    (tmp_path / "a_folder").mkdir()
    index = UploadIndex(open_root(RootName.UPLOADS, tmp_path))
    assert found(index, "a") == [("a", "a_b_x.tif", False), ("a", "a_folder", True), ("a", "a_x.tif", False)]
    assert found(index, "a_b", "plain.tif", "") == [("a_b", "a_b_x.tif", False)]
    assert found(index, os.fsdecode(b"\xff"), "\ud83d") == [(os.fsdecode(b"\xff"), odd, False)]
    assert index.names(["a_b", os.fsdecode(b"\xff"), "_x"]) == {"a_b_x.tif", odd}
    index.close()


def test_many_ids_are_looked_up_in_pages(tmp_path: Path) -> None:
    for number in range(1200):
        (tmp_path / f"job{number}_x").touch()
    index = UploadIndex(open_root(RootName.UPLOADS, tmp_path))
    assert len(found(index, *(f"job{number}" for number in range(2000)))) == 1200
    index.close()


@pytest.mark.parametrize("ids", [(), ("a",)])
def test_without_a_folder_there_are_no_uploads(ids: tuple[str, ...]) -> None:
    assert found(UploadIndex(None), *ids) == []
