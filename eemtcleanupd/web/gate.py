"""What every request passes first: the Host it names, the size of its body, who sent it; and our headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eemtcleanupd.config.schema import ApiConfig
from eemtcleanupd.web.problems import problem

BODY_LIMIT_BYTES = 64 * 1024
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
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
Refused = Callable[[str, str, str, str | None], None]


class Gate:
    """The outermost layer.

    Args:
        app: what lies behind.
        settings: gives the block ``api`` that is in force.
        refused: is told of what is refused here: method, path, reason, address.
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
        _believe_proxy(scope, headers, settings.trusted_proxies)
        host = headers.get(b"host", "")
        if not _is_ours(host, settings):
            await self._refuse(scope, receive, send, 421, f"this is not {host[:100]}")
            return
        length = headers.get(b"content-length", "0")
        if not length.isdigit() or int(length) > BODY_LIMIT_BYTES:
            await self._refuse(scope, receive, send, 413, f"a body has at most {BODY_LIMIT_BYTES} bytes")
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
                given = {name for name, _ in message["headers"]}
                more = [pair for pair in _HEADERS if pair[0] not in given]
                if b"cache-control" not in given:
                    more.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            await self._app(scope, limited, answer)
        except Exception:
            if not too_much:
                raise
        if too_much and not begun:
            await self._refuse(scope, receive, send, 413, f"a body has at most {BODY_LIMIT_BYTES} bytes")

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: int, detail: str) -> None:
        import anyio.to_thread  # noqa: PLC0415

        client = scope.get("client")
        address = client[0] if client else None
        await anyio.to_thread.run_sync(self._refused, scope["method"], scope["path"], detail, address)
        await problem(status, detail, headers={"Connection": "close"})(scope, receive, send)


def _is_ours(host: str, settings: ApiConfig) -> bool:
    """Tell whether a Host header names us: a page of another site must not reach us by a name of its own."""
    if settings.listen.startswith("unix:"):
        return True  # no browser gets there
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    own = settings.listen.rpartition(":")[0]
    return name.lower() in {
        "localhost",
        "127.0.0.1",
        "[::1]",
        own,
        *(each.lower() for each in settings.allowed_hosts),
    }


def _believe_proxy(scope: Any, headers: dict[bytes, str], proxies: tuple[str, ...]) -> None:
    """Take the client's address from X-Forwarded-For, as far as proxies that are trusted have written it."""
    client = scope.get("client")
    if client is None or client[0] not in proxies:
        return
    for address in reversed(headers.get(b"x-forwarded-for", "").split(",")):
        if address.strip() and address.strip() not in proxies:
            scope["client"] = (address.strip(), 0)
            return
