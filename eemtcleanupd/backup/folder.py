"""The backup folder: contains one archive for each time that a job was cleaned."""

from __future__ import annotations

import fcntl
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
from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.copying import require_free_space
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.walk import measure
from eemtcleanupd.errors import BackupError
from eemtcleanupd.files import create_new, open_folder, open_own

log = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<job>[^.@][^@]*)@(?P<time>\d{8}T\d{12})Z\.tar\.(?:zst|gz)")
_TIME = "%Y%m%dT%H%M%S%f"
_MAX_ID_LENGTH = 150
_PART = ".part"
_PART_AGE = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class BackupFile:
    """An archive; ``job_id`` comes from the file name, which has only the start of a very long id."""

    path: Path
    job_id: str
    made_at: datetime
    size_bytes: int


class BackupFolder:
    """The folder of the backups.

    Args:
        path: the folder; the first backup creates it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self,
        head: Head,
        ending: str,
        made_at: datetime,
        artifacts: Sequence[tuple[Root, str]],
        *,
        stop: StopFlag | None = None,
    ) -> Contents:
        """Write a backup, and verify it from the disk before it gets its final name.

        No backup starts on a disk that has no room for the uncompressed data.

        Args:
            head: the job.
            ending: one of :data:`compression.ENDINGS`.
            made_at: the current time, aware.
            artifacts: roots and the names of their entries.
            stop: ends the backup between two blocks.

        Raises:
            BackupError: the backup could not be completed, or ``stop`` was set; nothing of it is left.
        """
        stop = stop or StopFlag()
        self._prepare()
        self._remove_dead_parts()
        name = f"{_stem(head.job_id)}@{made_at.astimezone(UTC):{_TIME}}Z.{ending}"
        # The ending stays last, because it selects the decompression.
        temporary = self.path / f"{_PART}.{name}"
        try:
            self._require_free_space(sum(measure(root, entry, stop).bytes for root, entry in artifacts))
            descriptor = create_new(temporary)
            with os.fdopen(descriptor, "wb") as file:
                with suppress(OSError):  # where locks do not work, only the age of a part counts
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                written = archive.write(file, ending, head, artifacts, scratch=self.path, stop=stop)
                file.flush()
                os.fsync(file.fileno())
                # The verification must read from the disk, not from the page cache.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                _require_same(archive.verify(temporary, stop=stop), written)
                temporary.rename(self.path / name)
            _sync_folder(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise BackupError(f"Cannot write a backup to {self.path}: {error.strerror}.") from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return written

    def _prepare(self) -> None:
        """Create the folder, and refuse one that other users can change."""
        try:
            with open_folder(self.path, create=0o700):
                pass
        except OSError as error:
            raise BackupError(f"Cannot create the backup folder {self.path}: {error.strerror}.") from error
        self.require_safe(self.path)

    def _require_free_space(self, needed_bytes: int) -> None:
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            require_free_space(folder, needed_bytes)
        finally:
            os.close(folder)

    def _remove_dead_parts(self) -> None:
        """Remove the backups that killed runs left unfinished: nothing holds their lock."""
        for part in self._parts():
            with suppress(OSError):
                descriptor = open_own(part, os.O_RDWR)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    part.unlink()
                finally:
                    os.close(descriptor)

    def _parts(self) -> Iterator[Path]:
        for part in self.path.glob(f"{_PART}.*"):
            # This program did not write files with other names.
            if _NAME.fullmatch(part.name.removeprefix(f"{_PART}.")):
                yield part

    def require_safe(self, path: Path) -> None:
        """Refuse a folder or a file that other users can change.

        Raises:
            BackupError: another user owns it or can write to it, or its status cannot be read.
        """
        try:
            status = path.stat()
        except OSError as error:
            raise BackupError(f"Cannot check the backup {path}: {error.strerror}.") from error
        advice = "Only the cleanup user may have access to backups (mode 0700)."
        if status.st_uid not in {os.geteuid(), 0}:
            raise BackupError(f"The backup {path} belongs to user {status.st_uid}. {advice}")
        if status.st_mode & 0o022:
            raise BackupError(f"The backup {path} is writable by other users. {advice}")

    def all(self, job_id: str | None = None) -> list[BackupFile]:
        """Return the backups of all jobs or of one job, oldest first.

        Raises:
            BackupError: the folder cannot be read.
        """
        try:
            backups = list(self._listed())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise BackupError(f"Cannot read the backup folder {self.path}: {error.strerror}.") from error
        if job_id is not None:
            stem = _stem(job_id)
            backups = [backup for backup in backups if backup.path.name.partition("@")[0] == stem]
        return sorted(backups, key=lambda backup: (backup.made_at, backup.path.name))

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
        """Delete the backups older than ``keep`` and leftovers of interrupted backups; return the backups.

        Raises:
            BackupError: the folder cannot be read.
        """
        deleted = []
        for backup in self.all():
            if now - backup.made_at <= keep:
                continue
            try:
                backup.path.unlink()
            except OSError as error:
                log.warning("Cannot delete the backup %s: %s", backup.path, error.strerror)
                continue
            deleted.append(backup)
        for part in self._parts():
            with suppress(OSError):
                if now.timestamp() - part.stat().st_mtime > _PART_AGE.total_seconds():
                    part.unlink()
        return deleted


def _stem(job_id: str) -> str:
    """Return the start of the file names of a job's backups: its id in portable characters."""
    raw = os.fsencode(job_id)
    quoted = re.sub(r"^\.", "%2E", quote(raw, safe=""))  # the names of unfinished backups start with a dot
    if len(quoted) <= _MAX_ID_LENGTH:
        return quoted
    # Do not cut an escape in half.  No short id has "~" at this position.
    start = re.sub(r"%.?$", "", quoted[:_MAX_ID_LENGTH])
    return f"{start}~{hashlib.sha256(raw).hexdigest()[:32]}"


def _require_same(verified: Contents, written: Contents) -> None:
    if verified != written:
        raise BackupError("The new backup differs from the data that was copied.")


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
