"""Messages between a daemon and its HTTP worker process, as JSON over a socket pair.

Clients on the network reach the worker.  Even a compromised worker must not be able to run code in the
daemon, so nothing is pickled.  Open files travel as descriptors (``SCM_RIGHTS``).
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field, fields
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, get_args

from eemtcleanupd import errors
from eemtcleanupd.daemon.status import DaemonStatus, status_from_dict, status_to_dict
from eemtcleanupd.errors import CleanupError

_MAX_REQUEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """The configuration as of :func:`eemtcleanupd.plugins.to_dict`, secrets included, and the log level."""

    config: dict[str, Any] = field(repr=False)
    log_level: int


@dataclass(frozen=True, slots=True)
class StateReply:
    """The daemon's status, and the seconds since its loop last ran."""

    number: int
    status: DaemonStatus
    seconds_since_heartbeat: float


@dataclass(frozen=True, slots=True)
class MetricsReply:
    """The metrics in Prometheus' text format."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class ApiRunStarted:
    """The requested run has started."""

    number: int
    run_id: str


@dataclass(frozen=True, slots=True)
class ApiRunFinished:
    """The requested run has ended or was refused.

    ``document`` is the run's JSON if it is short.  With ``is_in_file`` the descriptor of a file with the
    JSON follows.  Otherwise ``error`` is the reason, None if the run failed unexpectedly.
    """

    number: int
    error: CleanupError | None
    document: str | None = None
    is_in_file: bool = False


@dataclass(frozen=True, slots=True)
class StopWorker:
    """The worker must finish open requests and exit."""


DaemonReply = StateReply | MetricsReply | ApiRunStarted | ApiRunFinished
DaemonMessage = Settings | DaemonReply | StopWorker
_MESSAGES: dict[str, Any] = {kind.__name__: kind for kind in get_args(DaemonMessage)}


def encode(message: DaemonMessage) -> bytes:
    """Return a message as JSON."""
    values = {each.name: getattr(message, each.name) for each in fields(message)}
    return json.dumps({"message": type(message).__name__, **values}, default=_to_json).encode("ascii")


def decode(data: bytes) -> DaemonMessage:
    """Return the message of :func:`encode`.

    Raises:
        ValueError, KeyError, TypeError: the data is not a message.
    """
    values = json.loads(data)
    kind = _MESSAGES[values.pop("message")]
    if kind is StateReply:
        values["status"] = status_from_dict(values["status"])
    elif kind is ApiRunFinished and values["error"] is not None:
        values["error"] = getattr(errors, values["error"]["class"])(values["error"]["text"])
    message: DaemonMessage = kind(**values)
    return message


def _to_json(value: object) -> dict[str, Any]:
    match value:
        case DaemonStatus():
            return status_to_dict(value)
        case CleanupError():
            # The worker needs the class for the status code; a subclass elsewhere counts as its base.
            name = next(kind.__name__ for kind in type(value).__mro__ if kind.__module__ == errors.__name__)
            return {"class": name, "text": str(value)}
        case _:
            raise TypeError(f"Cannot encode {type(value).__name__} as JSON.")


class DaemonChannel:
    """The daemon's end of the socket pair (a ``multiprocessing.Pipe``).  Any thread can send.

    A worker that does not read can delay the daemon for ``send_timeout_seconds``.
    """

    def __init__(self, connection: Connection, send_timeout_seconds: int = 5) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        timeout = struct.pack("ll", send_timeout_seconds, 0)  # socket(7): seconds and microseconds
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)

    def send(self, message: DaemonMessage, file: int | None = None) -> None:
        """Send a message, and the descriptor of an open file if there is one.

        Raises:
            OSError: the worker has exited or does not read.  It might have received a part of the message,
                so the connection is shut down.
        """
        data = encode(message)
        with self._lock:
            try:
                self._connection.send_bytes(data)
                if file is not None:
                    reduction.send_handle(self._connection, file, 0)
            except OSError:
                self.shutdown()
                raise

    def receive(self) -> dict[str, Any]:
        """Wait for a request or a log record of the worker.

        Raises:
            EOFError, OSError: the worker has exited.
            ValueError: the data is not JSON.
        """
        return dict(json.loads(self._connection.recv_bytes(_MAX_REQUEST_BYTES)))

    def shutdown(self) -> None:
        """End the connection at both ends, even if another process holds a copy of an end."""
        with suppress(OSError):  # already disconnected
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Shut down the connection and close its descriptors."""
        with self._lock:
            self.shutdown()
            self._socket.close()
            self._connection.close()


class WorkerChannel:
    """The worker's end of the socket pair.  Any thread can send."""

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Send a request or a log record.

        Raises:
            OSError: the daemon has exited.
        """
        with self._lock:
            self._connection.send_bytes(json.dumps(message).encode("ascii"))

    def receive(self) -> tuple[DaemonMessage, int | None]:
        """Wait for a message of the daemon; return it and the descriptor of a file that came with it.

        Raises:
            EOFError, OSError: the daemon has exited.
        """
        message = decode(self._connection.recv_bytes())
        if isinstance(message, ApiRunFinished) and message.is_in_file:
            return message, reduction.recv_handle(self._connection)
        return message, None
