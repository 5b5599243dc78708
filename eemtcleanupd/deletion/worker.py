"""A helper process of the pool: threads that empty the folders they are sent, and nothing else.

One interpreter computes in one thread at a time, and removing files costs about as much of that as two
threads have; so the pool lets processes of this module do it when there is much.  Such a process imports
next to nothing, so that it starts in some 30 ms.  It holds no path: with each folder it is sent the
descriptor of the item that the folder is in.

A line is a socket of packets (``SOCK_SEQPACKET``) that one thread at each end uses.  A request is a folder
(``Request``) with the descriptor; the answers are any number of folders found, each as ``[name, label]``,
and at last the tally as an object.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from dataclasses import asdict, dataclass

from eemtcleanupd.deletion.limits import Controls
from eemtcleanupd.deletion.tree import Tally, empty_folder
from eemtcleanupd.stop import StopFlag

PACKET_BYTES = 1 << 16
"""No packet is larger: the largest holds a few dozen shortened paths."""


@dataclass(frozen=True, slots=True)
class Request:
    """A folder to empty, as the arguments of ``empty_folder``; the item comes as a descriptor."""

    name: str
    label: str
    device: int


def main() -> None:
    """Serve the lines given by descriptor number, until the pool (or its process) is gone.

    Arguments: the stop flag's descriptor, that of the shared limits and locks, then one for each line.
    Standard input is a pipe whose other end only the pool has: at its end, all ends.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are the pool's, which sets the flag
    stop_fd, controls_fd, *lines = map(int, sys.argv[1:])
    controls = Controls(StopFlag.attach(stop_fd), controls_fd)
    for line in lines:
        threading.Thread(target=_serve, args=(socket.socket(fileno=line), controls), daemon=True).start()
    sys.stdin.buffer.read()
    os._exit(0)


def _serve(line: socket.socket, controls: Controls) -> None:
    def found(name: str, label: str) -> None:
        _send(line, [name, label])

    while True:
        packet, descriptors, _, _ = socket.recv_fds(line, PACKET_BYTES, 1)
        if not packet:
            return
        (item_fd,) = descriptors
        request = Request(**json.loads(packet))
        try:
            tally = empty_folder(
                item_fd,
                request.name,
                label=request.label,
                device=request.device,
                controls=controls,
                found=found,
            )
        except OSError as error:
            tally = Tally()
            tally.fail(request.label, error)
        finally:
            os.close(item_fd)
        try:
            _send(line, asdict(tally))
        except OSError:  # whom it is for was killed
            return


def _send(line: socket.socket, message: object) -> None:
    line.send(json.dumps(message).encode("ascii"))
