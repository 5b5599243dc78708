"""A backup contains all of a job, is verified before it counts, and restores everything unchanged."""

from __future__ import annotations

import base64
import errno
import gzip
import hashlib
import io
import json
import logging
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given, settings, strategies as st

from eemtcleanupd.backup import archive, attributes
from eemtcleanupd.backup.archive import Head
from eemtcleanupd.backup.compression import ENDINGS
from eemtcleanupd.backup.folder import BackupFile, BackupFolder
from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.roots import Root, open_root
from eemtcleanupd.errors import BackupError
from eemtcleanupd.model import RootName
from tests.requirements import needs

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
MB = 1 << 20
MountTmpfs = Callable[[Path, str], None]
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
    unpack_into(place, backup)
    return place / "job"


def unpack_into(place: Path, backup: Path) -> list[str]:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        wanted = (RootName.RESULTS, "job")
        return archive.unpack(backup, lambda root, name: fd if (root, name) == wanted else None)
    finally:
        os.close(fd)


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


@pytest.mark.slow
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


def test_a_verification_without_a_place_for_temporary_files_is_an_error(
    folder: BackupFolder, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(root)
    backup = add(folder, root)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
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


def test_a_name_that_acts_on_a_terminal_is_not_one_of_a_backup(folder: BackupFolder) -> None:
    folder.path.mkdir()
    for job in ("\x1b]0;title\x07", "\u009b2J", "a\nb"):
        (folder.path / f"{job}@20260615T120000000000Z.tar.gz").touch()
    assert folder.all() == []


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


# -- holes, times and extended attributes ---------------------------------------------------------------


def sparse_file(path: Path, size: int, data: dict[int, bytes]) -> None:
    with path.open("wb") as file:
        for offset, content in data.items():
            file.seek(offset)
            file.write(content)
        file.truncate(size)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_sparse_file_comes_back_with_its_holes(
    folder: BackupFolder, root: Root, tmp_path: Path, ending: str
) -> None:
    job, size = root.path / "job", 2 << 30
    job.mkdir()
    data = {0: b"start", 1 << 30: os.urandom(3 * MB), size - 5: b"ended"}
    sparse_file(job / "run.log", size, data)
    sparse_file(job / "holes", size, {})
    (job / "dense").write_bytes(os.urandom(MB))
    backup = add(folder, root, ending)
    assert backup.size_bytes < 5 * MB
    assert archive.verify(backup.path).bytes == 2 * size + MB
    restored = unpack(backup.path, tmp_path / "place")
    for name in ("run.log", "holes"):
        before, after = (job / name).stat(), (restored / name).stat()
        assert (after.st_size, after.st_blocks) == (size, before.st_blocks)
    assert (restored / "dense").read_bytes() == (job / "dense").read_bytes()
    with (restored / "run.log").open("rb") as file:
        for offset, content in data.items():
            file.seek(offset)
            assert file.read(len(content)) == content


@needs("tar")
def test_other_programs_can_read_sparse_files(folder: BackupFolder, root: Root, tmp_path: Path) -> None:
    job = root.path / "job"
    job.mkdir()
    for name, data in {"middle": {5 * MB: b"middle"}, "end": {10 * MB - 3: b"end"}, "none": {}}.items():
        sparse_file(job / name, 10 * MB, data)
    backup = add(folder, root, "tar.gz")
    subprocess.run(["tar", "-xzf", backup.path, "-C", tmp_path, "results", "manifest.jsonl"], check=True)
    for name in ("middle", "end", "none"):
        assert (tmp_path / "results/job" / name).read_bytes() == (job / name).read_bytes()


def test_a_changed_map_of_a_sparse_file_is_detected(folder: BackupFolder, root: Root) -> None:
    job = root.path / "job"
    job.mkdir()
    sparse_file(job / "middle", 10 * MB, {5 * MB: b"middle"})
    backup = add(folder, root)
    content = decompressed(backup.path.read_bytes(), "tar.zst")
    offset = str(5 * MB).encode()
    assert offset in content
    changed = content.replace(offset, str(6 * MB).encode(), 1)
    options: dict[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
    backup.path.write_bytes(zstd.compress(changed, options=options))
    with pytest.raises(BackupError, match="results/job/middle"):
        archive.verify(backup.path)


def test_a_sparse_file_with_8_gib_of_data_has_its_size_and_is_followed_by_the_next_member() -> None:
    """From there on, tarfile writes the stored size into a header of its own."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("sparse")
        attributes.set_segments(info, 10_000, [(2000, 5)])
        info.pax_headers = {**info.pax_headers, "size": str(info.size)}
        tar.addfile(info, io.BytesIO(b"12345"))
        tar.addfile(tarfile.TarInfo("next"))
    target.seek(0)
    with tarfile.open(fileobj=target, mode="r|") as tar:
        first = tar.next()
        assert first is not None
        attributes.correct_size(first)
        assert first.size == 10_000
        content = tar.extractfile(first)
        assert content is not None
        assert content.read() == bytes(2000) + b"12345" + bytes(7995)
        assert [info.name for info in tar] == ["sparse", "next"]


XATTRS = {"user.plain": b"value", "user.a=b%3D\n": b"\xff\x00\n=1", "user.empty": b"", "user.\udcff": b"x"}


def test_times_and_extended_attributes_come_back(folder: BackupFolder, root: Root, tmp_path: Path) -> None:
    job = fill(root)
    everyone = 2**32 - 1
    entries = ((1, 6, everyone), (2, 4, 12345), (4, 4, everyone), (16, 4, everyone), (32, 0, everyone))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(job / "global/a.tif", "system.posix_acl_access", acl)
    for path in ("global", "global/a.tif", "global/zeros.tif"):
        for name, value in XATTRS.items():
            os.setxattr(job / path, name, value)
    os.utime(job / "link", ns=(0, 1_234_567_890_123_456_789), follow_symlinks=False)
    os.utime(job / "global/a.tif", ns=(0, -1_500_000_001))

    def attributes_of(place: Path) -> dict[str, object]:
        return {
            str(path.relative_to(place)): (
                path.lstat().st_mtime_ns,
                {
                    name: os.getxattr(path, name, follow_symlinks=False)
                    for name in os.listxattr(path, follow_symlinks=False)
                },
            )
            for path in (place, *place.rglob("*"))
        }

    before = attributes_of(job)
    restored = unpack(add(folder, root).path, tmp_path / "place")
    assert attributes_of(restored) == before
    assert tree(restored) == tree(job)


def test_access_that_a_folder_passes_on_does_not_come_back(
    folder: BackupFolder, root: Root, tmp_path: Path
) -> None:
    job = fill(root)
    everyone = 2**32 - 1
    entries = ((1, 7, everyone), (2, 7, 12345), (4, 5, everyone), (16, 7, everyone), (32, 0, everyone))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    place = tmp_path / "place"
    place.mkdir()
    os.setxattr(place, "system.posix_acl_default", acl)
    assert unpack_into(place, add(folder, root).path) == []
    assert tree(place / "job") == tree(job)
    entries_below = [path for path in (place / "job").rglob("*") if not path.is_symlink()]
    assert [path for path in (place / "job", *entries_below) if os.listxattr(path)] == []


def test_an_attribute_that_cannot_be_set_is_reported_and_the_rest_is_restored(
    folder: BackupFolder, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = fill(root)
    os.setxattr(job / "global/a.tif", "user.plain", b"value")
    before = tree(job)
    backup = add(folder, root)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    (tmp_path / "place").mkdir()
    (problem,) = unpack_into(tmp_path / "place", backup.path)
    assert "results/job/global/a.tif" in problem
    assert "user.plain" in problem
    assert tree(tmp_path / "place" / "job") == before


OLD_ARCHIVE = """
D77#B1Xv{(09NB>Brt2N1K74Uc&I6marKZTM2u(C7Y@=!Ew@p2CY>{7FsKC;3SR(W09ydgR6ANqDV0D_%Bs?2rja7<
s2vq@0Q}0YEIW8i0A2v@cPV8_+=xsK+6$8x+EP1_2bxPMt4<P2bt#nySjwVJV}Tw^sRYEIL@d?mDq+k;*#6%+`2Pt6
st?5iJpz&X6mT2dr;>ep_T+5;;=VohUi|+ALq7SYSlM8cPewM-Pa{1lZi7k~+q0y#KWfTd(7*-+3&lbakzh{*G5s*4
orY;VO&w=~C}nlTL258S4zmzJ3<*jl)?$Gkiz)?-YjJryS2DSjvfx{G)TILc&{U^MM69T(12Jo<fTb*l#E}I789Y1t
9jP|cK=@%Q+4%Q|Sz`KLeE)y<iD@JSFP5pUN}Pim;{v2{T6Byt7dJMR+--a78gUUcVn;t*_mk<F;TDE`)9uIog;2`I
^lXmX{F=#y(tRy5cl=2^w!4LmF*ns#i1=}+3y{W{pOYEf_?Xt>>+SiS^OBLRztF=e8E5RIOt<wyd6@xpsNtDXY-C0X
l7d2ESObv-1}Q`o8ydw25`dsNiUbh`q#%ePMo5f+FyRpa5gY*#dO^yqtN{lI1$us}qJmd#p9%_Ist*up5e$Ry>4tvd
Xcpv~!dNW4Z<HmM_K6M&qyzb_OYtd_Q6<fEV@ighSv6iPGC_=OJk~S6y?KCCam1vLAUn(-K$SqC$dsU>8nyw{u>?nl
08vQ`4~SM?FhG;)P?<v-QyD}B#zb<<d2tPBI+#14x$Zm%nr9GM(Mg-#KzM*sQ83^rz55T-bIg|TIAAEu(F3|6Gwz=)
4O87GD^WUv0Zr!*pkKxkxL@Q;zRwq~@t1xXG~H}&mVxsJaM==xT;6oW=lA=voNwom5gDR|b_xqRyFCi2Ak9qC(5t1s
3bI@h#)}$%f2rqo3>(I~vj}5s`cY>+hD`hwQaGnw8~
"""


def test_an_archive_of_format_1_is_verified_and_restored(folder: BackupFolder, tmp_path: Path) -> None:
    folder.path.mkdir()
    path = folder.path / "job@20260615T120000000000Z.tar.zst"
    path.write_bytes(base64.b85decode(OLD_ARCHIVE.replace("\n", "")))
    contents = archive.verify(path)
    assert (contents.head, contents.files, contents.bytes) == (replace(HEAD, format=1), 2, 100_040)
    job = unpack(path, tmp_path / "place")
    assert (job / "sub/a.tif").read_bytes() == b"data" * 10
    assert (job / "same").samefile(job / "sub/a.tif")
    assert (job / "sparse").read_bytes() == bytes(100_000)
    assert (job / "link").readlink() == Path("sub/a.tif")
    assert (job / "sub").stat().st_mtime_ns == 1_600_000_000_500_000_000
    # Only root can give it back to its owner; for another owner, group and others share their rights.
    assert stat.S_IMODE((job / "sub/a.tif").stat().st_mode) == (0o640 if os.geteuid() == 0 else 0o600)


# -- hostile contents -----------------------------------------------------------------------------------


def forge(folder: BackupFolder, *members: tarfile.TarInfo) -> Path:
    """Write an archive with these members, as no version of this program writes it."""
    folder.path.mkdir(exist_ok=True)
    path = folder.path / "job@20260615T120000000000Z.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        head = json.dumps({**asdict(HEAD), "artifacts": list(HEAD.artifacts)}).encode()
        for info, content in [(tarfile.TarInfo(archive.HEAD), head), *((member, b"") for member in members)]:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        tar.addfile(tarfile.TarInfo(archive.MANIFEST))
    return path


def entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o777
    return info


@pytest.mark.parametrize(
    "members",
    [
        [entry("results/job", tarfile.CHRTYPE)],
        [entry("results/job", tarfile.BLKTYPE)],
        [entry("results/job", tarfile.SYMTYPE, "CANARY"), entry("results/job/new", tarfile.REGTYPE)],
        [entry("results/job", tarfile.SYMTYPE, "CANARY"), entry("results/job/new", tarfile.DIRTYPE)],
        [entry("results/job", tarfile.SYMTYPE, "CANARY/old"), entry("results/job", tarfile.REGTYPE)],
        [
            entry("results/job", tarfile.DIRTYPE),
            entry("results/job/out", tarfile.SYMTYPE, "CANARY"),
            entry("results/job/same", tarfile.LNKTYPE, "results/job/out/old"),
        ],
        [
            entry("results/job", tarfile.DIRTYPE),
            entry("results/job/same", tarfile.LNKTYPE, "uploads/job"),
        ],
        [entry("results/job", tarfile.LNKTYPE, "results/../old")],
        [entry("results/job/../../new", tarfile.REGTYPE)],
        [entry("results/job/new", tarfile.REGTYPE)],
    ],
)
def test_a_member_that_leads_elsewhere_is_refused(
    folder: BackupFolder, tmp_path: Path, members: list[tarfile.TarInfo]
) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "old").touch()
    before = tree(canary)
    for member in members:
        member.linkname = member.linkname.replace("CANARY", str(canary))
    path = forge(folder, *members)
    with pytest.raises(BackupError):
        unpack(path, tmp_path / "place")
    assert tree(canary) == before
    assert not [found for found in tmp_path.rglob("new") if not found.is_symlink()]
    assert not (tmp_path / "place/job").is_block_device()
    assert not (tmp_path / "place/job").is_char_device()


@pytest.mark.parametrize(
    "headers",
    [
        {"mtime": "x"},
        {"mtime": "1e999999999"},
        {"mtime": str((1 << 63) - 1)},
        {"gid": str(1 << 40)},
        {"uid": str(1 << 80)},
        {"GNU.sparse.map": "x", "GNU.sparse.size": "1"},
        {"GNU.sparse.map": f"{1 << 70},1", "GNU.sparse.size": str(1 << 70)},
        {"GNU.sparse.map": "0,-1", "GNU.sparse.size": "-1"},
        {"SCHILY.xattr.user.%00": "x"},
    ],
    ids=str,
)
def test_a_member_with_impossible_attributes_is_damage(
    folder: BackupFolder, tmp_path: Path, headers: dict[str, str]
) -> None:
    for kind in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE):
        member = entry("results/job", kind, "target")
        member.pax_headers = headers
        path = forge(folder, member)
        for read in (archive.verify, partial(unpack, place=tmp_path / f"place{kind!r}")):
            with suppress(BackupError):
                read(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"format": "\x1b]0;title\x07"},
        {"job_id": 5},
        {"status": []},
        {"artifacts": [5]},
        {"artifacts": ["elsewhere/job"]},
        {"artifacts": ["results/../../job"]},
        {"artifacts": ["results/\0"]},
        {"artifacts": ["results/\ud800"]},
        None,
    ],
    ids=str,
)
def test_any_head_is_valid_or_damage(folder: BackupFolder, fields: dict[str, object] | None) -> None:
    good = asdict(Head("job", "completed", "2026-06-15T12:00:00+00:00", "host", ("results/job/",)))
    text = b"[" * 100_000 if fields is None else json.dumps(good | fields).encode()
    folder.path.mkdir()
    path = folder.path / "job@20260615T120000000000Z.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(archive.HEAD)
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    with pytest.raises(BackupError) as caught:
        archive.read_head(path)
    assert str(caught.value).isprintable()


def in_child(work: Callable[[], object], uid: int, groups: list[int]) -> None:
    """Do some work as a user with a group of the same number, and other groups."""
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            work()
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which becomes another user")
@pytest.mark.parametrize(
    ("mode", "groups", "restored"),
    [
        (0o640, [7777], 0o640),  # the user is in the group of the file
        (0o640, [], 0o600),  # or in it only when the backup was made
        (0o664, [], 0o644),
        (0o6755, [7777], 0o755),  # somebody else's program must not run as this user
    ],
)
def test_a_file_that_an_ordinary_user_restores_gives_nobody_more(
    folder: BackupFolder, root: Root, mode: int, groups: list[int], restored: int
) -> None:
    job = root.path / "job"
    job.mkdir()
    file = job / "program"
    file.write_text("#!/bin/sh")
    os.chown(file, 6666, 7777)
    file.chmod(mode)
    backup = add(folder, root)
    with tempfile.TemporaryDirectory() as name:
        copy, place = Path(name) / backup.path.name, Path(name) / "place"
        shutil.copy(backup.path, copy)
        for path in (Path(name), copy):
            os.chown(path, 8888, 8888)
        in_child(lambda: unpack(copy, place), 8888, groups)
        status = (place / "job/program").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (restored, 8888)
    assert status.st_gid == (7777 if groups else 8888)


# -- what stops a backup --------------------------------------------------------------------------------


def test_a_stopped_backup_leaves_nothing(
    folder: BackupFolder, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root.path / "job").mkdir()
    (root.path / "job" / "a.tif").write_bytes(bytes(3 * MB))
    stop, pread, blocks = StopFlag(), os.pread, 0

    def read_and_stop(fd: int, size: int, offset: int) -> bytes:
        nonlocal blocks
        blocks += 1
        stop.set()
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", read_and_stop)
    with pytest.raises(BackupError):
        folder.add(HEAD, "tar.zst", NOW, [(root, "job")], stop=stop)
    assert blocks == 1
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("vanished", ["job", "job/sub"])
def test_a_folder_that_vanishes_before_it_is_copied_fails_the_backup(
    folder: BackupFolder, root: Root, monkeypatch: pytest.MonkeyPatch, vanished: str
) -> None:
    job = root.path / "job"
    (job / "sub").mkdir(parents=True)
    (job / "sub" / "a.tif").write_text("data")
    for path in (job / "sub" / "a.tif", job / "sub", job):
        os.utime(path, (0, 1_600_000_000))
    real = tarfile.TarFile.addfile

    def vanish(self: tarfile.TarFile, info: tarfile.TarInfo, file: IO[bytes] | None = None) -> None:
        real(self, info, file)
        if info.name == "results/job":
            shutil.rmtree(root.path / vanished)

    monkeypatch.setattr(tarfile.TarFile, "addfile", vanish)
    with pytest.raises(BackupError, match="results/job"):
        add(folder, root)
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("how", ["moved", "written"])
def test_a_change_is_noticed_although_a_file_has_a_time_in_the_future(
    folder: BackupFolder, root: Root, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    job = root.path / "job"
    for name in ("copied", "later"):
        (job / name).mkdir(parents=True)
        (job / name / f"{name}.tif").write_text("data")
    (job / "future.tif").write_text("data")
    os.utime(job / "future.tif", (4_000_000_000, 4_000_000_000))
    real = tarfile.TarFile.addfile
    copied: list[Path] = []

    def change(self: tarfile.TarFile, info: tarfile.TarInfo, file: IO[bytes] | None = None) -> None:
        real(self, info, file)
        if info.isdir() and info.name != "results/job":
            copied.append(root.path / info.name.removeprefix("results/"))
            if len(copied) == 2 and how == "written":
                next(copied[0].iterdir()).write_text("more data")
            elif len(copied) == 2:
                file_of_second = next(copied[1].iterdir())
                file_of_second.rename(copied[0] / "moved.tif")

    monkeypatch.setattr(tarfile.TarFile, "addfile", change)
    with pytest.raises(BackupError, match="changed during the copy"):
        add(folder, root)
    assert list(folder.path.iterdir()) == []


def test_an_artifact_that_is_missing_fails_the_backup(folder: BackupFolder, root: Root) -> None:
    with pytest.raises(BackupError, match="results/job"):
        add(folder, root)
    assert list(folder.path.iterdir()) == []


@pytest.mark.root
def test_no_backup_starts_on_a_disk_without_room_for_it(
    folder: BackupFolder, root: Root, mount_tmpfs: MountTmpfs
) -> None:
    (root.path / "job").mkdir()
    (root.path / "job" / "a.tif").write_bytes(os.urandom(10 * MB))
    mount_tmpfs(folder.path, "20M")
    with pytest.raises(BackupError, match=str(folder.path)):
        add(folder, root)
    assert list(folder.path.iterdir()) == []
    sparse_file(root.path / "job" / "a.tif", 100 * MB, {0: b"start"})
    add(folder, root)


@pytest.mark.root
def test_what_a_killed_backup_left_makes_room_for_the_next(
    folder: BackupFolder, root: Root, mount_tmpfs: MountTmpfs
) -> None:
    (root.path / "job").mkdir()
    (root.path / "job" / "a.tif").write_bytes(os.urandom(10 * MB))
    mount_tmpfs(folder.path, "40M")
    (folder.path / ".part.other@20260615T120000000000Z.tar.zst").write_bytes(bytes(20 * MB))
    backup = add(folder, root)
    assert list(folder.path.iterdir()) == [backup.path]


def test_the_unfinished_backup_of_another_process_stays(folder: BackupFolder, root: Root) -> None:
    import fcntl

    (root.path / "job").mkdir()
    folder.path.mkdir()
    live = folder.path / ".part.other@20260615T120000000000Z.tar.zst"
    with live.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        add(folder, root)
        assert live.exists()
    add(folder, root)
    assert not live.exists()


def test_a_socket_is_not_in_a_backup_and_the_log_says_so(
    folder: BackupFolder, root: Root, caplog: pytest.LogCaptureFixture
) -> None:
    import socket

    (root.path / "job").mkdir()
    with socket.socket(socket.AF_UNIX) as listener, caplog.at_level(logging.INFO):
        listener.bind(f"/proc/self/fd/{root.fd}/job/socket")
        add(folder, root)
    assert "results/job/socket" in caplog.text
