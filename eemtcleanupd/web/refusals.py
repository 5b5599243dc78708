"""Refused requests: the error for the client, throttling, and audit lines within a budget for all clients.

Anyone who reaches the address can cause refusals.  So memory and lines are bounded, and every refusal is
either a line of the audit log or counted in one: at most one line per period has the number without a line.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fastapi import Request
from starlette.exceptions import HTTPException

from eemtcleanupd.clock import Clock, monotonic_seconds, system_clock
from eemtcleanupd.errors import AuditError
from eemtcleanupd.events import AuditEntry
from eemtcleanupd.formatting import printable

if TYPE_CHECKING:
    from eemtcleanupd.web.backend import Backend

log = logging.getLogger(__name__)

# More refused requests of one client than this, within the window, throttle it.
_MAX_FAILURES = 60
_WINDOW_SECONDS = 60.0
_MAX_CLIENTS = 10_000
# Lines for all clients together: 600 at once, and then 10 a minute, which is 5 MB a day.
BURST_LINES: Final = 600
LINES_PER_SECOND: Final = 10 / 60
SUMMARY_SECONDS: Final = 60.0
UNKNOWN_USER: Final = "unknown"
THROTTLED: Final = "Too many refused requests. Wait a minute."


class Refusal(HTTPException):
    """The answer to a refused request that is recorded."""


class Refusals:
    """Records refused requests and throttles their clients.  Safe in any thread."""

    def __init__(
        self, backend: Backend, clock: Clock = system_clock, elapsed: Callable[[], float] = monotonic_seconds
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._lines, self._lines_at = float(BURST_LINES), elapsed()
        self._omitted, self._omitted_since = 0, ""
        self._timer: threading.Timer | None = None

    def refuse(self, request: Request, error: HTTPException, *, user: str = UNKNOWN_USER) -> Refusal:
        """Record a refused request and return the error to raise: 429 if its client is throttled."""
        if self.record(
            request.method, request.scope["path"], str(error.detail), client_address(request), user=user
        ):
            return Refusal(429, THROTTLED, {"Retry-After": "60"})
        return Refusal(error.status_code, error.detail, error.headers)

    def record(
        self, method: str, path: str, reason: str, address: str | None, *, user: str = UNKNOWN_USER
    ) -> bool:
        """Record a refused request; return whether its client is throttled."""
        with self._lock:
            failures = self._count_failure(client_group(address))
            has_line = failures <= _MAX_FAILURES + 1 and self._take_line()
            if not has_line:
                self._omit()
        if has_line:
            details = {"request": printable(f"{method} {path}"[:200])[:200], "reason": printable(reason)}
            self._audit(AuditEntry(self._clock(), user, "http_refused", details, address))
        return failures > _MAX_FAILURES

    def write_summary(self) -> None:
        """Write how many refused requests got no line, if any, without waiting for the end of the period."""
        with self._lock:
            count, since = self._omitted, self._omitted_since
            self._omitted = 0
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        if count:
            details = {"count": count, "since": since}
            self._audit(AuditEntry(self._clock(), UNKNOWN_USER, "http_refused_omitted", details))

    def _audit(self, entry: AuditEntry) -> None:
        try:
            self._backend.plugins.audit([entry])
        except AuditError:  # the request is refused all the same
            log.exception("Cannot write a refused request into the audit log")

    # -- with the lock ---------------------------------------------------------------------------------

    def _count_failure(self, client: str) -> int:
        now = self._elapsed()
        started, count = self._failures.pop(client, (now, 0))
        if now - started > _WINDOW_SECONDS:
            started, count = now, 0
        self._failures[client] = (started, count + 1)
        if len(self._failures) > _MAX_CLIENTS:
            self._failures.popitem(last=False)
        return count + 1

    def _take_line(self) -> bool:
        now = self._elapsed()
        self._lines = min(BURST_LINES, self._lines + (now - self._lines_at) * LINES_PER_SECOND)
        self._lines_at = now
        if self._lines < 1:
            return False
        self._lines -= 1
        return True

    def _omit(self) -> None:
        self._omitted += 1
        if self._timer is None:
            self._omitted_since = self._clock().isoformat()
            self._timer = threading.Timer(SUMMARY_SECONDS, self.write_summary)
            self._timer.daemon = True
            self._timer.start()


def client_address(request: Request) -> str | None:
    """Return the client's address, None over a Unix socket."""
    return None if request.client is None else request.client.host


def client_group(address: str | None) -> str:
    """Return what stands for all addresses that one client can easily have: a /64 of IPv6, all of 127/8."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:  # a Unix socket, or a name that a test client gives
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return (
                "127.0.0.0" if parsed.is_loopback else str(ipaddress.ip_network((parsed, 64), strict=False))
            )
        parsed = parsed.ipv4_mapped
    return "127.0.0.0" if parsed.is_loopback else str(parsed)
