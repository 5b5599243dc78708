"""One connection: requests must arrive in time, and there are never more connections than a run can bear.

The daemon that answers is the one that deletes; whoever only opens connections must not take the file
descriptors that a run needs.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 256
ARRIVAL_SECONDS = 20.0


class BoundedH11Protocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, within bounds."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as there
        """Begin; where there are too many, one that waits for a request makes room."""
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > MOST:
            waiting = [
                each
                for each in self.connections
                if isinstance(each, BoundedH11Protocol) and each.is_waiting()
            ]
            min(waiting, key=lambda each: each.since).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._await_request()

    def is_waiting(self) -> bool:
        """Tell whether no request has arrived as a whole, and it has not been ended for that yet."""
        return self.conn.their_state in {h11.IDLE, h11.SEND_BODY} and not self.transport.is_closing()

    def _await_request(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.since = self.loop.time()
        self._timer = self.loop.call_later(ARRIVAL_SECONDS, self._is_overdue)

    def _is_overdue(self) -> None:
        if self.is_waiting():
            self.transport.abort()
