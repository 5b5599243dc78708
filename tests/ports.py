"""Ports for servers that a test starts."""

from __future__ import annotations

import socket

_RESERVED: list[socket.socket] = []


def free_port() -> int:
    """Return a port of the loopback interface that only its caller gets, and on which nothing listens yet.

    A socket stays bound to it, so that the kernel gives it to no other test.  A server that sets
    ``SO_REUSEADDR``, as nearly all do, can listen there all the same (socket(7)).
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    _RESERVED.append(probe)
    return int(probe.getsockname()[1])
