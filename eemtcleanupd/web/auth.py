"""Authentication and authorization of HTTP clients: bearer tokens and browser sessions."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Final

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from eemtcleanupd.clock import Clock, monotonic_seconds, system_clock
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.problems import http_error
from eemtcleanupd.web.refusals import UNKNOWN_USER, Refusals, client_address
from eemtcleanupd.web.tokens import Scope, Token, TokenFile, find_token

log = logging.getLogger(__name__)

SESSION_LIFETIME: Final = timedelta(hours=12)
_MAX_SESSIONS = 1000
_MAX_SESSIONS_PER_TOKEN = 50
bearer = HTTPBearer(auto_error=False, description="A token of `eemtcleanupd token add`.")


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated client: its name, scope and address."""

    name: str
    scope: Scope
    address: str | None
    is_still_valid: Callable[[], bool] = field(default=lambda: True, repr=False, compare=False)
    """Returns whether the token is still valid, for answers that take long."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    status: int
    detail: str
    user: str = UNKNOWN_USER
    headers: dict[str, str] = field(default_factory=dict)


class Authenticator:
    """Decides which requests are allowed.

    With ``open_to_all`` and without a token file every client has all rights: on a Unix socket, which its
    mode protects.
    """

    def __init__(self, backend: Backend, *, open_to_all: bool = False, clock: Clock = system_clock) -> None:
        self._backend = backend
        self._open_to_all = open_to_all
        self._clock = clock
        self._lock = threading.Lock()
        self._files: dict[str, TokenFile] = {}
        self._sessions: OrderedDict[str, tuple[str, datetime]] = OrderedDict()
        self._next_token_log = 0.0
        self.refusals = Refusals(backend, clock)

    def requires(self, scope: Scope) -> Callable[..., Awaitable[Caller]]:
        """Return a dependency that returns the caller or refuses the request.

        Raises (the dependency):
            HTTPException: 401 without a token, 403 if it is invalid, expired or lacks the scope, 429 after
                many refused requests.
        """

        # Needs no thread: only refusals, whose rate is limited, write to the disk.
        async def check(
            request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
        ) -> Caller:
            return self.check(request, scope, None if given is None else given.credentials)

        return check

    def check(self, request: Request, scope: Scope, secret: str | None) -> Caller:
        """Return the caller, or refuse the request as :meth:`requires` does."""
        result = self._authenticate(request, scope, secret)
        if isinstance(result, _Refusal):
            raise self._refuse(request, result)
        return result

    def may_read(self, request: Request) -> bool:
        """Return whether the caller has read scope.  If not, :meth:`check` still has to refuse it."""
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
            token = find_token(tokens or (), secret)
        elif (cookie := request.cookies.get(session_cookie_name(request))) is not None:
            token = self._session_token(cookie, tokens or ())
            changes = request.method not in {"GET", "HEAD"}
            if token is not None and changes and "origin" not in request.headers:
                # Browsers send the page's origin, and the middleware refuses all but the dashboard's own.
                return _Refusal(403, "The request has no Origin header, so it is not from the dashboard.")
        if token is None and secret is None:
            return _Refusal(401, "A token is required.", headers={"WWW_Authenticate": "Bearer"})
        if token is None:
            return _Refusal(403, "The token is unknown.")
        if token.is_expired(self._clock()):
            return _Refusal(403, f"The token {token.name} has expired.", user=token.name)
        if scope == "clean" and token.scope != "clean":
            return _Refusal(403, f"The token {token.name} has only read scope.", user=token.name)
        return Caller(token.name, token.scope, address, partial(self._is_still_valid, token))

    def _is_still_valid(self, token: Token) -> bool:
        return token in (self._tokens() or ()) and not token.is_expired(self._clock())

    def _tokens(self) -> tuple[Token, ...] | None:
        """Return the tokens, None if no token file is configured.

        Raises:
            HTTPException: 503. The client is unknown, so only the log has the reason.
        """
        path = self._backend.config.api.tokens_file
        if path is None:
            return None
        try:
            return self._files.setdefault(str(path), TokenFile(path)).all()
        except ConfigError as error:
            if monotonic_seconds() >= self._next_token_log:  # requests must not fill the log
                self._next_token_log = monotonic_seconds() + 60
                log.error("Rejecting all HTTP requests: %s", error)  # noqa: TRY400  (no traceback needed)
            raise http_error(503, "The token file is unusable. See the daemon's log.") from error

    def _refuse(self, request: Request, refusal: _Refusal) -> HTTPException:
        error = http_error(refusal.status, refusal.detail, **refusal.headers)
        return self.refusals.refuse(request, error, user=refusal.user)

    # -- browser sessions --------------------------------------------------------------------------

    def log_in(self, secret: str, request: Request) -> str:
        """Start a session for a browser and return its cookie.

        Raises:
            HTTPException: 403, the token is unknown or has expired.
        """
        token = find_token(self._tokens() or (), secret)
        if token is None or token.is_expired(self._clock()):
            raise self._refuse(request, _Refusal(403, "The token is unknown or has expired."))
        session = secrets.token_urlsafe(32)
        with self._lock:
            own = [key for key, (digest, _) in self._sessions.items() if digest == token.sha256]
            if len(own) >= _MAX_SESSIONS_PER_TOKEN:
                del self._sessions[own[0]]  # its own oldest: one token must not end the sessions of others
            self._sessions[session] = (token.sha256, self._clock() + SESSION_LIFETIME)
            while len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return session

    def log_out(self, session: str) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(session, None)

    def _session_token(self, session: str, tokens: tuple[Token, ...]) -> Token | None:
        """Return a session's token, None if the session has expired or the token was revoked."""
        with self._lock:
            digest, until = self._sessions.get(session, ("", self._clock()))
        if until <= self._clock():
            return None
        return next((token for token in tokens if token.sha256 == digest), None)


def session_cookie_name(request: Request) -> str:
    """Return the name of the session cookie; over TLS one that only this host can set (RFC 6265bis)."""
    return "__Host-eemtcleanupd" if request.url.scheme == "https" else "eemtcleanupd"


def bearer_token(request: Request) -> str | None:
    """Return the bearer token of a request (RFC 6750), None if there is none."""
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret if kind.lower() == "bearer" else None
