"""The backup folder: contains one archive for each time that a job was cleaned."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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

# Names contain only these characters, so messages print them unescaped.
_NAME = re.compile(r"(?P<job>[\w%~-][\w%~.-]*)@(?P<time>\d{8}T\d{12})Z\.tar\.(?:zst|gz)", re.ASCII)
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
        with self.opened(create=True) as folder_fd:
            self._remove_dead_parts(folder_fd)
            name = f"{_stem(head.job_id)}@{made_at.astimezone(UTC):{_TIME}}Z.{ending}"
            # The ending stays last, because it selects the decompression.
            temporary = f"{_PART}.{name}"
            try:
                size = sum(measure(root, entry, stop).bytes for root, entry in artifacts)
                require_free_space(folder_fd, size)
                descriptor = create_new(Path(temporary), dir_fd=folder_fd)
                with os.fdopen(descriptor, "wb") as file:
                    with suppress(OSError):  # where locks do not work, only the age of a part counts
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    scratch = Path(f"/proc/self/fd/{folder_fd}")
                    written = archive.write(file, ending, head, artifacts, scratch=scratch, stop=stop)
                    file.flush()
                    os.fsync(file.fileno())
                    # The verification must read from the disk, not from the page cache.
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    verified = archive.verify(self.path / temporary, folder_fd=folder_fd, stop=stop)
                    _require_same(verified, written)
                    os.rename(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
                os.fsync(folder_fd)
            except BaseException as error:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder_fd)
                if isinstance(error, OSError):
                    raise BackupError(f"Cannot write a backup to {self.path}: {error.strerror}.") from error
                raise
        return written

    @contextmanager
    def opened(self, *, create: bool = False) -> Iterator[int]:
        """Yield the descriptor of the folder, in which only this user and root can change anything.

        Args:
            create: create the folder if it is missing.

        Raises:
            BackupError: the folder cannot be opened, or another user can change it or redirect its path.
        """
        with ExitStack() as stack:
            try:
                fd = stack.enter_context(open_folder(self.path, create=0o700 if create else None))
            except OSError as error:
                raise BackupError(f"Cannot open the backup folder {self.path}: {error.strerror}.") from error
            _require_safe(os.fstat(fd), f"backup folder {self.path}")
            yield fd

    @contextmanager
    def opened_for(self, *names: str) -> Iterator[int]:
        """Yield the folder's descriptor, to read backups that only this user or root can have written.

        Raises:
            BackupError: as for :meth:`opened`; or a backup is missing, a link, or another user's.
        """
        with self.opened() as folder_fd:
            for name in names:
                try:
                    status = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
                except OSError as error:
                    raise BackupError(
                        f"Cannot check the backup {self.path / name}: {error.strerror}."
                    ) from error
                _require_safe(status, f"backup {self.path / name}")
            yield folder_fd

    def _remove_dead_parts(self, folder_fd: int) -> None:
        """Remove the backups that killed runs left unfinished: nothing holds their lock."""
        for part in _parts(folder_fd):
            with suppress(OSError):
                descriptor = open_own(Path(part), os.O_RDWR, dir_fd=folder_fd)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(part, dir_fd=folder_fd)
                finally:
                    os.close(descriptor)

    def all(self, job_id: str | None = None) -> list[BackupFile]:
        """Return the backups of all jobs or of one job, oldest first.

        Raises:
            BackupError: the folder cannot be read.
        """
        try:
            with open_folder(self.path) as folder_fd:
                backups = list(self._listed(folder_fd))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise BackupError(f"Cannot read the backup folder {self.path}: {error.strerror}.") from error
        if job_id is not None:
            stem = _stem(job_id)
            backups = [backup for backup in backups if backup.path.name.partition("@")[0] == stem]
        return sorted(backups, key=_age)

    def _listed(self, folder_fd: int) -> Iterator[BackupFile]:
        for entry in os.scandir(folder_fd):
            match = _NAME.fullmatch(entry.name)
            if match is None or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(ValueError, FileNotFoundError):
                yield BackupFile(
                    self.path / entry.name,
                    os.fsdecode(unquote_to_bytes(match["job"])),
                    datetime.strptime(match["time"], _TIME).replace(tzinfo=UTC),
                    entry.stat(follow_symlinks=False).st_size,
                )

    def expire(self, now: datetime, keep: timedelta) -> list[BackupFile]:
        """Delete the backups older than ``keep`` and leftovers of interrupted backups; return the backups.

        Raises:
            BackupError: the folder cannot be read.
        """
        deleted: list[BackupFile] = []
        if not self.path.exists():
            return deleted
        with self.opened() as folder_fd:
            for backup in self._listed(folder_fd):
                if now - backup.made_at <= keep:
                    continue
                try:
                    os.unlink(backup.path.name, dir_fd=folder_fd)
                except OSError as error:
                    log.warning("Cannot delete the backup %s: %s", backup.path, error.strerror)
                    continue
                deleted.append(backup)
            for part in _parts(folder_fd):
                with suppress(OSError):
                    status = os.stat(part, dir_fd=folder_fd, follow_symlinks=False)
                    if now.timestamp() - status.st_mtime > _PART_AGE.total_seconds():
                        os.unlink(part, dir_fd=folder_fd)
        return sorted(deleted, key=_age)


def _age(backup: BackupFile) -> tuple[datetime, str]:
    return backup.made_at, backup.path.name


def _parts(folder_fd: int) -> list[str]:
    """Return the unfinished backups; this program did not write files with other names."""
    names = os.listdir(folder_fd)
    return [
        name for name in names if name.startswith(f"{_PART}.") and _NAME.fullmatch(name[len(_PART) + 1 :])
    ]


def _require_safe(status: os.stat_result, what: str) -> None:
    """Refuse a folder or a file that other users can change."""
    advice = "Only the cleanup user may have access to backups (mode 0700)."
    if status.st_uid not in {os.geteuid(), 0}:
        raise BackupError(f"The {what} belongs to user {status.st_uid}. {advice}")
    if status.st_mode & 0o022:
        raise BackupError(f"The {what} is writable by other users. {advice}")


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
