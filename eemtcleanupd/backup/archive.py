"""Write, verify and unpack archives, one for each job.

An archive is a compressed tar file.  It contains ``job.json``, then the artifacts under ``results/``,
``uploads/`` and ``temp/``, then ``manifest.jsonl`` with one line for each member (for a file: SHA-256 and
size).  The manifest is last because it describes what was copied, not what was there before.  Verification
reads the members, builds the manifest again and compares both.  The manifest does not contain modes, owners,
times and extended attributes; the checksum of the compression covers them.  Of a sparse file, the archive
has the data and a map of it (format 2; format 1 has no sparse files).  Memory use grows neither with the
number of files nor with their sizes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import stat
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from eemtcleanupd.backup import attributes
from eemtcleanupd.backup.compression import DAMAGE_ERRORS, compressed, decompressed
from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.copying import data_segments, write_at
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.tree import FOLDER_FLAGS
from eemtcleanupd.deletion.walk import Folder, measure, walk
from eemtcleanupd.errors import BackupError
from eemtcleanupd.files import create_new
from eemtcleanupd.formatting import plural, printable
from eemtcleanupd.model import RootName
from eemtcleanupd.policy.ownership import invalid_name_reason

log = logging.getLogger(__name__)

HEAD: Final = "job.json"
MANIFEST: Final = "manifest.jsonl"
_FORMAT = 2
_READABLE_FORMATS = (1, 2)
# Linux limits a path to 4096 bytes, and the folder for unpacking needs some of them.
_MAX_PATH_BYTES = 3500
_MAX_PROBLEMS = 100
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class Head:
    """The job of an archive; ``backed_up_at`` is ISO 8601 in UTC, ``artifacts`` are labels."""

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
    """The content of an archive: the number of its files and their total size."""

    head: Head
    files: int = 0
    bytes: int = 0


def write(
    target: IO[bytes],
    ending: str,
    head: Head,
    artifacts: Sequence[tuple[Root, str]],
    *,
    scratch: Path,
    stop: StopFlag | None = None,
) -> Contents:
    """Write an archive.

    Sockets and devices have no content; they are skipped and logged.

    Args:
        target: an empty file.
        ending: the file name extension, which selects the compression; one of :data:`compression.ENDINGS`.
        head: the job.
        artifacts: roots and the names of their entries.
        scratch: a folder for a temporary file.
        stop: ends the copy between two blocks.

    Raises:
        BackupError: an entry cannot be read, changed or vanished during the copy, or ``stop`` was set.
        OSError: the archive cannot be written.
    """
    contents = Contents(head)
    with (
        tempfile.TemporaryFile(dir=scratch) as manifest,
        compressed(target, ending) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as tar,
    ):
        _add_bytes(tar, HEAD, json.dumps(asdict(head), indent=2).encode())
        writer = _Writer(tar, manifest, contents, stop or StopFlag())
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
    def __init__(self, tar: tarfile.TarFile, manifest: IO[bytes], contents: Contents, stop: StopFlag) -> None:
        self._tar = tar
        self._stop = stop
        self._manifest = manifest
        self._contents = contents
        self._links: dict[tuple[int, int], str] = {}

    def add(self, root: Root, name: str) -> None:
        """Add an entry of a root with everything below it."""
        self._links = {}  # a hard link must refer to a member that is restored with it
        base = str(root.name)

        def visit(folder: Folder, entry: os.DirEntry[str]) -> None:
            self._add_entry(root, folder.fd, entry.name, f"{base}/{folder.path}/{entry.name}")

        def enter(folder: Folder) -> None:
            path = f"{base}/{folder.path}"
            info = attributes.member(path, folder.status, tarfile.DIRTYPE)
            with _naming(path):
                attributes.add_xattrs(info, folder.fd)
                self._add_member(info, {"type": "folder"})

        before = measure(root, name, self._stop)
        with _naming(f"{base}/{name}"):
            status = os.stat(name, dir_fd=root.fd, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            self._add_entry(root, root.fd, name, f"{base}/{name}")
        elif failed := walk(root, name, visit, enter=enter, stop=self._stop):
            raise BackupError(f"Cannot read {plural(failed, 'folder')} of {base}/{printable(name)}.")
        # No listing contains an entry that was deleted before, and the walk ignores deleted folders.
        # So compare both measurements.
        after = measure(root, name, self._stop)
        _check_stop(self._stop)
        if (before.files, before.state) != (after.files, after.state) or after.errors:
            raise BackupError(f"{base}/{printable(name)} changed during the copy.")

    def _add_entry(self, root: Root, folder_fd: int, name: str, path: str) -> None:
        with _naming(path):
            status = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                self._add_file(root, folder_fd, name, path)
            elif stat.S_ISLNK(status.st_mode):
                info = attributes.member(path, status, tarfile.SYMTYPE)
                info.linkname = os.readlink(name, dir_fd=folder_fd)
                self._add_member(info, {"type": "symlink", "target": info.linkname})
            elif stat.S_ISFIFO(status.st_mode):
                self._add_member(attributes.member(path, status, tarfile.FIFOTYPE), {"type": "fifo"})
            else:
                log.info("%s is a socket or a device, which a backup cannot contain.", printable(path))

    def _add_file(self, root: Root, folder_fd: int, name: str, path: str) -> None:
        with os.fdopen(os.open(name, _OPEN_FILE, dir_fd=folder_fd), "rb", buffering=0) as file:
            fd = file.fileno()
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode) or before.st_dev != root.device:
                raise BackupError(f"{printable(path)} changed during the copy.")
            known = self._links.get((before.st_dev, before.st_ino)) if before.st_nlink > 1 else None
            if known is not None:
                info = attributes.member(path, before, tarfile.LNKTYPE)
                info.linkname = known
                self._add_member(info, {"type": "hardlink", "target": known})
                return
            if before.st_nlink > 1:
                self._links[before.st_dev, before.st_ino] = path
            info = attributes.member(path, before, tarfile.REGTYPE)
            info.size = before.st_size
            attributes.add_xattrs(info, fd)
            segments = data_segments(fd)
            if sum(length for _, length in segments) < before.st_size:
                attributes.set_segments(info, before.st_size, segments)
            content = _Hashing(_Segments(fd, segments), attributes.segment_map(info), self._stop)
            self._add_member(info, None, content)
            after = os.fstat(fd)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise BackupError(f"{printable(path)} changed during the copy.")
            self._add_line(path, _file_line(before.st_size, content))
            self._contents.files += 1
            self._contents.bytes += before.st_size

    def _add_member(
        self, info: tarfile.TarInfo, line: dict[str, Any] | None, file: _Hashing | None = None
    ) -> None:
        if len(os.fsencode(info.name)) > _MAX_PATH_BYTES:
            raise BackupError(f"This path is too long to be restored: {printable(info.name)[:80]}…")
        self._tar.addfile(info, file)  # type: ignore[arg-type]
        self._tar.members.clear()  # type: ignore[attr-defined]  # frees the memory of each member
        if line is not None:
            self._add_line(info.name, line)

    def _add_line(self, path: str, line: dict[str, Any]) -> None:
        self._manifest.write(_line(path, line))


@contextlib.contextmanager
def _naming(path: str, action: str = "copy") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackupError(f"Cannot {action} {printable(path)}: {error.strerror or error}.") from error


def _check_stop(stop: StopFlag) -> None:
    if stop.is_set():
        raise BackupError("The run was stopped during the backup.")


class _Segments:
    """Reads parts of an open file, one after the other."""

    def __init__(self, fd: int, segments: Sequence[tuple[int, int]]) -> None:
        self._fd = fd
        self._left = deque(segments)

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes; fewer only at the end, or if the file became shorter."""
        parts = []
        while size and self._left:
            start, length = self._left.popleft()
            data = os.pread(self._fd, min(size, length), start)
            if not data:
                break
            parts.append(data)
            size -= len(data)
            if len(data) < length:
                self._left.appendleft((start + len(data), length - len(data)))
        return b"".join(parts)


class _Hashing:
    """Reads and hashes the stored content of a file.  For a sparse file, the hash covers the map first."""

    def __init__(self, source: _Segments | IO[bytes], segment_map: str | None, stop: StopFlag) -> None:
        self._source = source
        self._stop = stop
        self.is_sparse = segment_map is not None
        self.sha256 = hashlib.sha256()
        if segment_map is not None:
            self.sha256.update(segment_map.encode())

    def read(self, size: int) -> bytes:
        _check_stop(self._stop)
        data = self._source.read(size)
        self.sha256.update(data)
        return data


def _line(path: str, line: dict[str, Any]) -> bytes:
    return json.dumps({"path": path, **line}).encode() + b"\n"


def _file_line(size: int, hashing: _Hashing) -> dict[str, Any]:
    kind = "sparse file" if hashing.is_sparse else "file"
    return {"type": kind, "size": size, "sha256": hashing.sha256.hexdigest()}


def read_head(path: Path, *, folder_fd: int | None = None) -> Head:
    """Return the job of an archive.

    ``folder_fd`` is the open folder of the archive; None to open it by its path.

    Raises:
        BackupError: the file is not an archive of this program, or is damaged.
    """
    with _opened(path, folder_fd) as (_, head, _):
        return head


def verify(path: Path, *, folder_fd: int | None = None, stop: StopFlag | None = None) -> Contents:
    """Read an archive to its end and compare every member with the manifest.

    ``folder_fd`` is the open folder of the archive; None to open it by its path.

    Raises:
        BackupError: the archive is damaged (the message names the first wrong member), or ``stop`` was set.
    """
    stop = stop or StopFlag()
    with _opened(path, folder_fd) as (tar, head, stream), tempfile.TemporaryFile() as lines:
        contents = Contents(head)
        for info in _members(tar):
            if info.name == MANIFEST:
                _compare(path, lines, _content(tar, info))
                _require_end(path, stream, info)
                return contents
            if info.isreg():
                hashing = _Hashing(_content(tar, attributes.stored(info)), attributes.segment_map(info), stop)
                while hashing.read(1 << 20):
                    pass
                contents.files += 1
                contents.bytes += info.size
                lines.write(_line(info.name, _file_line(info.size, hashing)))
            else:
                lines.write(_line(info.name, _described(info)))
    raise BackupError(f"{path.name} is damaged: it ends before its manifest.")


def _described(info: tarfile.TarInfo) -> dict[str, Any]:
    if info.isdir():
        return {"type": "folder"}
    if info.issym() or info.islnk():
        return {"type": "symlink" if info.issym() else "hardlink", "target": info.linkname}
    return {"type": "fifo"}


def _compare(path: Path, lines: IO[bytes], manifest: IO[bytes]) -> None:
    lines.seek(0)
    for line in lines:
        if manifest.readline() != line:
            name = printable(json.loads(line)["path"])
            raise BackupError(f"{path.name} is damaged: {name} differs from the manifest.")
    if manifest.read(1):
        raise BackupError(f"{path.name} is damaged: a member of its manifest is missing.")


def _require_end(path: Path, stream: IO[bytes], last: tarfile.TarInfo) -> None:
    """Read the rest of the stream, because the checksum is at its end; refuse data after the tar file."""
    while stream.read(1 << 20):
        pass
    blocks = -(-last.size // tarfile.BLOCKSIZE) + 2  # a tar file ends with two empty blocks
    records = -(-(last.offset_data + blocks * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE)
    if stream.tell() != records * tarfile.RECORDSIZE:
        raise BackupError(f"{path.name} is damaged: its length is wrong.")


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    if file is None:
        raise BackupError(f"{printable(info.name)} is not a file.")
    return file


@contextlib.contextmanager
def _opened(path: Path, folder_fd: int | None) -> Iterator[tuple[tarfile.TarFile, Head, IO[bytes]]]:
    """Open an archive and read its head; yield both and the decompressed stream."""
    try:
        with (
            os.fdopen(
                os.open(path if folder_fd is None else path.name, _OPEN_FILE, dir_fd=folder_fd), "rb"
            ) as source,
            decompressed(source, path.name) as stream,
            tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as tar,
        ):
            tar.errorlevel = 2
            yield tar, _first_member(path, tar), stream
    except BackupError:
        raise
    except OSError as error:
        # Errors of gzip have no number.
        reason = error.strerror or f"it is damaged ({error})"
        raise BackupError(f"Cannot read {path.name}: {reason}.") from error
    except (tarfile.TarError, *DAMAGE_ERRORS) as error:
        raise BackupError(f"{path.name} is damaged: {printable(str(error))}.") from error


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        attributes.correct_size(info)
        yield info


def _first_member(path: Path, tar: tarfile.TarFile) -> Head:
    info = tar.next()
    if info is None or info.name != HEAD:
        raise BackupError(f"{path.name} is not an eemtcleanupd backup.")
    text = _content(tar, info).read()
    try:
        fields = json.loads(text)
        if (version := fields["format"]) not in _READABLE_FORMATS:
            raise BackupError(
                f"{path.name} was written by a later version (format {printable(str(version))}). "
                "Update eemtcleanupd to read it."
            )
        head = Head(**{**fields, "artifacts": tuple(fields["artifacts"])})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BackupError(f"{path.name} is damaged: cannot read its {HEAD}.") from error
    texts = (head.job_id, head.status)
    if not (all(isinstance(each, str) for each in texts) and all(map(_is_label, head.artifacts))):
        raise BackupError(f"{path.name} is damaged: its {HEAD} has an invalid value.")
    return head


def _is_label(value: object) -> bool:
    root, _, name = value.partition("/") if isinstance(value, str) else ("", "", "")
    return root in set(RootName) and invalid_name_reason(name.removesuffix("/")) is None


class _Unpacking:
    """Unpacks members below open folders; sets the attributes of folders last, since unpacking changes these.

    Every name is opened or created relative to its parent, which is opened component by component from the
    artifact's folder and never through a link.
    """

    def __init__(self) -> None:
        self._folders: list[tuple[int, str, tarfile.TarInfo]] = []
        self._problems: list[str] = []
        self._omitted_problems = 0

    def extract(
        self, tar: tarfile.TarFile, info: tarfile.TarInfo, base_fd: int, parts: Sequence[str]
    ) -> None:
        """Create the entry of a member at a path below an open folder."""
        *parents, name = parts
        with _naming(info.name, "unpack"), _opened_below(base_fd, parents) as parent_fd:
            if info.isdir():
                os.mkdir(name, 0o700, dir_fd=parent_fd)
                self._folders.append((base_fd, "/".join(parts), info))
            elif info.issym():
                os.symlink(info.linkname, name, dir_fd=parent_fd)
                self._note(info, attributes.restore_link(info, parent_fd, name))
            elif info.islnk():
                self._link(info, base_fd, parts[0], parent_fd, name)
            elif info.isreg() or info.isfifo():
                with _new_file(name, parent_fd, is_fifo=info.isfifo()) as fd:
                    if info.isreg():
                        _write_content(fd, info, tar)
                    self._note(info, attributes.restore(info, fd))
            else:
                raise BackupError(f"The archive has a member of an invalid type: {printable(info.name)}.")

    def _link(self, info: tarfile.TarInfo, base_fd: int, artifact: str, parent_fd: int, name: str) -> None:
        """Create a hard link to a file of the same artifact, which was unpacked before."""
        root, linked_artifact, parts = _split_name(info.linkname)
        if (str(root), linked_artifact) != (PurePosixPath(info.name).parts[0], artifact):
            raise BackupError(f"{printable(info.name)} is a hard link to a file of another artifact.")
        *parents, linked = parts
        with _opened_below(base_fd, parents) as linked_fd:
            os.link(linked, name, src_dir_fd=linked_fd, dst_dir_fd=parent_fd, follow_symlinks=False)

    def _note(self, info: tarfile.TarInfo, problems: Iterator[str]) -> None:
        for problem in problems:
            if len(self._problems) < _MAX_PROBLEMS:
                self._problems.append(f"{printable(info.name)}: cannot restore the {printable(problem)}.")
            else:
                self._omitted_problems += 1

    def finish(self) -> list[str]:
        """Set the attributes of the folders; return what could not be set."""
        for base_fd, path, info in reversed(self._folders):
            with _naming(info.name, "unpack"), _opened_below(base_fd, path.split("/")) as fd:
                self._note(info, attributes.restore(info, fd))
        if self._omitted_problems:
            self._problems.append(f"{self._omitted_problems} more attributes cannot be restored.")
        return self._problems


@contextlib.contextmanager
def _opened_below(base_fd: int, names: Sequence[str]) -> Iterator[int]:
    """Open a folder below another one, never through a link."""
    fd = os.dup(base_fd)
    try:
        for name in names:
            child_fd = os.open(name, FOLDER_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = child_fd
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _new_file(name: str, parent_fd: int, *, is_fifo: bool) -> Iterator[int]:
    """Create and open a file, or a FIFO (which waits for no writer)."""
    if is_fifo:
        os.mkfifo(name, 0o600, dir_fd=parent_fd)
        fd = os.open(name, _OPEN_FILE, dir_fd=parent_fd)
    else:
        fd = create_new(Path(name), dir_fd=parent_fd)
    try:
        if is_fifo and not stat.S_ISFIFO(os.fstat(fd).st_mode):
            raise FileExistsError(errno.EEXIST, "it was replaced", name)
        yield fd
    finally:
        os.close(fd)


def _write_content(fd: int, info: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    """Write the content of a member into an empty file; the holes of a sparse one stay holes."""
    content = _content(tar, attributes.stored(info))
    for start, length in attributes.segments(info):
        position, end = start, start + length
        while position < end:
            block = content.read(min(end - position, 1 << 20))
            if not block:
                raise BackupError(f"{printable(info.name)} is shorter than the archive says.")
            write_at(fd, block, position)
            position += len(block)
    os.ftruncate(fd, info.size)


def unpack(
    path: Path, folder_of: Callable[[RootName, str], int | None], *, folder_fd: int | None = None
) -> list[str]:
    """Unpack a verified archive, with owners (as root), modes, times, holes and extended attributes.

    Links are created, never followed.  Nothing that exists is replaced or written to.

    Args:
        path: the archive.
        folder_of: returns the open folder in which an artifact of a root is created, or None to skip it.
        folder_fd: the open folder of the archive; None to open it by its path.

    Returns:
        The attributes that could not be set, each with its path and the reason.

    Raises:
        BackupError: the archive cannot be read or has an invalid member, or an entry cannot be written;
            unpacked entries remain.
    """
    unpacking = _Unpacking()
    with _opened(path, folder_fd) as (tar, _, _):
        for info in _members(tar):
            if info.name == MANIFEST:
                return unpacking.finish()
            root, name, parts = _split_name(info.name)
            folder_fd = folder_of(root, name)
            if folder_fd is not None:
                unpacking.extract(tar, info, folder_fd, parts)
    raise BackupError(f"{path.name} is damaged: it ends before its manifest.")


def _split_name(name: str) -> tuple[RootName, str, tuple[str, ...]]:
    """Split a member's name into root, artifact, and the components of the path below the root."""
    parts = PurePosixPath(name).parts
    if len(parts) < 2 or ".." in parts or parts[0] not in set(RootName):
        raise BackupError(f"The archive has a member with an invalid name: {printable(name)}.")
    return RootName(parts[0]), parts[1], parts[1:]
