"""The locks of a job store: one per run, across processes and hosts, and one per daemon.

Beside a SQLite file each lock is an flock on a file of its own, which the kernel releases after a crash.
Only its owner can open the file, so no other user can hold the lock.  The lock files are never removed:
otherwise two programs could lock two files of the same name.  A database server keeps the lock of a run
itself (:mod:`~eemtcleanupd.store.postgres`).

Whether a lock is held, and by which process, comes from the kernel.  What the file contains is only shown.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from eemtcleanupd.errors import CleanupError, LockHeldError, StoreError
from eemtcleanupd.files import acquire_flock, lock_holder, open_folder, open_own
from eemtcleanupd.formatting import printable

if TYPE_CHECKING:
    from eemtcleanupd.store.address import StoreAddress
    from eemtcleanupd.store.database import Database

DAEMON_LOCK = "daemon.lock"
"""Ending of the name of the lock file that a daemon holds for its life."""
_QUICK_SECONDS = 2.0
# A look at a lock (_is_held) takes a shared one for microseconds.
_LOOKS_SECONDS = 0.1
_SINCE = "%Y-%m-%d %H:%M:%S UTC"
_ADVICE = "Only its owner can use it. Run this command as that user, or remove the file while nothing runs."


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lock.  ``run`` is empty for a daemon, ``since`` is UTC as text."""

    pid: int
    host: str
    since: str
    run: str = ""

    @property
    def began_at(self) -> datetime | None:
        """The time in ``since``, aware UTC; None if another program wrote something else."""
        try:
            return datetime.strptime(self.since, _SINCE).replace(tzinfo=UTC)
        except ValueError:
            return None

    def __str__(self) -> str:
        run = f"run {self.run}, " if self.run else ""
        return f"{run}process {self.pid} on {self.host}, since {self.since}"


def run_lock(database: Database, run_id: str, now: datetime) -> AbstractContextManager[None]:
    """Hold the lock of a job store for a run.

    Args:
        database: the job database, open.  On a server its connection holds the lock.
        run_id: shown to other processes as the holder.
        now: aware UTC, shown as the start of the lock.

    Raises:
        LockHeldError: another run holds the lock.  The message names its process and host.
        StoreError: the lock is not accessible.
    """
    return database.locked("run", _current_holder(now, run_id))


def daemon_lock(location: StoreAddress, now: datetime) -> AbstractContextManager[None]:
    """Hold the lock of a daemon for its lifetime: one per SQLite file, or one per host for a server.

    Raises:
        LockHeldError: another daemon holds the lock.  The message names its process and host.
        StoreError: the lock file is not writable.
    """
    if location.file is None:
        try:
            with open_folder(location.folder, create=0o777):
                pass
        except OSError as error:
            raise StoreError(f"Cannot use the folder {location.folder}: {error.strerror}.") from error
    return file_lock(location.own_file(DAEMON_LOCK), "daemon", str(location), _current_holder(now))


def find_daemon(location: StoreAddress) -> Holder | None:
    """Return the daemon of a job store, preferably the one on this host, or None if none is running.

    Raises:
        StoreError: the lock is not readable.
    """
    local = file_holder(location.own_file(DAEMON_LOCK))
    return local if local is not None or location.file is not None else find_active_daemon(location)


def find_active_daemon(location: StoreAddress) -> Holder | None:
    """Return the daemon that cleans, perhaps on another host, or None if none is running.

    Raises:
        StoreError: the lock is not readable.
    """
    if location.file is not None:
        return find_daemon(location)
    database = location.open(_QUICK_SECONDS)
    try:
        return database.holder("daemon")
    finally:
        database.close()


def open_daemon_locks() -> list[Path]:
    """Return the lock files of daemons that processes of this host have open, as far as this user can see.

    It needs no configuration.  The names are hints only: any process can open a file of such a name.
    """
    found: set[Path] = set()
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            found.update(Path(os.readlink(link)) for link in folder.iterdir())  # noqa: PTH115
    return sorted(path for path in found if path.name.endswith(f".eemtcleanupd.{DAEMON_LOCK}"))


class StoreLock:
    """A lock of a job store that is held until it is closed, independent of other connections.

    Args:
        location: the job store.
        what: name of the lock.
        now: aware UTC, shown to other processes as the start of the lock.

    Raises:
        LockHeldError: another process holds the lock.
        StoreError: the lock is not accessible.
    """

    def __init__(self, location: StoreAddress, what: str, now: datetime) -> None:
        self._database: Database | None = None
        with ExitStack() as stack:
            if location.file is None:
                self._database = location.open(min(location.busy_timeout_seconds, location.lease_seconds))
                stack.callback(self._database.close)
                stack.enter_context(self._database.locked(what, _current_holder(now)))
            else:
                path = location.own_file(f"{what}.lock")
                stack.enter_context(file_lock(path, what, str(location), _current_holder(now)))
            self._stack = stack.pop_all()

    def verify(self) -> None:
        """Check that the lock is still held.

        Raises:
            LockHeldError: another process took the lock while the server was unreachable.
            StoreError: the server is unreachable.
        """
        if self._database is not None:
            self._database.verify_lock()

    def close(self) -> None:
        """Release the lock."""
        self._stack.close()


def file_holder(path: Path) -> Holder | None:
    """Return the process that holds a lock file, or None.

    Raises:
        StoreError: the file is not readable.
    """
    with _open_lock(path) as descriptor:
        if descriptor is None or not _is_held(descriptor):
            return None
        return _read_holder(descriptor)


@contextmanager
def signalled(location: StoreAddress, number: signal.Signals) -> Iterator[LocalDaemon | None]:
    """Send a signal to the daemon of this host that holds the lock; yield it, or None if none is running.

    Raises:
        StoreError: the lock is not readable.
        CleanupError: no process here is known to hold the lock, or it belongs to another user.
    """
    with ExitStack() as stack:
        descriptor = stack.enter_context(_open_lock(location.own_file(DAEMON_LOCK)))
        if descriptor is None or not _is_held(descriptor):
            yield None
            return
        pid = lock_holder(descriptor)
        if pid is None:
            raise CleanupError(
                f"The daemon ({_read_holder(descriptor) or 'unknown process'}) is not visible here. Run this "
                "command on its host, or in its container."
            )
        try:
            daemon = LocalDaemon(pid, os.pidfd_open(pid))
            stack.callback(os.close, daemon.pidfd)
            # From here on the descriptor means this process, even if another one gets its number later.
            if not _holds(pid, descriptor):
                raise CleanupError(
                    f"Process {pid} holds the daemon's lock, but it runs in another container or as another "
                    "user. Run this command there, or as that user."
                )
            signal.pidfd_send_signal(daemon.pidfd, number)
        except (ProcessLookupError, FileNotFoundError) as error:
            if _is_held(descriptor):
                raise CleanupError(
                    f"Process {pid} has exited, but a process that it started still holds the daemon's lock. "
                    "Stop that process."
                ) from error
            yield None
            return
        except PermissionError as error:
            raise CleanupError(
                f"The daemon (process {pid}) belongs to another user. Use sudo or systemctl."
            ) from error
        yield daemon


@dataclass(frozen=True, slots=True)
class LocalDaemon:
    """A daemon that has been signalled."""

    pid: int
    pidfd: int

    def has_exited(self) -> bool:
        """Return whether the process has exited."""
        return bool(select.select([self.pidfd], [], [], 0)[0])


def _holds(pid: int, descriptor: int) -> bool:
    """Return whether a process of our namespace and of the file's owner holds the lock of a file.

    The kernel remembers the number of the process that acquired the lock.  If that process has left the lock
    to a child and exited, another process can have its number.  A service with PrivateUsers= or ProtectProc=
    hides parts of this from its own commands.  Then the kernel's list of locks decides.
    """
    with suppress(FileNotFoundError):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        users = set(fields["Uid"].split())
        if len(fields["NSpid"].split()) > 1 or users != {str(os.fstat(descriptor).st_uid)}:
            return False
    with suppress(PermissionError, FileNotFoundError):
        folder = Path(f"/proc/{pid}/fd")
        if not any(_is_same(file, descriptor) for file in folder.iterdir()):
            return False
    return lock_holder(descriptor) == pid


def _is_same(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:  # it was closed meanwhile
        return False


@contextmanager
def _open_lock(path: Path) -> Iterator[int | None]:
    """Yield the descriptor of a lock file, None if it is missing."""
    try:
        descriptor = open_own(path, os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise _unusable("read", path, error, _ADVICE) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_held(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


@contextmanager
def file_lock(path: Path, what: str, database: str, holder: Holder) -> Iterator[None]:
    """Hold an flock on a file that names the holder.  ``what`` and ``database`` are for messages.

    Raises:
        LockHeldError: another process holds the lock.  The message names its process and host.
        StoreError: the file is not writable.
    """
    try:
        descriptor = open_own(path, os.O_RDWR | os.O_CREAT, mode=0o600)
    except OSError as error:
        raise _unusable("open", path, error, _ADVICE) from error
    try:
        try:
            acquire_flock(descriptor, path, _LOOKS_SECONDS)
        except OSError as error:
            raise lock_held(what, database, _read_holder(descriptor)) from error
        try:
            # Overwriting in place needs no additional space on most filesystems.
            os.ftruncate(descriptor, os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0))
        except OSError as error:
            raise _unusable("write", path, error, "Check its disk.") from error
        yield
    finally:
        os.close(descriptor)


def lock_held(what: str, database: str, holder: Holder | None) -> LockHeldError:
    """Return the error for a lock that another process holds.  ``holder`` is None if it is unknown."""
    return LockHeldError(f"Another {what} is using {database}: {holder or 'unknown process'}.")


def _current_holder(now: datetime, run_id: str = "") -> Holder:
    return Holder(os.getpid(), socket.gethostname(), f"{now:{_SINCE}}", run_id)


def _unusable(action: str, path: Path, error: OSError, advice: str) -> StoreError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        advice = "Free a few MB on its disk first."
    return StoreError(f"Cannot {action} the lock {path}: {error.strerror}. {advice}")


def _read_holder(descriptor: int) -> Holder | None:
    """Return what the holder wrote into its lock file, with the process id that the kernel reports."""
    pid = lock_holder(descriptor)
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        host, since, run = (printable(str(holder[name])) for name in ("host", "since", "run"))
        return Holder(pid or int(holder["pid"]), host, since, run)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None if pid is None else Holder(pid, socket.gethostname(), "an unknown time")
