"""The folder of the backups: one archive for each time that a job was cleaned."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from eemtcleanupd.backup import archive
from eemtcleanupd.backup.archive import Contents, Head
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.errors import BackupError

log = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<job>[^.@][^@]*)@(?P<time>\d{8}T\d{12})Z\.tar\.(?:zst|gz)")
_TIME = "%Y%m%dT%H%M%S%f"
_LONGEST_ID = 150
_PART = ".part"
_PART_AGE = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class BackupFile:
    """An archive; ``job_id`` is as its name has it, of a very long one only the beginning."""

    path: Path
    job_id: str
    made_at: datetime
    size_bytes: int


class BackupFolder:
    """The folder of the backups.

    Args:
        path: where it is; it is made when the first backup is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self, head: Head, ending: str, made_at: datetime, artifacts: Sequence[tuple[Root, str]]
    ) -> Contents:
        """Write a backup, and read it back from the disk before it gets its name.

        Args:
            head: whose data it is.
            ending: one of :data:`compression.ENDINGS`.
            made_at: the present, aware.
            artifacts: roots and the names of their entries.

        Raises:
            BackupError: it could not be written whole; nothing of it is left.
        """
        self._prepare()
        name = f"{_stem(head.job_id)}@{made_at.astimezone(UTC):{_TIME}}Z.{ending}"
        # The ending stays last: it says how to read.
        temporary = self.path / f"{_PART}.{name}"
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                written = archive.write(file, ending, head, artifacts, scratch=self.path)
                file.flush()
                os.fsync(file.fileno())
                # What is read back must come from the disk and not from memory.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            _require_same(archive.verify(temporary), written)
            temporary.rename(self.path / name)
            _sync_folder(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise BackupError(f"a backup cannot be written to {self.path}: {error.strerror}") from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return written

    def _prepare(self) -> None:
        """Make the folder, and refuse one that others could change."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BackupError(f"the folder {self.path} cannot be made: {error.strerror}") from error
        self.require_safe(self.path)

    def require_safe(self, path: Path) -> None:
        """Refuse a folder or a file that others could have changed.

        Raises:
            BackupError: it belongs to another user, can be written by others, or cannot be looked at.
        """
        try:
            status = path.stat()
        except OSError as error:
            raise BackupError(f"{path}: {error.strerror}") from error
        if status.st_uid not in {os.geteuid(), 0}:
            raise BackupError(f"{path} belongs to user {status.st_uid}: backups must be ours alone")
        if status.st_mode & 0o022:
            raise BackupError(f"{path} can be written by others: backups must be ours alone (mode 0700)")

    def all(self, job_id: str | None = None) -> list[BackupFile]:
        """Return the backups of all jobs, or of one, the oldest first.

        Raises:
            BackupError: the folder cannot be read.
        """
        try:
            found = list(self._listed())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise BackupError(f"the folder {self.path} cannot be read: {error.strerror}") from error
        if job_id is not None:
            stem = _stem(job_id)
            found = [each for each in found if each.path.name.partition("@")[0] == stem]
        return sorted(found, key=lambda each: (each.made_at, each.path.name))

    def _listed(self) -> Iterator[BackupFile]:
        for entry in os.scandir(self.path):
            match = _NAME.fullmatch(entry.name)
            if match is None or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(ValueError, FileNotFoundError):
                yield BackupFile(
                    Path(entry.path),
                    os.fsdecode(unquote_to_bytes(match["job"])),
                    datetime.strptime(match["time"], _TIME).replace(tzinfo=UTC),
                    entry.stat(follow_symlinks=False).st_size,
                )

    def expire(self, now: datetime, keep: timedelta) -> list[BackupFile]:
        """Delete the backups that are older than ``keep``, and what an interrupted one left; returns them.

        Raises:
            BackupError: the folder cannot be read.
        """
        gone = []
        for backup in self.all():
            if now - backup.made_at <= keep:
                continue
            try:
                backup.path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("The backup %s cannot be deleted: %s", backup.path, error.strerror)
                continue
            gone.append(backup)
        for part in self.path.glob(f"{_PART}.*"):
            if not _NAME.fullmatch(part.name.removeprefix(f"{_PART}.")):
                continue  # somebody else's
            with suppress(OSError):
                if now.timestamp() - part.stat().st_mtime > _PART_AGE.total_seconds():
                    part.unlink()
        return gone


def _stem(job_id: str) -> str:
    """Return the beginning of the names of a job's backups: its id, in characters that any system takes."""
    raw = os.fsencode(job_id)
    quoted = re.sub(r"^\.", "%2E", quote(raw, safe=""))  # with a dot begins what is being written
    if len(quoted) <= _LONGEST_ID:
        return quoted
    # Not in the middle of an escape; "~" stands in no shorter name at this place.
    beginning = re.sub(r"%.?$", "", quoted[:_LONGEST_ID])
    return f"{beginning}~{hashlib.sha256(raw).hexdigest()[:32]}"


def _require_same(found: Contents, written: Contents) -> None:
    if found != written:
        raise BackupError("what was read back is not what was copied")


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
