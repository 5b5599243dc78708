"""Files that others could replace: written, read and locked safely, and only by one module."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import eemtcleanupd
from eemtcleanupd.files import (
    create_new,
    lock_holder,
    locked,
    open_folder,
    open_log,
    open_own,
    read_regular,
    replacing,
    write_atomic,
    write_output,
)
from tests.hostile import time_limit


@pytest.fixture(params=[False, True], ids=["fast", "durable"])
def durable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_a_file_is_written_with_its_mode_whatever_the_umask(tmp_path: Path, durable: bool) -> None:
    before = os.umask(0o077)
    try:
        write_atomic(tmp_path / "status", b"new", mode=0o644, durable=durable)
    finally:
        os.umask(before)
    assert (tmp_path / "status").read_bytes() == b"new"
    assert (tmp_path / "status").stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["status"]


def test_a_failure_leaves_the_old_content_and_no_temporary_file(tmp_path: Path, durable: bool) -> None:
    (tmp_path / "status").write_bytes(b"old")
    with pytest.raises(TypeError), replacing(tmp_path / "status", durable=durable) as file:
        file.write("no bytes")  # type: ignore[call-overload]
    assert (tmp_path / "status").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["status"]


def test_a_link_is_replaced_and_its_target_untouched(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "status").symlink_to(victim)
    write_atomic(tmp_path / "status", b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "status").is_symlink()


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    path = tmp_path / "status"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"half")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"half"


def test_a_name_of_full_length_works(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_atomic(path, b"x")
    assert path.read_bytes() == b"x"


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "no" / "status", b"x")


# -- what others put in the way ----------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(b"precious")
    path.chmod(0o640)
    return path


def _link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def _fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, _: Path) -> None:
    path.mkdir()


def _foreign(path: Path, _: Path) -> None:
    path.write_bytes(b"theirs")
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize("obstacle", [_link, _hard_link, _fifo, _folder, _foreign])
@pytest.mark.parametrize(
    "flags", [os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDWR | os.O_APPEND]
)
def test_only_a_file_of_ours_with_one_name_is_opened(
    tmp_path: Path, victim: Path, obstacle: Callable[[Path, Path], None], flags: int
) -> None:
    if obstacle is _foreign and os.geteuid():
        pytest.skip("only root can give a file to another user")
    obstacle(tmp_path / "own", victim)
    before = (tmp_path / "own").lstat()
    with pytest.raises(OSError, match=r"."), time_limit():
        open_own(tmp_path / "own", flags, mode=0o600)
    assert (tmp_path / "own").lstat().st_size == before.st_size
    assert victim.read_bytes() == b"precious"
    assert victim.stat().st_mode & 0o777 == 0o640


def test_an_existing_file_loses_the_permissions_of_others(tmp_path: Path) -> None:
    (tmp_path / "lock").touch(0o644)
    os.close(open_own(tmp_path / "lock", os.O_RDWR, mode=0o600))
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_new_file_replaces_nothing(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "new").symlink_to(victim)
    with pytest.raises(FileExistsError):
        create_new(tmp_path / "new")
    assert victim.read_bytes() == b"precious"


def test_a_link_of_the_current_user_on_the_way_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "way").symlink_to("../" + tmp_path.name + "/real")
    write_atomic(tmp_path / "way" / "status", b"new")
    assert (tmp_path / "real" / "status").read_bytes() == b"new"


def test_links_in_a_loop_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match=r"."):
        write_atomic(tmp_path / "a" / "status", b"new")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")
@pytest.mark.parametrize("is_their_folder", [False, True])
def test_a_link_that_another_user_can_change_is_not_followed(tmp_path: Path, is_their_folder: bool) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "theirs").mkdir()
    way = tmp_path / "theirs" / "way"
    way.symlink_to(tmp_path / "real")
    os.chown(way.parent if is_their_folder else way, 12345, 12345, follow_symlinks=False)
    for write in (write_atomic, write_output, lambda path, _: os.close(open_log(path))):
        with pytest.raises(PermissionError):
            write(way / "status", b"new")
    assert os.listdir(tmp_path / "real") == []


def test_missing_folders_are_created(tmp_path: Path) -> None:
    with open_folder(tmp_path / "a" / "b", create=0o700) as folder:
        assert os.path.samestat(os.fstat(folder), (tmp_path / "a" / "b").stat())
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_a_fifo_is_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config")
    with pytest.raises(OSError, match=r"."), time_limit():
        read_regular(tmp_path / "config")


def test_a_log_can_be_a_device_and_a_link_of_ours(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("real")
    os.close(open_log(tmp_path / "log"))
    os.close(open_log(Path("/dev/null")))
    assert (tmp_path / "real").exists()


def test_a_log_that_is_a_fifo_without_reader_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OSError, match=r"."), time_limit():
        open_log(tmp_path / "log")


# -- locks -------------------------------------------------------------------------------------------


def test_a_held_lock_ends_the_wait_and_its_holder_is_named(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as descriptor:
        assert lock_holder(descriptor) == os.getpid()
        with (
            pytest.raises(BlockingIOError, match=str(os.getpid())),
            locked(tmp_path / "lock", wait_seconds=0.1),
        ):
            pass
    with locked(tmp_path / "lock") as descriptor:
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_free_lock_has_no_holder(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        assert lock_holder(file.fileno()) is None


# -- nothing else opens files ------------------------------------------------------------------------

ELSEWHERE = {
    "backup/archive.py: tarfile.open 'w|'": "writes to an open file",
    "backup/archive.py: tempfile.TemporaryFile": "has no name",
    "cli/stdio.py: O_WRONLY": "/dev/null",
    "deletion/truncate.py: O_WRONLY": "truncates a file in the trash by descriptor, with fstat",
    "deletion/open_files.py: O_TMPFILE": "compares flags of open descriptors",
    "logs.py: logging.handlers.RotatingFileHandler": "its _open uses files.py",
    "logs.py: open 'a'": "an open descriptor",
    "notifiers/audit_log.py: mkdir(parents)": "a folder of the operator",
    "notifiers/audit_log.py: open 'ab'": "an open descriptor",
    "report/run_document.py: tempfile.SpooledTemporaryFile": "has no name",
    "store/fifo_watch.py: O_WRONLY": "a FIFO that is pinned by a descriptor",
    "store/sqlite.py: sqlite3.connect": "SQLite opens files by path",
    "store/sqlite.py: tempfile.TemporaryDirectory": "a private folder with a random name",
    "demo.py: mkdir(parents)": "see below",
    "demo.py: sqlite3.connect": "in a folder that was new or empty, and of the current user",
    "deletion/roots.py: sqlite3.connect": "a temporary file that has no name",
    "web/api_run.py: tempfile.SpooledTemporaryFile": "has no name",
}


@pytest.mark.slow
def test_files_are_written_nowhere_else() -> None:
    package = Path(eemtcleanupd.__file__).parent
    found = {
        f"{file.relative_to(package)}: {use}"
        for file in package.rglob("*.py")
        if file.name != "files.py"
        for use in _writes(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert found == set(ELSEWHERE)


def _writes(tree: ast.AST) -> Iterator[str]:
    """Yield what can create, replace, append to or truncate a file by its path."""
    checked = {
        flag
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "open_own"
        for flag in ast.walk(call)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node not in checked:
            if node.attr in {"O_CREAT", "O_WRONLY", "O_RDWR", "O_APPEND", "O_TRUNC", "O_TMPFILE"}:
                yield node.attr
            if re.fullmatch(r"\w*(Rotating|Watched)?FileHandler", node.attr) and node.attr != "FileHandler":
                yield ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        modes = [str(a.value) for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if last == "open" and (
            mode := next((m for m in modes if re.fullmatch(r"[rwaxbt+|:gz]*[wax+].*", m)), "")
        ):
            yield f"{name} {mode!r}"
        elif (
            last in {"write_text", "write_bytes", "touch", "FileHandler", "connect"}
            and (last != "connect" or name == "sqlite3.connect")
        ) or (re.fullmatch(r"shutil\.(copy\w*|move)|tempfile\.\w+", name) and last != "copyfileobj"):
            yield name
        elif last == "mkdir" and any(keyword.arg == "parents" for keyword in node.keywords):
            yield "mkdir(parents)"
