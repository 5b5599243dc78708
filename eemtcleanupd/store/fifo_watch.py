"""Ends SQLite's wait for the writer of a FIFO that somebody put in place of one of its files.

SQLite opens files without ``O_NONBLOCK``, and again after each signal (``robust_open`` in
https://www.sqlite.org/src/file/src/os_unix.c).  A check before that is a race, and a journal can name further
files.  ``/proc/PID/task/TID/wchan`` tells where in the kernel a thread waits, see proc_pid_wchan(5).
"""

from __future__ import annotations

import logging
import os
import stat
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from eemtcleanupd.errors import StoreError
from eemtcleanupd.formatting import printable

log = logging.getLogger(__name__)

BESIDE = ("-journal", "-wal", "-shm")
"""Endings of the files that SQLite keeps beside a database, see https://www.sqlite.org/tempfiles.html."""
_INTERVAL_SECONDS = 0.5
_LOOKS = 4
# Functions of fs/pipe.c; a compiler can inline the first one into the second, and append to a name.
_WAITS_FOR_FIFO = ("wait_for_partner", "fifo_open")
_databases: dict[int, Path] = {}


@contextmanager
def no_wait_for_fifo(database: Path) -> Iterator[None]:
    """Let SQLite fail, instead of wait, at a FIFO in place of the database or of a file beside it.

    If it waits for another one, such as a FIFO that a journal names, the process ends with the exit code of
    a StoreError.  Without ``/proc``, or where no thread can be started, SQLite waits.
    """
    with suppress(RuntimeError):
        _start()
    thread = threading.get_native_id()
    outer = _databases.get(thread)
    _databases[thread] = database
    try:
        yield
    finally:
        if outer is None:
            del _databases[thread]
        else:
            _databases[thread] = outer


@cache
def _start() -> None:
    threading.Thread(target=_watch, name="FIFO watch", daemon=True).start()


def _after_fork() -> None:
    _start.cache_clear()
    _databases.clear()


os.register_at_fork(after_in_child=_after_fork)


def _watch() -> None:
    looks = Counter[int]()
    never = threading.Event()
    while not never.wait(_INTERVAL_SECONDS):
        waiting = {thread: file for thread, file in _databases.copy().items() if _waits_for_fifo(thread)}
        looks = Counter({thread: looks[thread] + 1 for thread in waiting})
        for thread, file in waiting.items():
            if looks[thread] < _LOOKS:
                _open_other_end(file)
            else:
                _end(file)


def _waits_for_fifo(thread: int) -> bool:
    try:
        return Path(f"/proc/self/task/{thread}/wchan").read_text().startswith(_WAITS_FOR_FIFO)
    except OSError:
        return False


def _open_other_end(database: Path) -> None:
    """Open each FIFO that a reader waits for.  SQLite then cannot read at a position of it, and fails."""
    for path in (f"{database}", *(f"{database}{ending}" for ending in BESIDE)):
        with suppress(OSError):
            found = os.open(path, os.O_PATH | os.O_NOFOLLOW)
            try:
                # Only a FIFO: opening another file for writing can have an effect.
                if stat.S_ISFIFO(os.fstat(found).st_mode):
                    os.close(os.open(f"/proc/self/fd/{found}", os.O_WRONLY | os.O_NONBLOCK))
            finally:
                os.close(found)


def _end(database: Path) -> None:
    message = (
        f"Job database {printable(str(database))}: SQLite waits for a FIFO that its journal names or that is "
        "in its place. Look who can write to its folder, and remove the FIFO."
    )
    log.critical("%s", message)
    with suppress(OSError, ValueError):
        sys.stderr.write(f"eemtcleanupd: error: {message}\n")
        sys.stderr.flush()
    os._exit(StoreError.exit_code)
