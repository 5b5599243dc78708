"""The line between a daemon and the process that answers HTTP for it.

What the daemon says is pickled; what it is told is JSON.  Strangers reach the other process, and whatever
becomes of it, it must not be able to run code in the one that deletes.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

from eemtcleanupd.daemon.status import DaemonStatus
from eemtcleanupd.errors import CleanupError

_MOST_BYTES = 1 << 20
_PATIENCE_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Settings:
    """The configuration in force (:func:`eemtcleanupd.plugins.to_dict`), and the level of the log."""

    loaded: dict[str, Any]
    log_level: int


@dataclass(frozen=True, slots=True)
class State:
    """How the daemon is, and how long ago its loop went round."""

    status: DaemonStatus
    beat_seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What was asked under this number."""

    number: int
    value: object


@dataclass(frozen=True, slots=True)
class ApiRunStarted:
    """The run that was asked for goes on."""

    number: int
    run_id: str


@dataclass(frozen=True, slots=True)
class ApiRunFinished:
    """The run that was asked for is over, or did not happen.

    ``document`` is its answer where that is short; an open file with it follows where ``is_in_file``.
    Neither: ``error`` says why, or nobody knows.
    """

    number: int
    error: CleanupError | None
    document: str | None = None
    is_in_file: bool = False


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Answer what is under way, and end."""


DaemonMessage = Settings | Reply | ApiRunStarted | ApiRunFinished | StopWorker


class DaemonChannel:
    """The daemon's end; may be spoken into from any thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._same = socket.socket(fileno=os.dup(connection.fileno()))
        # A process that is stopped must not hold up the daemon; socket(7) has seconds and microseconds.
        self._same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _PATIENCE_SECONDS, 0))

    def send(self, told: DaemonMessage, file: int | None = None) -> None:
        """Tell something, with an open file where there is one.

        Raises:
            OSError: the process is gone, or does not listen; what it has heard of this is not known, so that
                it hears and is heard no more.
        """
        with self._lock:
            try:
                self._connection.send(told)
                if file is not None:
                    reduction.send_handle(self._connection, file, 0)
            except OSError:
                self.shutdown()
                raise

    def receive(self) -> dict[str, Any]:
        """Wait for what the process asks or says.

        Raises:
            EOFError, OSError: it is gone.
            ValueError: that was no JSON.
        """
        return dict(json.loads(self._connection.recv_bytes(_MOST_BYTES)))

    def shutdown(self) -> None:
        """End it for whoever hears, at both ends, whoever else holds the other one."""
        with suppress(OSError):  # so it is
            self._same.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up, and give the descriptors back."""
        with self._lock:
            self.shutdown()
            self._same.close()
            self._connection.close()


class WorkerChannel:
    """The end of the process that answers HTTP; may be spoken into from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._lock = threading.Lock()

    def send(self, what: dict[str, Any]) -> None:
        """Ask or say something.

        Raises:
            OSError: the daemon is gone.
        """
        with self._lock:
            self._connection.send_bytes(json.dumps(what).encode("ascii"))

    def receive(self) -> tuple[Any, int | None]:
        """Wait for a :data:`DaemonMessage`; return it, and the descriptor of the file that came with it.

        Raises:
            EOFError, OSError: it is gone.
        """
        told = self._connection.recv()
        if isinstance(told, ApiRunFinished) and told.is_in_file:
            return told, reduction.recv_handle(self._connection)
        return told, None
