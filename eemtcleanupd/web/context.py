"""What all routes share: the backend, the response cache, the authorization, and access to the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from fastapi import Request, Response

from eemtcleanupd.clock import system_clock
from eemtcleanupd.config import Config
from eemtcleanupd.events import AuditEntry
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.web.auth import Caller
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.cache import FRESH_SECONDS, ResponseCache, request_key
from eemtcleanupd.web.guard import Authorize, RouteGuard
from eemtcleanupd.web.refusals import Refusals


@dataclass(frozen=True, slots=True)
class ApiContext:
    """What a route needs; the dependencies ``may_read`` and ``may_clean`` return the caller or refuse it."""

    backend: Backend
    cache: ResponseCache
    guard: RouteGuard
    may_read: Callable[..., AsyncIterator[Caller]]
    may_clean: Callable[..., AsyncIterator[Caller]]

    @classmethod
    def create(
        cls, backend: Backend, cache: ResponseCache, refusals: Refusals, read: Authorize, clean: Authorize
    ) -> ApiContext:
        """Return the context of routes that are guarded and whose callers ``read`` and ``clean`` return."""
        guard = RouteGuard(refusals, lambda: backend.config.api)
        return cls(backend, cache, guard, guard.limits(read), guard.limits(clean))

    async def answer(
        self,
        request: Request,
        key: Hashable,
        compute: Callable[[], bytes],
        seconds: float = FRESH_SECONDS,
        media_type: str = "application/json",
    ) -> Response:
        """Return an answer through the cache, so that the next equal request need not reach the route."""
        body = await self.cache.get(key, compute, seconds)
        self.cache.remember_key(request_key(request.scope), key, media_type)
        return Response(body, media_type=media_type)

    def audit(self, caller: Caller, action: str, **details: object) -> None:
        """Write an action into the audit log before it is done.

        Raises:
            AuditError: the entry cannot be written, so the action must not be done.
        """
        entry = AuditEntry(system_clock(), caller.name, action, details, caller.address)
        self.backend.plugins.audit([entry])


@contextmanager
def open_ledger(config: Config, *, create: bool = False) -> Iterator[Ledger | None]:
    """Open the ledger for a short query; yield None if it does not exist and ``create`` is false."""
    with closing(StoreAddress.of(config).open()) as database:
        ledger = Ledger(database)
        if create:
            ledger.create_tables()
        yield ledger if ledger.exists() else None
