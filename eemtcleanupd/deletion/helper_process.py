"""A helper process of the pool: threads that empty the folders they are sent, and nothing else.

One interpreter computes in one thread at a time, and removing files costs about as much of that as two
threads have; so the pool lets processes of this module do it when there is much.  They are forked from one
that imports next to nothing and has one thread.  They hold no path: with each folder they are sent the
descriptor of the item that the folder is in.

A line is a socket of packets (``SOCK_SEQPACKET``) that one thread at each end uses.  A request is a folder
(``Request``) with the descriptor; the answers are any number of folders found, each as ``[name, label]``,
and at last the tally as an object.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from dataclasses import asdict, dataclass
from typing import Final, NoReturn

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.rate_limit import DeletionControls
from eemtcleanupd.deletion.tree import RemovalStats, Shard, empty_folder

PACKET_BYTES = 1 << 16
"""No packet is larger: the largest holds a few dozen shortened paths."""


@dataclass(frozen=True, slots=True)
class Request:
    """A folder to empty, as the arguments of ``empty_folder``; the item comes as a descriptor."""

    name: str
    label: str
    device: int
    share: Shard | None = None


FORKED: Final = b"forked"
"""The answer to a request for a helper; any other says why there is none."""
_LINES_AT_MOST = 64


def main() -> None:
    """Fork a helper for each request, until the pool (or its process) is gone.

    Arguments are descriptor numbers: of the stop flag, of the shared limits and locks, and of the socket of
    the requests, each of which brings the lines that the helper is to serve.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are the pool's, which sets the flag
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a helper ended
    stop_fd, controls_fd, requests_fd = map(int, sys.argv[1:])
    requests = socket.socket(fileno=requests_fd)
    with contextlib.suppress(ConnectionError):  # the pool's process was killed
        while True:
            packet, lines, _, _ = socket.recv_fds(requests, PACKET_BYTES, _LINES_AT_MOST)
            if not packet:
                break
            try:
                pid = os.fork()
            except OSError as error:
                requests.send(str(error.strerror).encode())
            else:
                if pid == 0:
                    requests.close()
                    _help(DeletionControls(StopFlag.attach(stop_fd), controls_fd), lines)
                requests.send(FORKED)
            for line in lines:
                os.close(line)
    with contextlib.suppress(ChildProcessError):
        os.wait()  # until all are gone, since the kernel reaps them


def _help(controls: DeletionControls, lines: list[int]) -> NoReturn:
    """Serve lines until standard input ends: a pipe whose other end only the pool has."""
    for number in lines:
        line = socket.socket(fileno=number)
        try:
            threading.Thread(target=_serve, args=(line, controls), daemon=True).start()
        except RuntimeError:  # as many as may be are there; what is sent to this line goes back unread
            line.close()
    os.read(0, 1)
    os._exit(0)


def _serve(line: socket.socket, controls: DeletionControls) -> None:
    def found(name: str, label: str) -> None:
        _send(line, [name, label])

    while True:
        try:
            packet, descriptors, _, _ = socket.recv_fds(line, PACKET_BYTES, 1)
        except ConnectionError:  # whom it served was killed
            return
        if not packet:
            return
        (item_fd,) = descriptors
        request = Request(**json.loads(packet))
        share = None if request.share is None else Shard(*request.share)
        try:
            tally = empty_folder(
                item_fd,
                request.name,
                label=request.label,
                device=request.device,
                controls=controls,
                found=found,
                share=share,
            )
        except OSError as error:
            tally = RemovalStats()
            tally.fail(request.label, error)
        finally:
            os.close(item_fd)
        try:
            _send(line, asdict(tally))
        except OSError:  # whom it is for was killed
            return


def _send(line: socket.socket, message: object) -> None:
    line.send(json.dumps(message).encode("ascii"))
