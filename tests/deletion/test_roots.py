from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from eemtcleanupd.deletion.roots import Root, check_roots, open_root
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
    ("make", "words"),
    [
        (lambda _: None, "there is no results folder at .*; is a disk not mounted"),
        (lambda path: path.write_text(""), "is not a folder"),
        (lambda path: path.symlink_to(path.name), "a loop of symlinks"),
        (lambda path: path.symlink_to("nowhere"), "there is no results folder"),
    ],
)
def test_what_is_no_folder_is_no_root(tmp_path: Path, make: object, words: str) -> None:
    assert callable(make)
    make(tmp_path / "results")
    with pytest.raises(RootError, match=words) as caught:
        open_root(RootName.RESULTS, tmp_path / "results")
    assert caught.value.exit_code == 3


def test_separate_roots_beside_the_database_are_fine(tmp_path: Path, opener: _Opener) -> None:
    roots = []
    for name in RootName:
        (tmp_path / name).mkdir()
        roots.append(opener(name, tmp_path / name))
    check_roots(roots, tmp_path / "jobs.db")


@pytest.mark.parametrize(
    ("results", "uploads", "database", "words"),
    [
        ("/", "uploads", "jobs.db", "paths.results is /:"),
        ("data", "data", "jobs.db", "the same folder as"),
        ("data", "link", "jobs.db", "the same folder as"),
        ("data", "data/uploads", "jobs.db", "paths.uploads .* is inside paths.results"),
        ("data/uploads", "data", "jobs.db", "paths.results .* is inside paths.uploads"),
        ("link/uploads", "data", "jobs.db", "is inside"),
        ("data", "uploads", "data/jobs.db", "paths.results .* holds the job database"),
        ("data", "uploads", "link/uploads/jobs.db", "holds the job database"),
        ("home", "uploads", "jobs.db", "a home folder"),
        ("link-home", "uploads", "jobs.db", "a home folder"),
    ],
)
def test_a_root_where_a_mistake_would_delete_something_else_is_refused(
    tmp_path: Path,
    opener: _Opener,
    monkeypatch: pytest.MonkeyPatch,
    results: str,
    uploads: str,
    database: str,
    words: str,
) -> None:
    for folder in ("data/uploads", "uploads", "home"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "link-home").symlink_to("home")
    somebody = pwd.struct_passwd(("ann", "x", 1000, 1000, "", str(tmp_path / "home"), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwall", lambda: [somebody])
    roots = [opener(RootName.RESULTS, tmp_path / results), opener(RootName.UPLOADS, tmp_path / uploads)]
    with pytest.raises(RootError) as caught:
        check_roots(roots, tmp_path / database)
    assert re.search(words, str(caught.value))
    assert "\n" not in str(caught.value)
