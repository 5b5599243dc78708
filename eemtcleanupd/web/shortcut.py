"""The shortcut to an answer that is still good: past the routes, which checked the question when it was new.

Who asks again and again costs a busy machine a third as much that way.
"""

from __future__ import annotations

from collections.abc import Hashable

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from eemtcleanupd.web.auth import Authenticator
from eemtcleanupd.web.cache import ResponseCache


class CacheMiddleware:
    """Gives who may read the answer that is kept for a question; all others go on to the routes.

    Args:
        app: the routes.
        kept: the answers.
        access: who may.
    """

    def __init__(self, app: ASGIApp, kept: ResponseCache, access: Authenticator) -> None:
        self._app = app
        self._kept = kept
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI)."""
        answer: ASGIApp = self._app
        if scope["type"] == "http" and scope["method"] == "GET":
            good = self._kept.fresh(cache_question(scope))
            if good is not None and self._access.may_read(Request(scope)):
                answer = Response(good[0], media_type=good[1])
        await answer(scope, receive, send)


def cache_question(scope: Scope) -> Hashable:
    """Return what a request asks for: the path and the query."""
    return scope["path"], scope["query_string"]
