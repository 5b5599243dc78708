"""What all routes work with: an engine, what is kept, who may; and short questions to the ledger."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import Request, Response

from eemtcleanupd.clock import system_clock
from eemtcleanupd.config import Config
from eemtcleanupd.events import AuditEntry
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.web.auth import Caller
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.cache import SECONDS, ResponseCache
from eemtcleanupd.web.shortcut import cache_question

Authorize = Callable[..., Awaitable[Caller]]


@dataclass(frozen=True, slots=True)
class ApiContext:
    """What a route needs; ``may_read`` and ``may_clean`` are dependencies that give who asks, or refuse."""

    backend: Backend
    cache: ResponseCache
    may_read: Authorize
    may_clean: Authorize

    async def answer(
        self,
        request: Request,
        key: Hashable,
        make: Callable[[], bytes],
        seconds: float = SECONDS,
        media_type: str = "application/json",
    ) -> Response:
        """Give an answer that is kept; while it is good, who asks the same gets it by the shortcut."""
        made = await self.cache.get(key, make, seconds)
        self.cache.remember_key(cache_question(request.scope), key, media_type)
        return Response(made, media_type=media_type)

    def audit(self, caller: Caller, action: str, **details: object) -> None:
        """Write down what somebody is about to do.

        Raises:
            AuditError: it could not be written, so it must not be done.
        """
        entry = AuditEntry(system_clock(), caller.name, action, details, caller.address)
        self.backend.plugins.audit([entry])


@contextmanager
def open_ledger(config: Config, *, create: bool = False) -> Iterator[Ledger | None]:
    """Give the ledger for a short question, None before the first run."""
    database = StoreAddress.of(config).open()
    try:
        ledger = Ledger(database)
        if create:
            ledger.create_tables()
        yield ledger if ledger.is_current() else None
    finally:
        database.close()
