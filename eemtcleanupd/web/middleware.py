"""What every request of a daemon passes first: checks of Host and framing, proxy and security headers."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import anyio.to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eemtcleanupd.config.schema import ApiConfig
from eemtcleanupd.web.problems import problem
from eemtcleanupd.web.refusals import THROTTLED

_SECURITY_HEADERS = (
    (
        b"content-security-policy",
        (
            b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
            b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        ),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    # With no-referrer, browsers send "Origin: null" with the dashboard's own forms.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
RecordRefusal = Callable[[str, str, str, str | None], bool]
"""Records a refused request (method, path, reason, address); returns whether its client is throttled."""


class SecurityMiddleware:
    """The outermost ASGI layer; ``settings`` returns the ``api`` block in force."""

    def __init__(
        self, app: ASGIApp, settings: Callable[[], ApiConfig], record_refusal: RecordRefusal
    ) -> None:
        self._app = app
        self._settings = settings
        self._record_refusal = record_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        settings = self._settings()
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        _apply_proxy_headers(scope, headers, settings.trusted_proxies)
        refusal = _refusal(scope, headers, settings)
        if refusal is not None:
            await self._refuse(scope, receive, send, *refusal)
            return

        async def send_answer(message: Message) -> None:
            await send(_with_security_headers(message))

        await self._app(scope, receive, send_answer)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: int, detail: str) -> None:
        client = scope.get("client")
        address = client[0] if client else None
        headers = {"Connection": "close"}
        record = self._record_refusal
        if await anyio.to_thread.run_sync(record, scope["method"], scope["path"], detail, address):
            status, detail = 429, THROTTLED
            headers["Retry-After"] = "60"

        async def send_answer(message: Message) -> None:
            await send(_with_security_headers(message))

        await problem(status, detail, headers=headers)(scope, receive, send_answer)


def _with_security_headers(message: Message) -> Message:
    if message["type"] != "http.response.start":
        return message
    names = {name for name, _ in message["headers"]}
    added = [pair for pair in _SECURITY_HEADERS if pair[0] not in names]
    if message["status"] == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        added.append((b"connection", b"close"))  # otherwise uvicorn reads and drops the rest of the body
    if b"cache-control" not in names:
        added.append((b"cache-control", b"no-store"))
    return {**message, "headers": [*message["headers"], *added]}


def _refusal(scope: Scope, headers: dict[bytes, str], settings: ApiConfig) -> tuple[int, str] | None:
    """Return the status and the reason if a request is invalid in any application, else None."""
    if b"transfer-encoding" in headers and (b"content-length" in headers or scope["http_version"] == "1.0"):
        # A proxy can take another end of the body, and then pass the rest as a request of its own (RFC 9112).
        return 400, "Transfer-Encoding is not allowed together with Content-Length or in HTTP/1.0."
    host = headers.get(b"host", "")
    if not _is_allowed_host(host, settings):
        return 421, f'Host header "{host[:100]}" is not allowed. Add the name to api.allowed_hosts.'
    return None


def _is_allowed_host(host: str, settings: ApiConfig) -> bool:
    """Return whether a Host header names this server: this prevents DNS rebinding by other sites."""
    allowed = set(settings.host_names)
    if settings.listen.startswith("unix:"):
        if not settings.allowed_hosts:
            return True  # browsers reach a Unix socket only through a proxy
    else:
        allowed |= {"localhost", "127.0.0.1", "[::1]", settings.listen.rpartition(":")[0]}
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    with suppress(ValueError):
        # DNS rebinding needs a name, so any address is safe (a probe by a pod's address, for example).
        ipaddress.ip_address(name.strip("[]"))
        return True
    return name.lower() in allowed


def _apply_proxy_headers(scope: Any, headers: dict[bytes, str], proxies: tuple[str, ...]) -> None:
    """Set the client's address and scheme from the headers of trusted proxies.

    Clients of a Unix socket have no address; ``unix:`` in ``proxies`` means all of them.
    """
    client = scope.get("client")
    if (client[0] if client else "unix:") not in proxies:
        return
    if headers.get(b"x-forwarded-proto") in {"http", "https"}:
        scope["scheme"] = headers[b"x-forwarded-proto"]
    addresses = [address.strip() for address in headers.get(b"x-forwarded-for", "").split(",")]
    clients = [address for address in addresses if address not in proxies]
    with suppress(ValueError, IndexError):  # the header has no valid address: keep the proxy's
        scope["client"] = (str(ipaddress.ip_address(clients[-1])), 0)
