"""Cache of HTTP answers: computes each once for all clients, and drops the one computed longest ago.

:class:`CacheMiddleware` serves a fresh answer without the routes, which costs a third of the CPU time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple, TypeVar

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.web.auth import Authenticator

FRESH_SECONDS: Final = 2.0
PLAN_FRESH_SECONDS: Final = 30.0
# `?limit=` lets a client with read scope request a hundred thousand different answers.
MAX_ANSWERS: Final = 64
_T = TypeVar("_T")


class _Answer(NamedTuple):
    fresh_until: float
    body: bytes


class ResponseCache:
    """Bounded cache.  Only :meth:`clear` is called outside the event loop, so no lock is needed."""

    def __init__(self, elapsed: Callable[[], float] = monotonic_seconds) -> None:
        self._elapsed = elapsed
        self._answers: dict[Hashable, _Answer] = {}
        self._tasks: dict[Hashable, asyncio.Task[bytes]] = {}
        self._requests: dict[Hashable, tuple[Hashable, str]] = {}

    def peek(self, key: Hashable) -> bytes | None:
        """Return the last answer, fresh or not."""
        answer = self._answers.get(key)
        return None if answer is None else answer.body

    async def get(
        self,
        key: Hashable,
        compute: Callable[[], bytes],
        seconds: float = FRESH_SECONDS,
        stale_seconds: float = 0.0,
    ) -> bytes:
        """Return an answer, computed in a thread unless a fresh one is cached.

        It is fresh for ``seconds``, and is returned for ``stale_seconds`` more while a new one is computed.
        """
        answer, now = self._answers.get(key), self._elapsed()
        if answer is not None and now < answer.fresh_until:
            return answer.body
        task = self.refresh(key, compute, seconds)
        if answer is not None and now < answer.fresh_until + stale_seconds:
            return answer.body
        return await asyncio.shield(task)  # other requests await the same task

    def refresh(
        self, key: Hashable, compute: Callable[[], bytes], seconds: float = FRESH_SECONDS
    ) -> asyncio.Task[bytes]:
        """Start to compute an answer, unless a task already does; nobody has to await the task."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.create_task(self._compute(key, compute, seconds))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._tasks[key] = task
        return task

    async def _compute(self, key: Hashable, compute: Callable[[], bytes], seconds: float) -> bytes:
        # clear() replaces both dictionaries, so an answer from before it is stored where nothing reads.
        answers, tasks = self._answers, self._tasks
        try:
            body = await asyncio.to_thread(compute)
        finally:
            tasks.pop(key, None)
        _put_last(answers, key, _Answer(self._elapsed() + seconds, body))
        return body

    def remember_key(self, request: Hashable, key: Hashable, media_type: str) -> None:
        """Remember which answer a request (:func:`request_key`) gets."""
        _put_last(self._requests, request, (key, media_type))

    def fresh(self, request: Hashable) -> tuple[bytes, str] | None:
        """Return a request's answer and media type, None if no fresh answer is cached."""
        key, media_type = self._requests.get(request, (None, ""))
        answer = self._answers.get(key)
        return None if answer is None or self.is_expired(key) else (answer.body, media_type)

    def is_expired(self, key: Hashable) -> bool:
        """Return whether no fresh answer is cached."""
        answer = self._answers.get(key)
        return answer is None or answer.fresh_until <= self._elapsed()

    def clear(self) -> None:
        """Drop all answers, also those that are still being computed.  Safe in any thread."""
        self._answers, self._tasks = {}, {}


def _put_last(entries: dict[Hashable, _T], key: Hashable, value: _T) -> None:
    entries.pop(key, None)
    entries[key] = value
    if len(entries) > MAX_ANSWERS:
        del entries[next(iter(entries))]


class CacheMiddleware:
    """Serves fresh cached answers to clients with read scope; passes all other requests to the routes."""

    def __init__(self, app: ASGIApp, cache: ResponseCache, authenticator: Authenticator) -> None:
        self._app = app
        self._cache = cache
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI)."""
        app: ASGIApp = self._app
        if scope["type"] == "http" and scope["method"] == "GET":
            fresh = self._cache.fresh(request_key(scope))
            if fresh is not None and self._authenticator.may_read(Request(scope)):
                app = Response(fresh[0], media_type=fresh[1])
        await app(scope, receive, send)


def request_key(scope: Scope) -> Hashable:
    """Return what identifies a request's answer: the path and the query."""
    return scope["path"], scope["query_string"]
