"""What every request passes first: the Host it names, where it comes from, its size; and our headers."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio.to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eemtcleanupd.config.schema import ApiConfig
from eemtcleanupd.web.auth import TOO_MANY
from eemtcleanupd.web.problems import problem

BODY_LIMIT_BYTES = 64 * 1024
_TOO_BIG = f"a body has at most {BODY_LIMIT_BYTES} bytes"
_HEADERS = (
    (
        b"content-security-policy",
        (
            b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
            b"connect-src 'self'; "
            b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        ),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    # Not no-referrer: with that, a browser says of our own forms that they come from nowhere.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
Refused = Callable[[str, str, str, str | None], bool]


class SecurityMiddleware:
    """The outermost layer.

    Args:
        app: what lies behind.
        settings: gives the block ``api`` that is in force.
        refused: is told of what is refused here: method, path, reason, address; it says whether who sent it
            is to wait.
    """

    def __init__(self, app: ASGIApp, settings: Callable[[], ApiConfig], refused: Refused) -> None:
        self._app = app
        self._settings = settings
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        settings = self._settings()
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        _apply_proxy_headers(scope, headers, settings.trusted_proxies)
        refusal = _refusal(scope["method"], headers, settings)
        if refusal is not None:
            await self._refuse(scope, receive, send, *refusal)
            return
        taken, too_much = 0, False

        async def limited() -> Message:
            nonlocal taken, too_much
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > BODY_LIMIT_BYTES:
                too_much = True
                return {"type": "http.disconnect"}
            return message

        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if too_much and not begun:
                return
            if message["type"] == "http.response.start":
                begun = True
                message = {**message, "headers": _with_our_headers(message["headers"])}
            await send(message)

        try:
            await self._app(scope, limited, answer)
        except Exception:
            if not too_much:
                raise
        if too_much and not begun:
            await self._refuse(scope, receive, send, 413, _TOO_BIG)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: int, detail: str) -> None:
        client = scope.get("client")
        address = client[0] if client else None
        headers = {"Connection": "close"}
        if await anyio.to_thread.run_sync(self._refused, scope["method"], scope["path"], detail, address):
            status, detail = 429, TOO_MANY
            headers["Retry-After"] = "60"

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _with_our_headers(message["headers"])}
            await send(message)

        await problem(status, detail, headers=headers)(scope, receive, answer)


def _with_our_headers(given: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    names = {name for name, _ in given}
    more = [pair for pair in _HEADERS if pair[0] not in names]
    if b"cache-control" not in names:
        more.append((b"cache-control", b"no-store"))
    return [*given, *more]


def _refusal(method: str, headers: dict[bytes, str], settings: ApiConfig) -> tuple[int, str] | None:
    """Return why a request is refused by its headers alone, None when it is not."""
    host = headers.get(b"host", "")
    if not _is_allowed_host(host, settings):
        return 421, f"this is not {host[:100]}"
    origin = headers.get(b"origin")
    if (
        origin is not None
        and method not in {"GET", "HEAD", "OPTIONS"}
        and origin not in {f"http://{host}", f"https://{host}"}
    ):
        return 403, f"this did not come from our own page, but from {origin[:100]}"
    length = headers.get(b"content-length", "0")
    if not (length.isascii() and length.isdigit()) or len(length) > 9 or int(length) > BODY_LIMIT_BYTES:
        return 413, _TOO_BIG
    return None


def _is_allowed_host(host: str, settings: ApiConfig) -> bool:
    """Tell whether a Host header names us: a page of another site must not reach us by a name of its own."""
    allowed = {each.lower() for each in settings.allowed_hosts}
    if settings.listen.startswith("unix:"):
        if not allowed:
            return True  # no browser gets there, unless a proxy lets it
    else:
        allowed |= {"localhost", "127.0.0.1", "[::1]", settings.listen.rpartition(":")[0]}
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    # An address is no name at all, so none that a page made its own (a probe by a pod's address, say).
    return name.lower() in allowed or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _apply_proxy_headers(scope: Any, headers: dict[bytes, str], proxies: tuple[str, ...]) -> None:
    """Take the client's address and scheme from headers, as far as trusted proxies have written them.

    Over a Unix socket, where nobody has an address, ``unix:`` stands for whoever gets there.
    """
    client = scope.get("client")
    if (client[0] if client else "unix:") not in proxies:
        return
    if headers.get(b"x-forwarded-proto") in {"http", "https"}:
        scope["scheme"] = headers[b"x-forwarded-proto"]
    addresses = [each.strip() for each in headers.get(b"x-forwarded-for", "").split(",")]
    others = [each for each in addresses if each not in proxies]
    with suppress(ValueError, IndexError):  # what is no address is not believed
        scope["client"] = (str(ipaddress.ip_address(others[-1])), 0)
