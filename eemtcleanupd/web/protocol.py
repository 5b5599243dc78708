"""HTTP/1.1 protocol of uvicorn with a time limit per request and a limit on open connections.

Idle connections must not use up the file descriptors of the machine that also runs the cleanup.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 256
REQUEST_TIMEOUT_SECONDS = 20.0


class BoundedH11Protocol(H11Protocol):
    """One connection; it is closed when a request does not arrive completely in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in H11Protocol
        """Accept the connection; above the limit, close the one that has waited longest for a request."""
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [
                connection
                for connection in self.connections
                if isinstance(connection, BoundedH11Protocol) and connection.is_waiting()
            ]
            min(waiting, key=lambda connection: connection.waiting_since).transport.abort()

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
        """Return whether the connection is open and no complete request has arrived."""
        return self.conn.their_state in {h11.IDLE, h11.SEND_BODY} and not self.transport.is_closing()

    def _await_request(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.waiting_since = self.loop.time()
        self._timer = self.loop.call_later(REQUEST_TIMEOUT_SECONDS, self._close_if_waiting)

    def _close_if_waiting(self) -> None:
        if self.is_waiting():
            self.transport.abort()
