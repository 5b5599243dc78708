"""HTTP/1.1 protocol of uvicorn with time limits for clients and a limit on open connections.

Idle connections must not use up the file descriptors of the machine that also runs the cleanup.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from eemtcleanupd.web.refusals import client_group

MAX_CONNECTIONS = 256
REQUEST_TIMEOUT_SECONDS = 20.0


class BoundedH11Protocol(H11Protocol):
    """One connection; it is closed when the client neither sends a complete request nor reads in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in H11Protocol
        """Accept the connection; above the limit, close one that waits for its client.

        It is the longest waiting one of the client with most of them, so that many connections of one client
        close each other.
        """
        super().connection_made(transport)
        self.group = client_group(self.client and self.client[0])
        self._await_request()
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [
                connection
                for connection in self.connections
                if isinstance(connection, BoundedH11Protocol) and connection.is_waiting()
            ]
            (group, _) = Counter(connection.group for connection in waiting).most_common(1)[0]
            of_group = (connection for connection in waiting if connection.group == group)
            min(of_group, key=lambda connection: connection.waiting_since).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timer of a closed connection."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._await_request()

    def is_waiting(self) -> bool:
        """Return whether the client has not sent a complete request, or has not read what was sent."""
        is_incomplete = self.conn.their_state in {h11.IDLE, h11.SEND_BODY}
        return (is_incomplete and not self.transport.is_closing()) or self._unread_bytes() > 0

    def _unread_bytes(self) -> int:
        return self.transport.get_write_buffer_size()

    def _await_request(self) -> None:
        self.waiting_since = self.loop.time()
        self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        unread = self._unread_bytes()
        self._timer = self.loop.call_later(REQUEST_TIMEOUT_SECONDS, self._close_if_stalled, unread)

    def _close_if_stalled(self, unread_before: int) -> None:
        unread = self._unread_bytes()
        if self.is_waiting() and (unread == 0 or unread >= unread_before > 0):
            self.transport.abort()
        else:  # a slow client that reads a long answer, or a slow answer
            self._start_timer()
