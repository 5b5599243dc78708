"""One archive for one job: written, read back and unpacked.

A tar file, compressed as a whole: first ``job.json``, then the artifacts under ``results/``, ``uploads/`` and
``temp/``, last ``manifest.jsonl`` with a line for each member (the SHA-256 and the size of a file).  The
manifest comes last because it says what was copied, not what lay there before; to verify is to read the
members, write the manifest anew and compare.  Names, modes, owners and times stand in no manifest: the
checksum of the compression covers them.  Memory grows with neither files nor sizes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from eemtcleanupd.backup.compression import compressed, decompressed, zstd_error
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.walk import Folder, walk
from eemtcleanupd.errors import BackupError
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import RootName

HEAD: Final = "job.json"
MANIFEST: Final = "manifest.jsonl"
_FORMAT = 1
# Linux takes no longer path in one call, and some of it goes to the folder where it is unpacked.
_LONGEST_PATH = 3500
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class Head:
    """Whose data an archive has; ``backed_up_at`` is ISO 8601 in UTC, ``artifacts`` are labels."""

    job_id: str
    status: str
    backed_up_at: str
    host: str
    artifacts: tuple[str, ...]
    workflow_type: str | None = None
    completed_at: str | None = None
    dem_filename: str | None = None
    format: int = _FORMAT


@dataclass(slots=True)
class Contents:
    """What an archive has: the bytes of its files, and how many files."""

    head: Head
    files: int = 0
    bytes: int = 0


def write(
    target: IO[bytes], ending: str, head: Head, artifacts: Sequence[tuple[Root, str]], *, scratch: Path
) -> Contents:
    """Write an archive.

    Sockets and devices have no content and are left out.

    Args:
        target: an empty file.
        ending: how it is compressed, one of :data:`compression.ENDINGS`.
        head: whose data it is.
        artifacts: roots and the names of their entries.
        scratch: a folder for a temporary file.

    Raises:
        BackupError: something cannot be read, or changed while it was copied.
        OSError: the archive cannot be written.
    """
    contents = Contents(head)
    with (
        tempfile.TemporaryFile(dir=scratch) as manifest,
        compressed(target, ending) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as tar,
    ):
        _add_bytes(tar, HEAD, json.dumps(asdict(head), indent=2).encode())
        writer = _Writer(tar, manifest, contents)
        for root, name in artifacts:
            writer.add(root, name)
        info = tarfile.TarInfo(MANIFEST)
        info.size = manifest.tell()
        manifest.seek(0)
        tar.addfile(info, manifest)
    return contents


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


class _Writer:
    def __init__(self, tar: tarfile.TarFile, manifest: IO[bytes], contents: Contents) -> None:
        self._tar = tar
        self._manifest = manifest
        self._contents = contents
        self._links: dict[tuple[int, int], str] = {}

    def add(self, root: Root, name: str) -> None:
        """Add an entry of a root with all that is below it."""
        self._links = {}  # a hard link leads only to what comes back together with it
        base = str(root.name)

        def visit(folder: Folder, entry: os.DirEntry[str]) -> None:
            self._entry(root, folder.fd, entry.name, f"{base}/{folder.path}/{entry.name}")

        def enter(folder: Folder) -> None:
            self._member(_info(f"{base}/{folder.path}", folder.status, tarfile.DIRTYPE), {"type": "folder"})

        status = os.stat(name, dir_fd=root.fd, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            self._entry(root, root.fd, name, f"{base}/{name}")
        elif failed := walk(root, name, visit, enter=enter):
            raise BackupError(f"{failed} folders of {base}/{printable(name)} cannot be read")

    def _entry(self, root: Root, folder_fd: int, name: str, path: str) -> None:
        try:
            status = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                self._file(root, folder_fd, name, path)
            elif stat.S_ISLNK(status.st_mode):
                info = _info(path, status, tarfile.SYMTYPE)
                info.linkname = os.readlink(name, dir_fd=folder_fd)
                self._member(info, {"type": "symlink", "target": info.linkname})
            elif stat.S_ISFIFO(status.st_mode):
                self._member(_info(path, status, tarfile.FIFOTYPE), {"type": "fifo"})
        except OSError as error:
            raise BackupError(f"{printable(path)} cannot be copied: {error.strerror or error}") from error

    def _file(self, root: Root, folder_fd: int, name: str, path: str) -> None:
        with os.fdopen(os.open(name, _OPEN_FILE, dir_fd=folder_fd), "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode) or before.st_dev != root.device:
                raise BackupError(f"{printable(path)} changed while it was copied")
            known = self._links.get((before.st_dev, before.st_ino)) if before.st_nlink > 1 else None
            if known is not None:
                info = _info(path, before, tarfile.LNKTYPE)
                info.linkname = known
                self._member(info, {"type": "hardlink", "target": known})
                return
            if before.st_nlink > 1:
                self._links[before.st_dev, before.st_ino] = path
            info = _info(path, before, tarfile.REGTYPE)
            info.size = before.st_size
            hashing = _Hashing(file)
            self._member(info, None, hashing)
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise BackupError(f"{printable(path)} changed while it was copied")
            self._note(path, _file_line(before.st_size, hashing))
            self._contents.files += 1
            self._contents.bytes += before.st_size

    def _member(
        self, info: tarfile.TarInfo, line: dict[str, Any] | None, file: _Hashing | None = None
    ) -> None:
        if len(os.fsencode(info.name)) > _LONGEST_PATH:
            raise BackupError(f"a path is too long to be restored: {printable(info.name)[:80]}…")
        self._tar.addfile(info, file)  # type: ignore[arg-type]
        self._tar.members.clear()  # type: ignore[attr-defined]  # else each stays in memory
        if line is not None:
            self._note(info.name, line)

    def _note(self, path: str, line: dict[str, Any]) -> None:
        self._manifest.write(_line(path, line))


class _Hashing:
    """Reads a file and hashes what was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        return data


def _info(path: str, status: os.stat_result, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type = kind
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid = status.st_uid, status.st_gid
    info.mtime = status.st_mtime_ns / 1e9
    return info


def _line(path: str, line: dict[str, Any]) -> bytes:
    return json.dumps({"path": path, **line}).encode() + b"\n"


def _file_line(size: int, hashing: _Hashing) -> dict[str, Any]:
    return {"type": "file", "size": size, "sha256": hashing.sha256.hexdigest()}


def read_head(path: Path) -> Head:
    """Return whose data an archive has.

    Raises:
        BackupError: it is no archive of ours, or damaged.
    """
    with _members(path) as (members, _):
        return next(members)[1]


def verify(path: Path) -> Contents:
    """Read an archive to its end and compare every member with the manifest.

    Raises:
        BackupError: it is damaged; which member is the first that is wrong.
    """
    with tempfile.TemporaryFile() as seen, _members(path, whole=True) as (members, stream):
        contents: Contents | None = None
        for tar, head, info in members:
            contents = contents or Contents(head)
            if info is None:
                continue
            if info.name == MANIFEST:
                _compare(path, seen, _extracted(tar, info))
                while stream.read(1 << 20):
                    pass  # the checksum of the whole comes last
                return contents
            if info.isreg():
                hashing = _Hashing(_extracted(tar, info))
                while hashing.read(1 << 20):
                    pass
                contents.files += 1
                contents.bytes += info.size
                seen.write(_line(info.name, _file_line(info.size, hashing)))
            else:
                seen.write(_line(info.name, _described(info)))
    raise BackupError(f"{path.name} is damaged: it ends before its manifest")


def _described(info: tarfile.TarInfo) -> dict[str, Any]:
    if info.isdir():
        return {"type": "folder"}
    if info.issym() or info.islnk():
        return {"type": "symlink" if info.issym() else "hardlink", "target": info.linkname}
    return {"type": "fifo"}


def _compare(path: Path, seen: IO[bytes], manifest: IO[bytes]) -> None:
    seen.seek(0)
    for found in seen:
        if manifest.readline() != found:
            name = printable(json.loads(found)["path"])
            raise BackupError(f"{path.name} is damaged: {name} is not what its manifest says")
    if manifest.read(1):
        raise BackupError(f"{path.name} is damaged: a member of its manifest is missing")


def _extracted(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    if file is None:
        raise BackupError(f"{printable(info.name)} is no file")
    return file


@contextlib.contextmanager
def _members(
    path: Path, *, whole: bool = False
) -> Iterator[tuple[Iterator[tuple[tarfile.TarFile, Head, tarfile.TarInfo | None]], IO[bytes]]]:
    """Give the members of an archive in order, the first time with None for the head, and what it reads.

    With ``whole`` one that lost its end is refused at once.
    """

    def read(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarFile, Head, tarfile.TarInfo | None]]:
        first = tar.next()
        if first is None or first.name != HEAD:
            raise BackupError(f"{path.name} is no backup of eemtcleanupd")
        head = _parsed(path, _extracted(tar, first).read())
        yield tar, head, None
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]
            yield tar, head, info

    try:
        with (
            path.open("rb") as source,
            decompressed(source, path.name, whole=whole) as stream,
            tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as tar,
        ):
            tar.errorlevel = 1
            yield read(tar), stream
    except BackupError:
        raise
    except OSError as error:
        # gzip's own errors come without a number.
        words = error.strerror or f"it is damaged ({error})"
        raise BackupError(f"{path.name} cannot be read: {words}") from error
    except (tarfile.TarError, EOFError, ValueError, zstd_error()) as error:
        raise BackupError(f"{path.name} is damaged: {printable(str(error))}") from error


def _parsed(path: Path, text: bytes) -> Head:
    try:
        fields = json.loads(text)
        if fields["format"] != _FORMAT:
            raise BackupError(f"{path.name} was written by a later version (format {fields['format']})")
        head = Head(**{**fields, "artifacts": tuple(fields["artifacts"])})
    except (ValueError, TypeError, KeyError) as error:
        raise BackupError(f"{path.name} is damaged: its {HEAD} cannot be read") from error
    return head


@dataclass(slots=True)
class _Unpacking:
    """Folders get their mode, owner and time last: unpacking into them would change these."""

    folders: list[tuple[str, tarfile.TarInfo]] = field(default_factory=list)

    def take(self, tar: tarfile.TarFile, info: tarfile.TarInfo, place: Path, rest: str) -> None:
        target = os.path.join(place, rest)  # noqa: PTH118  (names that are not UTF-8 and long ones)
        parent = os.path.dirname(target)  # noqa: PTH120
        if os.path.realpath(parent) != parent:
            raise BackupError(f"{printable(info.name)} lies below a link")
        info.name = rest
        if info.isdir():
            os.mkdir(target, 0o700)  # noqa: PTH102
            self.folders.append((target, info))
            return
        if info.islnk():
            info.linkname = _below(info.linkname)[2]
        tar.extract(info, str(place), numeric_owner=True)

    def finish(self, tar: tarfile.TarFile) -> None:
        for target, info in reversed(self.folders):
            tar.chown(info, target, numeric_owner=True)
            tar.chmod(info, target)
            tar.utime(info, target)


def unpack(path: Path, place_of: Callable[[RootName, str], Path | None]) -> None:
    """Unpack an archive that has been verified, with owners (as root), modes and times.

    Args:
        path: the archive.
        place_of: says into which folder, which only we can write to, the artifact of a root goes; None to
            leave it out.

    Raises:
        BackupError: it cannot be read, or something cannot be written; what was unpacked is left there.
    """
    unpacking = _Unpacking()
    with _members(path) as (members, _stream):
        for tar, _, info in members:
            if info is None:
                continue
            if info.name == MANIFEST:
                unpacking.finish(tar)
                return
            # Older versions of Python know no filters; what is unpacked is ours and was verified.
            tar.extraction_filter = lambda member, _path: member
            root, name, rest = _below(info.name)
            place = place_of(root, name)
            if place is not None:
                unpacking.take(tar, info, place, rest)


def _below(name: str) -> tuple[RootName, str, str]:
    """Split a member's name into root, artifact, and the path below the root."""
    parts = PurePosixPath(name).parts
    if len(parts) < 2 or ".." in parts or parts[0] not in set(RootName):
        raise BackupError(f"a member has a name that it cannot have: {printable(name)}")
    return RootName(parts[0]), parts[1], "/".join(parts[1:])
