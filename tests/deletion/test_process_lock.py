"""A lock that threads of several processes share."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from eemtcleanupd.deletion.process_lock import InterProcessLock
from tests.deletion.conftest import wait_until

# Holds the second lock, and another thread of it waits for the first.
_OTHER = """
import sys, threading
from eemtcleanupd.deletion.process_lock import SharedLock
fd = int(sys.argv[1])
def wait():
    with SharedLock(fd, 0):
        pass
with SharedLock(fd, 1):
    thread = threading.Thread(target=wait)
    thread.start()
    sys.stdin.read()
thread.join()
"""


def test_what_looks_like_a_deadlock_of_two_processes_is_none_as_their_threads_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fd = os.memfd_create("locks")
    inode = os.fstat(fd).st_ino
    tries = 0
    went_on: list[bool] = []
    lockf = fcntl.lockf

    def counted(*arguments: Any) -> None:
        nonlocal tries
        tries += 1
        lockf(*arguments)

    def take_second() -> None:
        try:
            with InterProcessLock(fd, 1):
                went_on.append(True)
        except OSError:
            went_on.append(False)

    first = InterProcessLock(fd, 0)
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER, str(fd)], stdin=subprocess.PIPE, pass_fds=[fd]
    ) as other:
        with first:
            wait_until(
                lambda: any(
                    "-> POSIX" in line and f":{inode} 0 0" in line
                    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()
                )
            )
            monkeypatch.setattr(fcntl, "lockf", counted)
            thread = threading.Thread(target=take_second)
            thread.start()
            wait_until(lambda: went_on or tries > 1)
            assert other.stdin is not None
            other.stdin.close()
            thread.join()
        assert other.wait() == 0
    os.close(fd)
    assert went_on == [True]
