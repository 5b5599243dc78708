"""Errors as pages for browsers: wherever an error comes from, a person gets a page with the way back."""

from __future__ import annotations

import json
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eemtcleanupd.web.problems import MEDIA_TYPE

_FOR_PROGRAMS = ("/api/", "/metrics", "/healthz")


class ErrorPages:
    """An ASGI layer that answers a browser with a page instead of problem details; the API keeps these.

    ``render`` returns the page for the text of an error.
    """

    def __init__(self, app: ASGIApp, render: Callable[[str], bytes]) -> None:
        self._app = app
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI)."""
        if scope["type"] != "http" or not _wants_page(scope):
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def send_page(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                if Headers(raw=message["headers"]).get("content-type") != MEDIA_TYPE:
                    await send(message)
                else:
                    start = message
                return
            if start is None or message["type"] != "http.response.body":
                await send(message)
                return
            body += message.get("body", b"")
            if not message.get("more_body", False):
                page = self._render(json.loads(body)["detail"])
                own = {b"content-type": b"text/html; charset=utf-8", b"content-length": b"%d" % len(page)}
                headers = [pair for pair in start["headers"] if pair[0] not in own]
                await send({**start, "headers": [*headers, *own.items()]})
                await send({**message, "body": page})

        await self._app(scope, receive, send_page)


def _wants_page(scope: Scope) -> bool:
    """Return whether a person reads the answer; programs accept anything, or JSON."""
    accept = Headers(scope=scope).get("accept", "").lower()
    return "text/html" in accept and not scope["path"].startswith(_FOR_PROGRAMS)
