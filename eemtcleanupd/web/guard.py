"""What protects every route, in the daemon and in another application that includes the router.

The routes are made with the guard's route class, so none exists without its checks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

import anyio.to_thread
from fastapi import Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from eemtcleanupd.formatting import printable
from eemtcleanupd.web.problems import http_error, problem_from
from eemtcleanupd.web.refusals import Refusal, Refusals

if TYPE_CHECKING:
    from eemtcleanupd.config.schema import ApiConfig
    from eemtcleanupd.web.auth import Caller

MAX_BODY_BYTES: Final = 64 * 1024
_FORM: Final = "application/x-www-form-urlencoded"
_REFUSED = frozenset({401, 403, 413})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# At most a quarter of the connections is for streams, and a quarter always stays free for new requests.
MAX_STREAMS: Final = 64
MAX_STREAMS_PER_CALLER: Final = 16
MAX_REQUESTS: Final = 192
MAX_REQUESTS_PER_CALLER: Final = 32

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Authorize = Callable[..., Awaitable["Caller"]]


class Places:
    """Limits what is open at the same time: in all, and for one caller.  Only for the event loop's thread."""

    def __init__(self, total: int, per_caller: int) -> None:
        self._total = total
        self._per_caller = per_caller
        self._open: Counter[str] = Counter()

    @contextmanager
    def hold(self, caller: str) -> Iterator[bool]:
        """Hold a place during the context; yield False if there is none."""
        is_held = self._open[caller] < self._per_caller and self._open.total() < self._total
        self._open[caller] += is_held
        try:
            yield is_held
        finally:
            self._open[caller] -= is_held
            if not self._open[caller]:
                del self._open[caller]


class RouteGuard:
    """Checks of address, origin, body and number of requests, with one record of refusals.

    ``settings`` returns the ``api`` block in force.
    """

    def __init__(self, refusals: Refusals, settings: Callable[[], ApiConfig]) -> None:
        self.refusals = refusals
        self._settings = settings
        self._requests = Places(MAX_REQUESTS, MAX_REQUESTS_PER_CALLER)
        self._streams = Places(MAX_STREAMS, MAX_STREAMS_PER_CALLER)

    def route_class(self, *, accepts_forms: bool = False) -> type[APIRoute]:
        """Return the class of all routes: with the checks, and with errors as problem details."""
        guard = self

        class GuardedRoute(APIRoute):
            def get_route_handler(self) -> Handler:
                handle = super().get_route_handler()

                async def handle_guarded(request: Request) -> Response:
                    return await guard.handle(request, handle, accepts_forms=accepts_forms)

                return handle_guarded

        return GuardedRoute

    async def handle(self, request: Request, handle: Handler, *, accepts_forms: bool = False) -> Response:
        """Return the answer of ``handle``, a refusal, or another error as problem details."""
        try:
            _check_address(request.scope)
            if request.method not in _SAFE_METHODS:
                self._check(request.headers, accepts_forms=accepts_forms)
            return await handle(Request(request.scope, _limited(request.receive)))
        except Refusal as error:
            return problem_from(error)
        except HTTPException as error:
            if error.status_code not in _REFUSED:
                return problem_from(error)
            # From the checks, or from a dependency of the application that includes the routes.
            refuse = partial(self.refusals.refuse, request, error)
            return problem_from(await anyio.to_thread.run_sync(refuse))
        except Exception as error:
            return problem_from(error)

    def _check(self, headers: Headers, *, accepts_forms: bool) -> None:
        """Refuse what a page of another site can send with the user's cookies, and bodies that are too large.

        Raises:
            HTTPException: 403 or 413.
            RequestValidationError: the body is a form, and the route takes JSON.
        """
        if _is_cross_site(headers, self._settings().host_names):
            origin = headers.get("origin", headers.get("sec-fetch-site", ""))
            raise http_error(403, f"A page of another site sent this request: {origin[:100]}.")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or len(length) > 9 or int(length) > MAX_BODY_BYTES:
            raise _too_large()
        media_type = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        # The parser of multipart logs each mistake: a client without a token could fill the log.
        if media_type != "application/json" and not (accepts_forms and media_type == _FORM):
            # Without a preflight, another site's page can send forms and plain text only.
            kind = _FORM if accepts_forms else "application/json"
            message = f"The body must have Content-Type: {kind}."
            raise RequestValidationError([{"loc": ("body",), "msg": message, "type": "content_type"}])

    def limits(self, authorize: Authorize) -> Callable[..., AsyncIterator[Caller]]:
        """Return a dependency that does what ``authorize`` does, and refuses a caller's excess requests."""

        async def limited(request: Request, caller: Any = Depends(authorize)) -> AsyncIterator[Caller]:
            with self.place(request, caller):
                yield caller

        return limited

    @contextmanager
    def place(self, request: Request, caller: Caller) -> Iterator[None]:
        """Hold one of the caller's places for requests.

        Raises:
            HTTPException: 429, none is left.
        """
        with self._requests.hold(caller.name) as is_held:
            if not is_held:
                raise self._excess(request, caller, "requests")
            yield

    def stream(self, request: Request, caller: Caller, events: AsyncIterator[str]) -> Response:
        """Return server-sent events, which hold one of the caller's places for streams, or the refusal."""
        return _EventStream(
            events, self._streams.hold(caller.name), lambda: self._excess(request, caller, "event streams")
        )

    def _excess(self, request: Request, caller: Caller, what: str) -> Refusal:
        detail = f"Too many {what} are open at the same time. Close some, or try again later."
        return self.refusals.refuse(request, http_error(429, detail, Retry_After="5"), user=caller.name)


class _EventStream(StreamingResponse):
    def __init__(
        self, events: AsyncIterator[str], place: AbstractContextManager[bool], excess: Callable[[], Refusal]
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._place = place
        self._excess = excess

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events.  The place is held here, because a client can leave before the first event."""
        with self._place as is_held:
            answer = super().__call__ if is_held else problem_from(self._excess())
            await answer(scope, receive, send)


def _check_address(scope: Scope) -> None:
    """Refuse text that not every database can store, and that would be another text when it is decoded.

    Raises:
        RequestValidationError: names the parameter.
    """
    path = [("path", unquote_to_bytes(scope.get("raw_path") or b""))]
    # Latin-1 has a character for each byte.
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    for name, value in [*path, *((name, value.encode("latin-1")) for name, value in query)]:
        problem = "The value contains a NUL character." if b"\0" in value else None
        try:
            value.decode()
        except UnicodeDecodeError:
            problem = "The value is not UTF-8."
        if problem is not None:
            raise RequestValidationError(
                [{"loc": ("query", printable(name)), "msg": problem, "type": "text"}]
            )


def _limited(receive: Receive) -> Receive:
    received_bytes = 0

    async def receive_limited() -> Message:
        nonlocal received_bytes
        message = await receive()
        received_bytes += len(message.get("body", b""))
        if received_bytes > MAX_BODY_BYTES:
            raise _too_large()
        return message

    return receive_limited


def _too_large() -> HTTPException:
    return http_error(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")


def _is_cross_site(headers: Headers, host_names: Collection[str]) -> bool:
    """Return whether a browser sent the request for a page of another origin.

    Pages cannot set either header.  Browsers send ``Sec-Fetch-Site`` over HTTPS (Fetch Metadata).  It stays
    right behind a proxy that changes ``Host``.  A request without both headers is not from a browser.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site not in {"same-origin", "none"}
    if origin is None:
        return False
    scheme, _, name = origin.lower().partition("://")
    is_own = name == headers.get("host", "").lower() or name in host_names
    return scheme not in {"http", "https"} or not is_own
