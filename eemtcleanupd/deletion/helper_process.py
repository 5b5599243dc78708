"""Helper processes of the deletion pool: threads that empty the folders that the pool sends.

One Python interpreter runs one thread at a time, and removing files needs as much CPU as about two threads
have.  So for large deletions the pool uses processes of this module.  They are forked from a server process
that has one thread and few imports.  They receive no paths: each folder comes with the descriptor of its
item.

A channel is a socket of packets (``SOCK_SEQPACKET``) that one thread at each end uses.  A request is a
``FolderTask`` with the descriptor.  The replies are one ``[name, label]`` for each subfolder, once in a while
the number of bytes freed so far, and finally the ``RemovalStats`` as an object.  A request can also be a list
of small entries of a group, with the device.  Its replies are lists with the statistics of each, in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from dataclasses import asdict
from typing import Final, NoReturn

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.deletion.rate_limit import DeletionControls
from eemtcleanupd.deletion.tree import FolderTask, RemovalStats, Shard, empty_folder, remove_small
from eemtcleanupd.formatting import shortened

PACKET_BYTES = 1 << 16
"""The maximum size of a packet; the largest contains a few dozen shortened paths."""
FORKED: Final = b"forked"
"""The reply to a request for a helper; any other reply is an error message."""
SMALL_BATCH = 50
"""How many small entries one request can contain."""
_SMALL_ERROR = 60
_ANSWER_SECONDS = 0.3
_MAX_CHANNELS = 64


def main() -> NoReturn:
    """Fork a helper for each request, until the pool or its process ends; then exit.

    The arguments are descriptor numbers: of the stop flag, of the shared controls, and of the request socket.
    Each request brings the channels that the new helper serves.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pool handles them and sets the stop flag
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the helpers
    stop_fd, controls_fd, requests_fd = map(int, sys.argv[1:])
    requests = socket.socket(fileno=requests_fd)
    with contextlib.suppress(ConnectionError):  # the pool's process was killed
        while True:
            packet, channels, _, _ = socket.recv_fds(requests, PACKET_BYTES, _MAX_CHANNELS)
            if not packet:
                break
            try:
                pid = os.fork()
            except OSError as error:
                requests.send(str(error.strerror).encode())
            else:
                if pid == 0:
                    requests.close()
                    _run_helper(DeletionControls(StopFlag.attach(stop_fd), controls_fd), channels)
                requests.send(FORKED)
            for channel in channels:
                os.close(channel)
    with contextlib.suppress(ChildProcessError):
        os.wait()  # returns when the kernel has reaped all helpers
    os._exit(0)  # the pool waits


def _run_helper(controls: DeletionControls, channels: list[int]) -> NoReturn:
    """Serve channels until standard input ends, a pipe whose write end only the pool has."""
    for number in channels:
        channel = socket.socket(fileno=number)
        try:
            threading.Thread(target=_serve, args=(channel, controls), daemon=True).start()
        except RuntimeError:  # the thread limit is reached; tasks on this channel return unread
            channel.close()
    os.read(0, 1)
    os._exit(0)


def _serve(channel: socket.socket, controls: DeletionControls) -> None:
    while True:
        try:
            packet, descriptors, _, _ = socket.recv_fds(channel, PACKET_BYTES, 1)
        except ConnectionError:  # the pool's process was killed
            return
        if not packet:
            return
        (item_fd,) = descriptors
        fields = json.loads(packet)
        if "small" in fields:
            try:
                _remove_small(channel, item_fd, fields["small"], fields["device"], controls)
            except OSError:  # the pool's process was killed
                return
            finally:
                os.close(item_fd)
            continue
        shard = fields.pop("shard")
        task = FolderTask(**fields, shard=None if shard is None else Shard(*shard))
        try:
            stats = empty_folder(
                item_fd,
                task,
                controls,
                lambda *subfolder: _send(channel, subfolder),
                lambda bytes_freed: _send(channel, bytes_freed),
            )
        except OSError as error:
            stats = RemovalStats()
            stats.fail(task.label, error, task.name)
        finally:
            os.close(item_fd)
        if not _answer(channel, asdict(stats)):
            return


def _remove_small(
    channel: socket.socket, group_fd: int, names: list[str], device: int, controls: DeletionControls
) -> None:
    """Remove small entries, and answer with the statistics of each: together if they are removed quickly."""
    removed: list[dict[str, object]] = []
    sent_at = monotonic_seconds()
    for name in names:
        removed.append(_shortened(remove_small(group_fd, name, name, device, controls)))
        if monotonic_seconds() - sent_at > _ANSWER_SECONDS:
            _send(channel, removed)
            removed, sent_at = [], monotonic_seconds()
    if removed:
        _send(channel, removed)


def _shortened(stats: RemovalStats) -> dict[str, object]:
    """Return statistics whose errors fit into a packet together with those of others."""
    errors = [[shortened(text, _SMALL_ERROR) for text in error] for error in stats.errors[:1]]
    return asdict(stats) | {"errors": errors}


def _answer(channel: socket.socket, message: object) -> bool:
    try:
        _send(channel, message)
    except OSError:  # the pool's process was killed
        return False
    return True


def _send(channel: socket.socket, message: object) -> None:
    channel.send(json.dumps(message).encode("ascii"))
