"""The rights of a process: root becomes the owner of the job store, and keeps two capabilities aside.

Who owns the store can write the database, its folder and the roots, so whatever a process does there must not
need more rights than the owner has.  Jobs in containers leave files of root in the results.  Only the calls
that read, move and delete artifacts by descriptor work with ``CAP_DAC_OVERRIDE`` and ``CAP_FOWNER``, see
:func:`file_access`.  Capabilities belong to a thread (capabilities(7)).
"""

from __future__ import annotations

import ctypes
import functools
import os
import pwd
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# linux/capability.h and linux/prctl.h
_DAC_OVERRIDE, _FOWNER = 1 << 1, 1 << 3
_FILE_ACCESS: Final = _DAC_OVERRIDE | _FOWNER
_VERSION_3, _SETS = 0x20080522, 3 * 2
_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT = 8, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4
_NO_GROUP: Final = 65534
_UNTRACEABLE_GROUP: Final = 65533


@dataclass(frozen=True, slots=True)
class User:
    """A user that a process can work as; ``gid`` is the primary group."""

    uid: int
    gid: int
    name: str
    groups: tuple[int, ...]

    @classmethod
    def of(cls, uid: int) -> User:
        """Return the user of a uid; one that has no entry in passwd(5) is in no group."""
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return cls(uid, _NO_GROUP, str(uid), ())
        return cls(uid, entry.pw_gid, entry.pw_name, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))

    def __str__(self) -> str:
        return self.name if self.name == str(self.uid) else f"{self.name} (uid {self.uid})"


_kept = 0
"""Capabilities that :func:`file_access` raises."""
_became: User | None = None
_raised = threading.local()


def become(user: User) -> None:
    """Give up the rights of root for good: work as ``user``, with capabilities for :func:`file_access` only.

    The process must have one thread.  No other process of the user can trace this one, or a program that it
    starts, or read its memory, which has secrets that root read.  To trace a process takes its real group
    too, and a program that starts with two groups is not dumpable (ptrace(2), prctl(2)).

    Raises:
        OSError: the kernel refuses; the process must not continue.
    """
    global _became  # noqa: PLW0603  (a fact of the process, like its uid)
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups(user.groups)
    os.setresgid(_UNTRACEABLE_GROUP, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    set_aside()
    _became = user


def became() -> User | None:
    """Return the user that a process of root has become, None if it has not."""
    return _became


def set_aside() -> None:
    """Keep capabilities that a service manager has given for :func:`file_access`, and drop all others.

    A process of root keeps everything: it was asked to work as root.
    """
    global _kept  # noqa: PLW0603  (a fact of the process, like its uid)
    permitted = _permitted()
    if os.geteuid() == 0 or not permitted:
        return
    _kept = permitted & _FILE_ACCESS
    sys.dont_write_bytecode = True  # a late import would leave code of this user in folders of root
    _prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    _set_capabilities(effective=0, inheritable=0)


@contextmanager
def file_access() -> Iterator[None]:
    """Let this thread read, move and delete files of any owner in the body.

    For calls relative to the descriptor of a root or of its trash only, and never while a plugin runs.
    """
    depth = getattr(_raised, "depth", 0)
    if not _kept or depth:
        yield
        return
    _raised.depth = depth + 1
    _set_capabilities(effective=_kept, inheritable=0)
    try:
        yield
    finally:
        _set_capabilities(effective=0, inheritable=0)
        _raised.depth = depth


def with_file_access(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function, not a generator, whose whole body needs :func:`file_access`."""

    @functools.wraps(function)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if not _kept:
            return function(*args, **kwargs)
        with file_access():
            return function(*args, **kwargs)

    return wrapper


def lower_new_thread() -> None:
    """Begin this thread without :func:`file_access`, which it has if the thread that started it had it."""
    if _kept:
        _set_capabilities(effective=0, inheritable=0)


@contextmanager
def inherited() -> Iterator[None]:
    """Let programs that this thread starts in the body work with the capabilities of :func:`file_access`."""
    if not _kept:
        yield
        return
    _set_capabilities(effective=0, inheritable=_kept)
    try:
        for number in range(_kept.bit_length()):
            if _kept & 1 << number:
                _prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, number)
        yield
    finally:
        _prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
        _set_capabilities(effective=_kept if getattr(_raised, "depth", 0) else 0, inheritable=0)


@contextmanager
def own_rights() -> Iterator[None]:
    """Suspend :func:`file_access` of this thread in the body, which opens paths, not descriptors."""
    depth = getattr(_raised, "depth", 0)
    if not depth:
        yield
        return
    _raised.depth = 0
    _set_capabilities(effective=0, inheritable=0)
    try:
        yield
    finally:
        _set_capabilities(effective=_kept, inheritable=0)
        _raised.depth = depth


def can_exceed_rights(folder: os.stat_result) -> bool:
    """Tell whether :func:`file_access` allows in a folder what the user of this process cannot grant."""
    return bool(_kept) and folder.st_uid != os.geteuid()


def exceeds_user() -> bool:
    """Tell whether code in this process could change files that its user, who is not root, cannot."""
    return os.geteuid() != 0 and bool(_permitted() & _FILE_ACCESS)


def is_unknown(uid: int) -> bool:
    """Tell whether a uid stands for all users that this user namespace lacks, such as its host's root.

    See user_namespaces(7), "Unmapped user and group IDs".
    """
    try:
        if uid != int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii")):
            return False
        lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    known = (tuple(map(int, line.split())) for line in lines)
    return not any(first <= uid < first + count for first, _, count in known)


def has_file_access() -> bool:
    """Tell whether this process can delete files of any owner in the roots."""
    return os.geteuid() == 0 or _kept == _FILE_ACCESS


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *arguments: int) -> None:
    # All five arguments: prctl(2) refuses an ambient set with others than 0 in the unused ones.
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    _check(_libc().prctl(option, *values))


def _permitted() -> int:
    data = (ctypes.c_uint32 * _SETS)()
    _check(_libc().capget(ctypes.byref((ctypes.c_uint32 * 2)(_VERSION_3, 0)), data))
    return int(data[1]) | int(data[4]) << 32


def _set_capabilities(*, effective: int, inheritable: int) -> None:
    """Set the capabilities of this thread; ``_kept`` stays permitted.  Both kept ones have low numbers."""
    data = (ctypes.c_uint32 * _SETS)(effective, _kept, inheritable)
    _check(_libc().capset(ctypes.byref((ctypes.c_uint32 * 2)(_VERSION_3, 0)), data))


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
