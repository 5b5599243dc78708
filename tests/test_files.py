"""Files that are replaced as a whole."""

import os
from pathlib import Path

import pytest

from eemtcleanupd.files import replacing, write_atomic


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
