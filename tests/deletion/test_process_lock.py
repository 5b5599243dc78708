"""A lock for the threads of several processes."""

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

# Holds the second lock while another of its threads waits for the first.
_OTHER = """
import sys, threading
from eemtcleanupd.deletion.process_lock import InterProcessLock
fd = int(sys.argv[1])
def wait():
    with InterProcessLock(fd, 0):
        pass
with InterProcessLock(fd, 1):
    thread = threading.Thread(target=wait)
    thread.start()
    sys.stdin.read()
thread.join()
"""


def test_a_false_deadlock_report_of_the_kernel_is_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fd = os.memfd_create("locks")
    inode = os.fstat(fd).st_ino
    tries = 0
    acquired: list[bool] = []
    lockf = fcntl.lockf

    def counted(*arguments: Any) -> None:
        nonlocal tries
        tries += 1
        lockf(*arguments)

    def acquire_second() -> None:
        try:
            with InterProcessLock(fd, 1):
                acquired.append(True)
        except OSError:
            acquired.append(False)

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
            thread = threading.Thread(target=acquire_second)
            thread.start()
            wait_until(lambda: acquired or tries > 1)
            assert other.stdin is not None
            other.stdin.close()
            thread.join()
        assert other.wait() == 0
    os.close(fd)
    assert acquired == [True]
