"""A backup contains all of a job, is verified before it counts, and restores everything unchanged."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from eemtcleanupd.backup import archive
from eemtcleanupd.backup.archive import Head
from eemtcleanupd.backup.compression import ENDINGS
from eemtcleanupd.backup.folder import BackupFile, BackupFolder
from eemtcleanupd.deletion.roots import Root, open_root
from eemtcleanupd.errors import BackupError
from eemtcleanupd.model import RootName

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
HEAD = Head("job", "completed", NOW.isoformat(), "here", ("results/job/",))


@pytest.fixture
def folder(tmp_path: Path) -> BackupFolder:
    return BackupFolder(tmp_path / "backup")


def add(folder: BackupFolder, root: Root, ending: str = "tar.zst", head: Head = HEAD) -> BackupFile:
    folder.add(head, ending, NOW, [(root, "job")])
    return folder.all(head.job_id)[-1]


def tree(place: Path) -> dict[str, tuple[object, ...]]:
    """Return what a copy must preserve: kind, mode, owner, time, content, and which names are one file."""
    entries: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for path in [place, *sorted(place.rglob("*"))]:
        status = path.lstat()
        content: object = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = (path.read_bytes(), first.setdefault(status.st_ino, str(path.relative_to(place))))
        mtime = None if stat.S_ISLNK(status.st_mode) else status.st_mtime_ns // 10**9
        entries[str(path.relative_to(place))] = (status.st_mode, status.st_uid, status.st_gid, mtime, content)
    return entries


def fill(root: Root) -> Path:
    job = root.path / "job"
    (job / "global" / "empty").mkdir(parents=True)
    (job / "global" / "a.tif").write_bytes(os.urandom(300_000))
    (job / "global" / "zeros.tif").write_bytes(bytes(2_000_000))
    (job / "none").touch()
    os.link(job / "none", job / "global" / "same")
    (job / "link").symlink_to("/etc/passwd")
    (job / "dangling").symlink_to("nowhere")
    os.mkfifo(job / "pipe")
    Path(os.fsdecode(os.fsencode(job) + b"/caf\xe9\n.tif")).write_text("x")
    (job / ("n" * 250)).write_text("long")
    (job / "global" / "a.tif").chmod(0o640)
    os.utime(job / "none", ns=(0, 1_234_567_890_123_456_000))
    (job / "global" / "empty").chmod(0o500)
    os.utime(job / "global", ns=(0, 1_234_567_890_123_456_000))
    return job


def unpack(backup: Path, place: Path) -> Path:
    place.mkdir()
    archive.unpack(backup, lambda root, name: place if (root, name) == (RootName.RESULTS, "job") else None)
    return place / "job"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_restored_job_equals_the_original(
    folder: BackupFolder, root: Root, tmp_path: Path, ending: str
) -> None:
    job = fill(root)
    before = tree(job)
    backup = add(folder, root, ending)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(backup.path.stat().st_mode) == 0o600
    contents = archive.verify(backup.path)
    assert (contents.files, contents.head) == (5, HEAD)
    assert tree(unpack(backup.path, tmp_path / "place")) == before
    assert archive.read_head(backup.path) == HEAD


NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda b: b"/" not in b and b"\0" not in b and b not in (b".", b"..")
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        NAMES,
        st.one_of(st.binary(max_size=2000), st.dictionaries(NAMES, st.binary(max_size=20), max_size=3)),
        max_size=6,
    )
)
def test_any_names_and_contents_are_restored(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[bytes, bytes | dict[bytes, bytes]]
) -> None:
    base = tmp_path_factory.mktemp("any")
    job = base / "results" / "job"
    job.mkdir(parents=True)
    for name, content in entries.items():
        path = Path(os.fsdecode(os.fsencode(job) + b"/" + name))
        if isinstance(content, bytes):
            path.write_bytes(content)
            continue
        path.mkdir()
        for below, data in content.items():
            Path(os.fsdecode(os.fsencode(path) + b"/" + below)).write_bytes(data)
    root = open_root(RootName.RESULTS, base / "results")
    try:
        backup = add(BackupFolder(base / "backup"), root)
    finally:
        root.close()
    assert tree(unpack(backup.path, base / "place")) == tree(job)
    shutil.rmtree(base)


def decompressed(archived: bytes, ending: str) -> bytes:
    return gzip.decompress(archived) if ending == "tar.gz" else zstd.decompress(archived)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_changed_byte_is_detected_unless_the_tar_file_stays_identical(
    folder: BackupFolder, root: Root, ending: str
) -> None:
    (root.path / "job").mkdir()
    (root.path / "job" / "a.tif").write_bytes(os.urandom(4000))
    backup = add(folder, root, ending)
    whole = backup.path.read_bytes()
    good = archive.verify(backup.path)
    for offset in range(0, len(whole), 11):
        changed = whole[:offset] + bytes([whole[offset] ^ 0x55]) + whole[offset + 1 :]
        backup.path.write_bytes(changed)
        try:
            contents = archive.verify(backup.path)
        except BackupError:
            continue
        # Without effect: the time in a gzip header, an unused bit of zstd, another encoding of the bytes.
        assert decompressed(changed, ending) == decompressed(whole, ending), offset
        assert contents == good


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_truncated_archive_is_detected(folder: BackupFolder, root: Root, ending: str) -> None:
    (root.path / "job").mkdir()
    (root.path / "job" / "a.tif").write_bytes(os.urandom(4000))
    backup = add(folder, root, ending)
    whole = backup.path.read_bytes()
    for length in (*range(20), *range(20, len(whole) - 20, 173), *range(len(whole) - 20, len(whole))):
        backup.path.write_bytes(whole[:length])
        with pytest.raises(BackupError):
            archive.verify(backup.path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_data_after_the_end_of_an_archive_is_detected(folder: BackupFolder, root: Root, ending: str) -> None:
    (root.path / "job").mkdir()
    backup = add(folder, root, ending)
    whole = backup.path.read_bytes()
    for more in (b"x", os.urandom(5000), whole):
        backup.path.write_bytes(whole + more)
        with pytest.raises(BackupError):
            archive.verify(backup.path)


def test_an_archive_without_a_checksum_is_refused(folder: BackupFolder, root: Root) -> None:
    (root.path / "job").mkdir()
    backup = add(folder, root)
    backup.path.write_bytes(zstd.compress(decompressed(backup.path.read_bytes(), "tar.zst")))
    with pytest.raises(BackupError):
        archive.verify(backup.path)


def test_another_file_is_not_a_backup(folder: BackupFolder, root: Root) -> None:
    (root.path / "job").mkdir()
    backup = add(folder, root)
    for content in (b"", b"text", os.urandom(5000)):
        backup.path.write_bytes(content)
        with pytest.raises(BackupError):
            archive.verify(backup.path)


def test_a_file_that_changes_during_the_copy_fails_the_backup_and_leaves_nothing(
    folder: BackupFolder, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = root.path / "job"
    job.mkdir()
    (job / "a.tif").write_bytes(bytes(3_000_000))
    sha256 = hashlib.sha256

    def change_and_hash() -> object:
        (job / "a.tif").write_bytes(b"x" * 3_000_000)
        return sha256()

    monkeypatch.setattr(hashlib, "sha256", change_and_hash)
    with pytest.raises(BackupError, match=r"results/job/a\.tif"):
        add(folder, root)
    assert list(folder.path.iterdir()) == []


def test_a_file_that_was_replaced_by_a_link_is_not_followed(
    folder: BackupFolder, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = root.path / "job"
    job.mkdir()
    (job / "a").write_text("mine")
    (tmp_path / "secret").write_text("shadow")
    real = os.open

    def swap(path: object, flags: int, *args: int, **more: int) -> int:
        if path == "a":
            (job / "a").unlink()
            (job / "a").symlink_to(tmp_path / "secret")
        return real(path, flags, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(BackupError, match="results/job/a"):
        add(folder, root)
    assert list(folder.path.iterdir()) == []


def test_a_path_that_is_too_long_to_unpack_is_refused(folder: BackupFolder, root: Root) -> None:
    descriptor = os.dup(root.fd)
    for name in ["job", *(["d" * 200] * 20)]:
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    with pytest.raises(BackupError, match="results/job/d"):
        add(folder, root)


def test_a_folder_that_other_users_can_write_to_is_refused(folder: BackupFolder, root: Root) -> None:
    (root.path / "job").mkdir()
    folder.path.mkdir()
    folder.path.chmod(0o777)
    with pytest.raises(BackupError, match="mode"):
        add(folder, root)


@pytest.mark.parametrize("job_id", ["job", "with space@é", "caf\udce9", "i" * 255, "%" * 200, "..a"])
def test_only_the_backups_of_a_job_are_found_by_its_id(folder: BackupFolder, root: Root, job_id: str) -> None:
    (root.path / "job").mkdir()
    for other in ("another", job_id + "2", job_id[:-1] + "~"):
        folder.add(replace(HEAD, job_id=other), "tar.gz", NOW, [(root, "job")])
    backup = add(folder, root, head=replace(HEAD, job_id=job_id))
    backups = folder.all(job_id)
    assert backups == [backup]
    assert archive.read_head(backups[0].path).job_id == job_id
    assert len(folder.all()) == 4


def test_expired_backups_are_deleted_and_other_files_stay(folder: BackupFolder, root: Root) -> None:
    (root.path / "job").mkdir()
    for days in (40, 31, 29, 0):
        folder.add(HEAD, "tar.zst", NOW - timedelta(days=days), [(root, "job")])
    folder.add(replace(HEAD, job_id=".part.c"), "tar.zst", NOW, [(root, "job")])
    (folder.path / "notes.txt").write_text("not a backup")
    stale, fresh = (folder.path / f".part.{job}@20260615T120000000000Z.tar.zst" for job in "ab")
    foreign = folder.path / ".part.of-something-else"
    for part, days in ((stale, 3), (fresh, 0), (foreign, 3)):
        part.touch()
        os.utime(part, (0, (NOW - timedelta(days=days)).timestamp()))
    deleted = folder.expire(NOW, timedelta(days=30))
    assert [(NOW - backup.made_at).days for backup in deleted] == [40, 31]
    assert [(NOW - backup.made_at).days for backup in folder.all()] == [29, 0, 0]
    assert [backup.job_id for backup in folder.all(".part.c")] == [".part.c"]
    assert (folder.path / "notes.txt").exists()
    assert fresh.exists()
    assert foreign.exists()
    assert not stale.exists()
