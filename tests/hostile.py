"""What tests share that play a hostile local user."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

UID = 12345


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
