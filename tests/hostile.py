"""What tests share that play a hostile local user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
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


_HOLD = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], int(sys.argv[2]))
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def lock_held(path: Path, *command: str, uid: int | None = UID) -> Iterator[subprocess.Popen[str]]:
    """Hold an flock in another process: of ``uid``, started by ``command`` if there is one."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR
    identity = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
    with subprocess.Popen(
        [*command, sys.executable, "-I", "-c", _HOLD, path, str(flags)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        **identity,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
