from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.job_logs import keep_logs
from eemtcleanupd.deletion.roots import Root
from tests.deletion.conftest import Remove, allocated, dig, open_descriptors

MB = 1 << 20
MountTmpfs = Callable[[Path, str], None]
_PATTERNS = ["*.log", "*.err"]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The destination of kept logs."""
    return tmp_path / "logs" / "jobs" / "job"


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a logs folder on another filesystem."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    real = os.link

    def link(source: str, target: str, *, dst_dir_fd: int, follow_symlinks: bool) -> None:
        # link(2) finds an existing target before it finds that it is on another filesystem.
        try:
            os.stat(target, dir_fd=dst_dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            refuse()
        real(source, target, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "link", link)


def _contents(place: Path) -> dict[str, str]:
    return {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()}


def _job(root: Root) -> Path:
    job = root.path / "job"
    (job / "sub" / "deeper").mkdir(parents=True)
    (job / "run.log").write_text("top")
    (job / "sub" / "deeper" / "run.err").write_text("deep")
    (job / "sub" / "raster.tif").write_text("no log")
    return job


def test_logs_are_kept_at_their_paths_as_links(root: Root, kept: Path) -> None:
    job = _job(root)
    before = open_descriptors()
    assert keep_logs(root, "job", _PATTERNS, kept) == 2
    assert _contents(kept) == {"run.log": "top", "sub/deeper/run.err": "deep"}
    assert (kept / "run.log").samefile(job / "run.log")
    assert kept.stat().st_mode & 0o777 == (kept / "sub").stat().st_mode & 0o777 == 0o750
    assert open_descriptors() == before
    assert keep_logs(root, "job", _PATTERNS, kept) == 2  # after a kill
    assert len(_contents(kept)) == 2


def test_a_kept_log_survives_its_job_and_is_not_counted_as_freed(
    root: Root, kept: Path, remove: Remove
) -> None:
    job = _job(root)
    (job / "run.log").write_bytes(b"x" * 100_000)
    log = allocated(job / "run.log") + allocated(job / "sub" / "deeper" / "run.err")
    before = allocated(job)
    keep_logs(root, "job", _PATTERNS, kept)
    assert remove("job").bytes_freed == before - log
    assert (kept / "run.log").stat().st_size == 100_000


def test_logs_are_copied_with_their_times_if_links_are_impossible(
    root: Root, kept: Path, no_links: None
) -> None:
    job = _job(root)
    os.utime(job / "run.log", ns=(1, 1_600_000_000_123_456_789))
    kept.mkdir(parents=True)
    (kept / ".eemtcleanupd.part").write_text("leftover of a killed run, longer than the log")
    assert keep_logs(root, "job", _PATTERNS, kept) == 2
    assert not (kept / "run.log").samefile(job / "run.log")
    assert (kept / "run.log").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert keep_logs(root, "job", _PATTERNS, kept) == 2
    assert _contents(kept) == {"run.log": "top", "sub/deeper/run.err": "deep"}


def test_a_different_file_of_the_same_name_is_never_replaced(root: Root, kept: Path) -> None:
    job = _job(root)
    for number, text in enumerate(["old", "two"]):  # as long as the log, as old as the log
        (kept / "run.log").parent.mkdir(parents=True, exist_ok=True)
        other = kept / ("run.log" if number == 0 else f"run.log.{number}")
        other.write_text(text)
        os.utime(other, ns=(1, (job / "run.log").stat().st_mtime_ns))
    for _ in range(2):
        keep_logs(root, "job", ["run.log"], kept)
        assert _contents(kept) == {"run.log": "old", "run.log.1": "two", "run.log.2": "top"}


def test_only_regular_files_are_logs(root: Root, kept: Path, canary: Path) -> None:
    job = root.path / "job"
    job.mkdir()
    (job / "folder.log").mkdir()
    (job / "link.log").symlink_to(canary / "alive")
    os.mkfifo(job / "fifo.log")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{root.fd}/job/socket.log")
        assert keep_logs(root, "job", _PATTERNS, kept) == 0
    assert not kept.exists()
    assert keep_logs(root, "missing", _PATTERNS, kept) == 0


def test_names_that_are_not_utf8_and_long_ones_are_kept(root: Root, kept: Path, no_links: None) -> None:
    (root.path / "job").mkdir()
    names = {os.fsdecode(b"\xff\n.log"), "x" * 251 + ".log"}
    for name in names:
        (root.path / "job" / name).write_text("log")
    assert keep_logs(root, "job", _PATTERNS, kept) == 2
    assert set(os.listdir(kept)) == names


@pytest.mark.slow
def test_a_log_below_three_thousand_levels_is_kept(root: Root, kept: Path) -> None:
    (root.path / "job").mkdir()
    dig(root.path / "job", 3000)
    assert keep_logs(root, "job", _PATTERNS, kept) == 1
    found = subprocess.run(
        ["find", kept, "-type", "f", "-printf", "%d %f"], capture_output=True, text=True, check=True
    )
    assert found.stdout == "3001 bottom.log"


@pytest.mark.parametrize("planted", ["jobs", "jobs/job", "jobs/job/sub"])
def test_a_planted_link_in_the_destination_is_not_followed(
    root: Root, kept: Path, canary: Path, planted: str
) -> None:
    _job(root)
    place = kept.parent.parent / planted
    place.parent.mkdir(parents=True)
    place.symlink_to(canary)
    with pytest.raises(OSError, match="job/") as caught:
        keep_logs(root, "job", _PATTERNS, kept)
    assert caught.value.filename.startswith("job/")


def test_a_log_that_cannot_be_kept_is_an_error(root: Root, tmp_path: Path) -> None:
    _job(root)
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(OSError, match="job/"):
        keep_logs(root, "job", _PATTERNS, tmp_path / "logs" / "jobs")
    assert (root.path / "job" / "run.log").read_text() == "top"


def _log(root: Root, size: int, data: bytes = b"") -> Path:
    """Create a job with one log; without data it is sparse."""
    job = root.path / "job"
    job.mkdir()
    with (job / "run.log").open("wb") as log:
        log.write(data)
        log.truncate(size)
    return job / "run.log"


@pytest.mark.root
def test_a_sparse_log_keeps_its_holes_on_another_filesystem(
    root: Root, kept: Path, mount_tmpfs: MountTmpfs
) -> None:
    size = 8 << 30
    log = _log(root, size, b"start")
    with log.open("r+b") as file:
        file.seek(5 << 30)
        file.write(b"middle")
    mount_tmpfs(kept.parent.parent, "24M")
    for _ in range(2):  # the second time, the copy is compared
        assert keep_logs(root, "job", _PATTERNS, kept) == 1
    copy = kept / "run.log"
    assert os.listdir(kept) == ["run.log"]
    assert (copy.stat().st_size, copy.stat().st_mtime_ns) == (size, log.stat().st_mtime_ns)
    assert allocated(copy) < MB
    with copy.open("rb") as file:
        assert file.read(6) == b"start\0"
        file.seek((5 << 30) - 1)
        assert file.read(8) == b"\0middle\0"


def test_a_log_with_more_holes_than_are_counted_is_copied_correctly(
    root: Root, kept: Path, no_links: None
) -> None:
    log = _log(root, 50 * MB)
    with log.open("r+b") as file:
        for number in range(5000):
            file.seek(number * 10_000)
            file.write(b"%d" % number)
    assert keep_logs(root, "job", _PATTERNS, kept) == 1
    assert (kept / "run.log").read_bytes() == log.read_bytes()


def test_zeros_become_holes_where_the_filesystem_does_not_report_them(
    root: Root, kept: Path, no_links: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _log(root, 20 * MB, b"start")

    def lseek(*_: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "lseek", lseek)
    assert keep_logs(root, "job", _PATTERNS, kept) == 1
    monkeypatch.undo()
    assert (kept / "run.log").read_bytes() == log.read_bytes()
    assert allocated(kept / "run.log") <= MB


@pytest.mark.root
@pytest.mark.parametrize("leftover", [0, 10 * MB])
def test_no_copy_starts_on_a_disk_without_room_for_it(
    root: Root, kept: Path, mount_tmpfs: MountTmpfs, leftover: int
) -> None:
    _log(root, 20 * MB, os.urandom(20 * MB))
    mount_tmpfs(kept.parent.parent, "24M")
    kept.mkdir(parents=True)
    (kept / ".eemtcleanupd.part").write_bytes(bytes(leftover))
    with pytest.raises(OSError, match=r"job/run\.log") as caught:
        keep_logs(root, "job", _PATTERNS, kept)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(kept) == []


@pytest.mark.root
def test_the_part_of_a_killed_copy_makes_room_for_the_next(
    root: Root, kept: Path, mount_tmpfs: MountTmpfs
) -> None:
    _log(root, 10 * MB, os.urandom(10 * MB))
    mount_tmpfs(kept.parent.parent, "30M")
    kept.mkdir(parents=True)
    (kept / ".eemtcleanupd.part").write_bytes(bytes(9 * MB))
    assert keep_logs(root, "job", _PATTERNS, kept) == 1
    assert os.listdir(kept) == ["run.log"]


@pytest.mark.parametrize("reason", ["stopped", "disk full", "log changed"])
def test_a_copy_that_does_not_finish_leaves_nothing(
    root: Root, kept: Path, no_links: None, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    log = _log(root, 5 * MB, os.urandom(5 * MB))
    stop, blocks, pwrite = StopFlag(), 0, os.pwrite

    def interfere(fd: int, data: bytes, position: int) -> int:
        nonlocal blocks
        blocks += 1
        if reason == "stopped":
            stop.set()
        elif reason == "disk full":
            raise OSError(errno.ENOSPC, "No space left on device")
        elif blocks == 1:
            with log.open("ab") as file:
                file.write(b"one more line")
        return pwrite(fd, data, position)

    monkeypatch.setattr(os, "pwrite", interfere)
    with pytest.raises(OSError, match="job/run") as caught:
        keep_logs(root, "job", _PATTERNS, kept, stop=stop)
    assert isinstance(caught.value, InterruptedError) == (reason == "stopped")
    assert blocks == 5 if reason == "log changed" else blocks == 1
    assert os.listdir(kept) == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "group", "kept_mode"), [(0o600, 7777, 0o600), (0o640, 7777, 0o640), (0o4777, 0, 0o640)]
)
def test_nobody_can_read_a_copy_who_cannot_read_the_log(
    root: Root, kept: Path, no_links: None, mode: int, group: int, kept_mode: int
) -> None:
    log = _job(root) / "run.log"  # which can be a hard link to a file of others
    os.chown(log, 6666, group)
    log.chmod(mode)
    kept.mkdir(parents=True)
    everyone = 2**32 - 1
    entries = ((1, 7, everyone), (2, 7, 12345), (4, 5, everyone), (16, 7, everyone), (32, 0, everyone))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(kept, "system.posix_acl_default", acl)
    keep_logs(root, "job", _PATTERNS, kept)
    assert os.listxattr(kept / "run.log") == []
    status = (kept / "run.log").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (kept_mode, 0, group)
