"""Other users of the machine, as tests play them: the owner of a job store, and a member of its group."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

import pytest

import eemtcleanupd
from tests.commands import Commands

UID = 12345
OWNER, MEMBER, GROUP = UID, 54322, 54323
"""The user who owns a store, one who shares its group, and the group; none is in passwd(5)."""
SITE_PACKAGES = Path(pytest.__file__).parent.parent
PROGRAM_FOLDER = Path(eemtcleanupd.__file__).parent.parent

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of other users")


@contextmanager
def time_limit(seconds: float = 10) -> Iterator[None]:
    """Fail a test whose body waits, such as for the other end of a FIFO."""

    def fail(_: int, __: FrameType | None) -> None:
        raise AssertionError(f"it still waits after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def process_of(uid: int, act: Callable[[], object]) -> Iterator[int]:
    """Run ``act`` in a process of another user, which lives until the end; yield its id."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(go[1])
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            act()
            os.write(ready[1], b"ready")
            os.read(go[0], 1)
            code = 0
        finally:
            os._exit(code)
    os.close(ready[1])
    os.close(go[0])
    try:
        assert os.read(ready[0], 5) == b"ready", "the other user's action failed"
        yield pid
    finally:
        os.close(go[1])
        os.close(ready[0])
        os.waitpid(pid, 0)


def hold_flock(path: Path) -> int:
    """Acquire an flock on a file or folder that this process can open."""
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def as_user(uid: int, action: Callable[[], object], gid: int | None = None) -> int:
    """Do something in a child process of a user; return its exit code, 1 after an exception."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(*[uid if gid is None else gid] * 3)
            os.setresuid(uid, uid, uid)
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@cache
def python() -> str:
    """Return a Python of this version that every user can start; root's may be below its home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for program in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        if Path(program).exists() and _works([program, "-c", "import sqlite3, pydantic"]):
            return program
    pytest.skip(f"no {version} that every user can start")


def environment() -> dict[str, str]:
    """Return an environment in which every Python finds the program."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{PROGRAM_FOLDER}:{SITE_PACKAGES}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _works(program: Sequence[str]) -> bool:
    try:
        done = subprocess.run(
            program, user=OWNER, group=OWNER, extra_groups=[], env=environment(), cwd="/", check=False
        )
    except OSError:
        return False
    return done.returncode == 0


@cache
def commands() -> Commands:
    """Return what forks the commands of other users."""
    commands = Commands(python(), environment())
    atexit.register(commands.close)
    return commands


def command(
    *args: str | Path, cwd: Path, uid: int = 0, groups: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user, root unless another is named."""
    return commands().run_as(uid, list(map(str, args)), env=environment(), cwd=cwd, groups=groups)


@contextmanager
def shared_folder() -> Iterator[Path]:
    """Give a folder that every user can enter; pytest's own is root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="eemtcleanupd-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def give(place: Path, uid: int, gid: int | None = None) -> None:
    """Make a user the owner of a folder and of all that is in it."""
    for path in (place, *place.rglob("*")):
        os.chown(path, uid, uid if gid is None else gid, follow_symlinks=False)


def let_write(place: Path, uid: int) -> None:
    """Let one more user write to a file or folder, with an access control list: ``setfacl -m u:UID:rwx``."""
    mode, nobody = place.stat().st_mode, 0xFFFFFFFF
    entries = [
        (0x01, mode >> 6 & 7, nobody),
        (0x02, 7, uid),
        (0x04, mode >> 3 & 7, nobody),
        (0x10, 7, nobody),
        (0x20, mode & 7, nobody),
    ]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(place, "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("this filesystem has no access control lists")
