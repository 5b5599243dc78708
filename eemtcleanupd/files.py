"""Safe file access: every file that is created, replaced, appended to or locked is opened here.

Other users can write to some folders that the product uses, so whatever is at a path can be theirs: a link to
another file, a FIFO that would block forever, or a file that they hold a lock on.  Therefore each function

* opens the folder first and acts relative to its descriptor; a link on the way there is followed only if
  root or the current user created it, in a folder of root or the current user,
* follows no link in the last component, and never waits for the other end of a FIFO,
* creates files with ``O_EXCL``, or checks with fstat(2) what it has opened.

:func:`open_regular` is the exception: it reads a file that the operator names, which can be a link.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import struct
import time
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import BinaryIO

_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_NEW_FILE = os.O_CREAT | os.O_EXCL | _SAFE
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS = 40  # as the kernel, path_resolution(7)
_POLL_SECONDS = 0.02
_ACL_HEADER, _ACL_USER, _ACL_GROUP = 4, 2, 8  # linux/posix_acl_xattr.h


# -- folders -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_folder(path: Path, *, create: int | None = None) -> Iterator[int]:
    """Yield the descriptor of a folder.

    Args:
        path: the folder.
        create: the permissions of missing folders, before the umask; None if all must exist.

    Raises:
        OSError: the folder cannot be opened, or another user could have redirected its path.
    """
    entry = _find_folder(path, create)
    try:
        folder = os.open(".", _FOLDER, dir_fd=entry)
    finally:
        os.close(entry)
    try:
        yield folder
    finally:
        os.close(folder)


def _find_folder(path: Path, create: int | None) -> int:
    todo = list(reversed(path.parts))
    links = 0
    # An absolute path must not depend on the current folder, which this user perhaps cannot enter.
    folder = os.open("/" if path.is_absolute() else ".", os.O_PATH | os.O_CLOEXEC)
    try:
        while todo:
            name = todo.pop()
            try:
                entry = os.open(name, _ENTRY, dir_fd=folder)
            except FileNotFoundError:
                if create is None:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, create, dir_fd=folder)
                entry = os.open(name, _ENTRY, dir_fd=folder)
            status = os.fstat(entry)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                try:
                    _require_trusted_link(status, os.fstat(folder), links, path)
                    target = os.readlink("", dir_fd=entry)  # of the descriptor, see readlink(2)
                finally:
                    os.close(entry)
                todo.extend(reversed(Path(target).parts))
            else:
                os.close(folder)
                folder = entry
    except BaseException:
        os.close(folder)
        raise
    return folder


def places_on_the_way(path: Path) -> Iterator[Path]:
    """Yield each folder and link that leads to a path, and its end; links are followed one by one."""
    todo, place, links = list(reversed(path.absolute().parts)), Path("/"), 0
    while todo:
        name = todo.pop()
        place = place.parent if name == ".." else place / name
        yield place
        try:
            target = Path(os.readlink(place))  # noqa: PTH115  (no link, or one that cannot be read: the next)
        except OSError:
            continue
        if (links := links + 1) <= _MAX_LINKS:
            todo.extend(reversed(target.parts))
            place = place.parent


def grants_write(place: Path, status: os.stat_result, trusted: Set[int]) -> bool:
    """Tell whether an access control list lets more users write than the owner and those that are trusted.

    The mode of a file with such a list has the mask of the list in place of the rights of its group (acl(5)).
    """
    if not status.st_mode & stat.S_IWGRP:
        return False
    try:
        entries = struct.iter_unpack("<HHI", os.getxattr(place, "system.posix_acl_access")[_ACL_HEADER:])
    except OSError:  # it has no list
        return False
    known = trusted | {status.st_uid}
    return any(
        rights & os.W_OK and (tag == _ACL_GROUP or (tag == _ACL_USER and number not in known))
        for tag, rights, number in entries
    )


def _require_trusted_link(link: os.stat_result, folder: os.stat_result, links: int, path: Path) -> None:
    if links > _MAX_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if not {link.st_uid, folder.st_uid} <= {os.geteuid(), 0}:
        raise OSError(errno.EPERM, "its path contains a link that another user can change", str(path))


@contextlib.contextmanager
def _parent(path: Path, dir_fd: int | None) -> Iterator[int]:
    """Yield the folder of a path: ``dir_fd`` if it is given, and ``path`` then is a name in it."""
    if dir_fd is not None:
        yield dir_fd
        return
    with open_folder(path.parent) as folder:
        yield folder


# -- new files ---------------------------------------------------------------------------------------


def create_new(path: Path, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
    """Create a file and return its descriptor, open for reading and writing.

    Args:
        path: the file, or its name in ``dir_fd``.
        mode: its permissions, before the umask.
        dir_fd: the open folder.

    Raises:
        FileExistsError: something is at this path, perhaps a link.
        OSError: the file cannot be created.
    """
    with _parent(path, dir_fd) as folder:
        return os.open(path.name, os.O_RDWR | _NEW_FILE, mode, dir_fd=folder)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int | None = 0o600, durable: bool = False) -> Iterator[BinaryIO]:
    """Give a new file to write, which replaces ``path`` when the body ends without an exception.

    Readers see the old content or the new, never a part.  The new file has a random name beside ``path``;
    a link or a FIFO at ``path`` is replaced, not followed.

    Args:
        path: the file; its folder must exist.
        mode: the permissions of the new file, whatever the umask; None for those that the umask leaves.
        durable: whether to wait until file and folder are on the disk (fsync(2)).

    Raises:
        OSError: the file cannot be written; then ``path`` is as it was.
    """
    temporary = Path(f".{path.name[:200]}.{secrets.token_hex(8)}")
    with open_folder(path.parent) as folder:
        descriptor = create_new(temporary, 0o666 if mode is None else 0o600, dir_fd=folder)
        with os.fdopen(descriptor, "wb") as file:
            try:
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
                # Everything that can fail comes before this line.
                os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                raise
        if durable:
            os.fsync(folder)


def write_atomic(path: Path, content: bytes, *, mode: int | None = 0o600, durable: bool = False) -> None:
    """Replace the content of a file as a whole; see :func:`replacing` for arguments and errors."""
    with replacing(path, mode=mode, durable=durable) as file:
        file.write(content)


def write_output(path: Path, content: bytes) -> None:
    """Write a file that the caller named: replace a regular file, write into anything else.

    A link, FIFO or device, such as ``/dev/stdout``, is used only if no other user can have put it there.

    Raises:
        OSError: the file cannot be written.
    """
    with open_folder(path.parent) as folder:
        special = _open_special(path, os.O_WRONLY | os.O_TRUNC, folder)
    if special is None:
        write_atomic(path, content, mode=None)
        return
    with os.fdopen(special, "wb") as file:
        file.write(content)


def open_log(path: Path) -> int:
    """Return a descriptor that appends to a log that the operator named; a missing file is created.

    A link, FIFO or device, such as ``/dev/null``, is used only if no other user can have put it there.

    Raises:
        OSError: it cannot be opened, see :func:`open_own`.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with open_folder(path.parent) as folder:
        special = _open_special(path, flags, folder)
        return open_own(path, flags, dir_fd=folder) if special is None else special


def require_log(path: Path, open_existing: Callable[[Path], int] = open_log) -> None:
    """Check that a log can be opened, by ``open_existing``, or created; create nothing.

    Raises:
        OSError: it cannot.
    """
    if os.path.lexists(path):
        os.close(open_existing(path))
        return
    place = next(place for place in path.absolute().parents if os.path.lexists(place))
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def _open_special(path: Path, flags: int, folder: int) -> int | None:
    """Open what is neither missing nor a regular file, without waiting for the reader of a FIFO."""
    try:
        entry = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISREG(entry.st_mode):
        return None
    place = os.fstat(folder)
    is_shared = place.st_mode & 0o022 and not place.st_mode & stat.S_ISVTX
    if is_shared or not {entry.st_uid, place.st_uid} <= {os.geteuid(), 0}:
        raise OSError(errno.EPERM, "it is not a regular file, and other users can replace it", str(path))
    descriptor = os.open(path.name, flags | _SAFE & ~os.O_NOFOLLOW, dir_fd=folder, mode=0o666)
    os.set_blocking(descriptor, True)
    return descriptor


# -- existing files ----------------------------------------------------------------------------------


def open_own(path: Path, flags: int, *, mode: int | None = None, dir_fd: int | None = None) -> int:
    """Open a regular file of root or of the current user that has no other name; return its descriptor.

    Nobody else can have written to it, unless its mode or its owner allowed that.

    Args:
        path: the file, or its name in ``dir_fd``.
        flags: of open(2); ``O_CREAT`` creates a missing file.  ``O_TRUNC`` acts after the checks.
        mode: the permissions of a new file, before the umask; an existing one loses all others.  None for
            0666, and to keep those of an existing file.
        dir_fd: the open folder.

    Raises:
        FileNotFoundError: the file is missing, and ``flags`` has no ``O_CREAT``.
        OSError: it cannot be opened, or is a link, a FIFO, a device, a hard link, or a file of another user.
            ``strerror`` says which.
    """
    with _parent(path, dir_fd) as folder:
        try:
            descriptor = os.open(
                path.name, flags & ~os.O_TRUNC | _SAFE, 0o666 if mode is None else mode, dir_fd=folder
            )
        except OSError as error:
            raise _explained(error, path, folder) from error
    try:
        status = os.fstat(descriptor)
        _require_own(status, path)
        if mode is not None and status.st_uid == os.geteuid() and status.st_mode & 0o777 & ~mode:
            os.fchmod(descriptor, status.st_mode & mode)
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _explained(error: OSError, path: Path, folder: int) -> OSError:
    """Return the error with a reason that names what is in the way, if something of others is."""
    try:
        problem = _problem(os.stat(path.name, dir_fd=folder, follow_symlinks=False))
    except OSError:
        problem = None
    return error if problem is None else OSError(error.errno, problem, str(path))


def _require_own(status: os.stat_result, path: Path) -> None:
    if (problem := _problem(status)) is not None:
        raise OSError(errno.EPERM, problem, str(path))


def _problem(status: os.stat_result) -> str | None:
    """Return why a file is not ours alone, None if it is."""
    if stat.S_ISLNK(status.st_mode):
        return "it is a link"
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if status.st_uid not in {os.geteuid(), 0}:
        return f"it belongs to user {status.st_uid}"
    if status.st_nlink > 1:
        return "it has another name (a hard link)"
    return None


def read_own(path: Path, max_bytes: int) -> bytes:
    """Return at most the first ``max_bytes`` of a file that :func:`open_own` accepts.

    Raises:
        OSError: the file cannot be read.
    """
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        return file.read(max_bytes)


def open_regular(path: Path) -> BinaryIO:
    """Open a file that the operator named for reading; links are followed.

    Raises:
        OSError: the file cannot be read, or is not a regular file: a FIFO would block forever.
    """
    descriptor = os.open(path, os.O_RDONLY | _SAFE & ~os.O_NOFOLLOW)
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _require_regular(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def read_regular(path: Path, max_bytes: int = -1) -> bytes:
    """Return at most the first ``max_bytes`` of a file; see :func:`open_regular`."""
    with open_regular(path) as file:
        return file.read(max_bytes)


def set_socket_mode(path: Path, mode: int) -> None:
    """Change the permissions of a Unix socket of the current user.

    Raises:
        OSError: no such socket is at this path.
    """
    with open_folder(path.parent) as folder:
        entry = os.open(path.name, _ENTRY, dir_fd=folder)
    try:
        status = os.fstat(entry)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
            raise OSError(errno.EPERM, "it is not a socket of this user", str(path))
        os.chmod(f"/proc/self/fd/{entry}", mode)  # noqa: PTH101  (the descriptor, whatever is at the path)
    finally:
        os.close(entry)


# -- locks -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, *, wait_seconds: float = 0) -> Iterator[int]:
    """Hold an flock on a file of mode 0600, which is created, and yield its descriptor.

    No other user can open the file, so no other user can hold the lock.

    Raises:
        BlockingIOError: another process still holds the lock after ``wait_seconds``.  ``strerror`` names it.
        OSError: the file cannot be opened, see :func:`open_own`.
    """
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT, mode=0o600)
    try:
        acquire_flock(descriptor, path, wait_seconds)
        yield descriptor
    finally:
        os.close(descriptor)


def acquire_flock(descriptor: int, path: Path, wait_seconds: float) -> None:
    """Acquire an exclusive flock on an open file.  ``path`` is for the message.

    Raises:
        BlockingIOError: as :func:`locked` does.
        OSError: the filesystem has no locks.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                pid = lock_holder(descriptor)
                holder = "another process" if pid is None else f"process {pid}"
                raise BlockingIOError(error.errno, f"{holder} holds its lock", str(path)) from error
            time.sleep(_POLL_SECONDS)
        else:
            return


def lock_holder(descriptor: int) -> int | None:
    """Return the process that holds an exclusive flock on an open file, as the kernel reports it.

    Returns:
        The process id in our namespace.  None if no process holds the lock, if the holder is on another
        host or in a namespace that is not visible here, or if ``/proc`` is not ours.
    """
    try:
        if Path("/proc/self").readlink() != Path(str(os.getpid())):  # of another namespace
            return None
        identity = _kernel_identity(descriptor)
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in locks:
        # 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF     (a waiting process has "->" after the number)
        fields = line.split()
        if fields[1:4] == ["FLOCK", "ADVISORY", "WRITE"] and fields[5] == identity:
            return int(fields[4]) or None
    return None


def _kernel_identity(descriptor: int) -> str:
    """Return device and inode as ``/proc/locks`` has them; stat(2) reports other devices on btrfs."""
    info = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    mount = dict(line.split(":\t", 1) for line in info.splitlines())["mnt_id"]
    status = os.fstat(descriptor)
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    with open("/proc/self/mountinfo", "rb") as mounts:  # noqa: PTH123  (a kernel file, read as bytes)
        for line in mounts:
            fields = line.split(maxsplit=3)
            if fields[0].decode("ascii") == mount:
                major, minor = map(int, fields[2].split(b":"))
    return f"{major:02x}:{minor:02x}:{status.st_ino}"
