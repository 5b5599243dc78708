"""Who may do what over HTTP: tokens for programs, sessions for browsers; refusals are written down."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Final, NoReturn

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from eemtcleanupd.clock import Clock, monotonic_seconds, system_clock
from eemtcleanupd.errors import AuditError, ConfigError
from eemtcleanupd.events import AuditEntry
from eemtcleanupd.formatting import printable
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.problems import http_error
from eemtcleanupd.web.tokens import Scope, Token, TokenFile, find

log = logging.getLogger(__name__)

_SESSION = timedelta(hours=12)
_SESSIONS = 1000
_FAILURES = 60
_WINDOW_SECONDS = 60.0
_ADDRESSES = 10_000
TOO_MANY: Final = "too many refused requests; wait a minute"
bearer = HTTPBearer(auto_error=False, description="A token of `eemtcleanupd token add`.")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, by name, what they may do, and from where."""

    name: str
    scope: Scope
    address: str | None
    is_still_valid: Callable[[], bool] = field(default=lambda: True, repr=False, compare=False)
    """Whether the token is still good, for answers that go on for long."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    status: int
    detail: str
    user: str = "unknown"
    headers: dict[str, str] = field(default_factory=dict)


class Authenticator:
    """Lets requests through or refuses them.

    Args:
        engine: has the configuration with the file of the tokens, and writes refusals down.
        open_to_all: without tokens everybody may (a Unix socket, whose mode says who gets there).
        clock: where the time comes from.
    """

    def __init__(self, engine: Backend, *, open_to_all: bool = False, clock: Clock = system_clock) -> None:
        self._engine = engine
        self._open_to_all = open_to_all
        self._clock = clock
        self._lock = threading.Lock()
        self._files: dict[str, TokenFile] = {}
        self._sessions: OrderedDict[str, tuple[str, datetime]] = OrderedDict()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def requires(self, scope: Scope) -> Callable[..., Awaitable[Caller]]:
        """Return a dependency that gives who asks, or refuses.

        Raises (the dependency):
            HTTPException: 401 without a token, 403 with one that is wrong, expired or may not, 429 after
                many of these.
        """

        # Without a thread: only what is refused, which is bounded, waits for a disk.
        async def check(
            request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
        ) -> Caller:
            return self.check(request, scope, None if given is None else given.credentials)

        return check

    def check(self, request: Request, scope: Scope, secret: str | None) -> Caller:
        """Return who asks, or refuse; see :meth:`requires`."""
        found = self._authenticate(request, scope, secret)
        if isinstance(found, _Refusal):
            self._refuse(request, found)
        return found

    def may_read(self, request: Request) -> bool:
        """Tell whether who asks may read; who may not has yet to be refused by :meth:`check`."""
        with suppress(HTTPException):
            return isinstance(self._authenticate(request, "read", bearer_token(request)), Caller)
        return False

    def _authenticate(self, request: Request, scope: Scope, secret: str | None) -> Caller | _Refusal:
        address = client_address(request)
        tokens = self._tokens()
        if tokens is None and self._open_to_all:
            return Caller("unix socket", "clean", address)
        token: Token | None = None
        if secret is not None:
            token = find(tokens or (), secret)
        elif (cookie := request.cookies.get(session_cookie_name(request))) is not None:
            token = self._of_session(cookie, tokens or ())
            changes = request.method not in {"GET", "HEAD"}
            if token is not None and changes and "origin" not in request.headers:
                # A browser names the page that it comes from, and the gate refuses any but our own.
                return _Refusal(403, "this did not come from our own page")
        if token is None and secret is None:
            return _Refusal(401, "a token is needed", headers={"WWW_Authenticate": "Bearer"})
        if token is None:
            return _Refusal(403, "this token is not known")
        if token.is_expired(self._clock()):
            return _Refusal(403, f"the token {token.name} has expired", user=token.name)
        if scope == "clean" and token.scope != "clean":
            return _Refusal(403, f"the token {token.name} may only read", user=token.name)
        return Caller(token.name, token.scope, address, partial(self._is_good, token))

    def _is_good(self, token: Token) -> bool:
        return token in (self._tokens() or ()) and not token.is_expired(self._clock())

    def _tokens(self) -> tuple[Token, ...] | None:
        """Return the tokens, None where there is no file of them.

        Raises:
            HTTPException: 503; who asks has not shown who they are, so only the log says why.
        """
        path = self._engine.config.api.tokens_file
        if path is None:
            return None
        try:
            return self._files.setdefault(str(path), TokenFile(path)).all()
        except ConfigError as error:
            log.error("Nobody gets in over HTTP: %s", error)  # noqa: TRY400  (the words say it all)
            raise http_error(
                503, "the file of the tokens cannot be used; the daemon's log says why"
            ) from error

    def _refuse(self, request: Request, why: _Refusal) -> NoReturn:
        """Refuse and write it down."""
        if self.record_refusal(
            request.method, request.url.path, why.detail, user=why.user, address=client_address(request)
        ):
            raise http_error(429, TOO_MANY, Retry_After="60")
        raise http_error(why.status, why.detail, **why.headers)

    def record_refusal(
        self, method: str, path: str, reason: str, *, user: str = "unknown", address: str | None
    ) -> bool:
        """Write down that something is refused; who fails often is to wait, which is written down once.

        Returns:
            Whether this address is to wait.
        """
        over = self._is_over_limit(address or "")
        if over != "still":
            details = {"request": printable(f"{method} {path}")[:200], "reason": printable(reason)}
            entry = AuditEntry(self._clock(), user, "http_refused", details, address)
            try:
                self._engine.plugins.audit([entry])
            except AuditError:  # it is refused all the same
                log.exception("A refusal could not be written down")
        return over != "no"

    def _is_over_limit(self, address: str) -> str:
        now = monotonic_seconds()
        with self._lock:
            times = self._failures.setdefault(address, deque())
            self._failures.move_to_end(address)
            while len(self._failures) > _ADDRESSES:
                self._failures.popitem(last=False)
            while times and now - times[0] > _WINDOW_SECONDS:
                times.popleft()
            if len(times) > _FAILURES:
                return "still"
            times.append(now)
            return "now" if len(times) > _FAILURES else "no"

    # -- sessions of browsers ----------------------------------------------------------------------

    def log_in(self, secret: str, request: Request) -> str:
        """Begin a session for a browser; returns its cookie.

        Raises:
            HTTPException: 403, the token is not known or has expired.
        """
        token = find(self._tokens() or (), secret)
        if token is None or token.is_expired(self._clock()):
            self._refuse(request, _Refusal(403, "this token is not known, or has expired"))
        session = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions[session] = (token.sha256, self._clock() + _SESSION)
            while len(self._sessions) > _SESSIONS:
                self._sessions.popitem(last=False)
        return session

    def log_out(self, session: str) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(session, None)

    def _of_session(self, session: str, tokens: tuple[Token, ...]) -> Token | None:
        """Return the token of a session; one that was revoked meanwhile ends it."""
        with self._lock:
            digest, until = self._sessions.get(session, ("", self._clock()))
        if until <= self._clock():
            return None
        return next((token for token in tokens if token.sha256 == digest), None)


def session_cookie_name(request: Request) -> str:
    """Return the name of a session's cookie; over TLS one that only we can set (RFC 6265bis)."""
    return "__Host-eemtcleanupd" if request.url.scheme == "https" else "eemtcleanupd"


def bearer_token(request: Request) -> str | None:
    """Return the token that a request bears (RFC 6750), None without one."""
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret if kind.lower() == "bearer" else None


def client_address(request: Request) -> str | None:
    """Return where a request comes from, None over a Unix socket."""
    return None if request.client is None else request.client.host
