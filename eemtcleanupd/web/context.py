"""What all routes work with: an engine, what is kept, who may; and short questions to the ledger."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import Request, Response

from eemtcleanupd.clock import system_clock
from eemtcleanupd.config import Config
from eemtcleanupd.events import AuditEntry
from eemtcleanupd.store.address import Location
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.web.auth import Caller
from eemtcleanupd.web.backend import Engine
from eemtcleanupd.web.cache import SECONDS, Kept
from eemtcleanupd.web.shortcut import question

Authorize = Callable[..., Awaitable[Caller]]


@dataclass(frozen=True, slots=True)
class Site:
    """What a route needs; ``may_read`` and ``may_clean`` are dependencies that give who asks, or refuse."""

    engine: Engine
    kept: Kept
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
        made = await self.kept.get(key, make, seconds)
        self.kept.note(question(request.scope), key, media_type)
        return Response(made, media_type=media_type)

    def audit(self, caller: Caller, action: str, **details: object) -> None:
        """Write down what somebody is about to do.

        Raises:
            AuditError: it could not be written, so it must not be done.
        """
        entry = AuditEntry(system_clock(), caller.name, action, details, caller.address)
        self.engine.plugins.audit([entry])


@contextmanager
def opened(config: Config, *, create: bool = False) -> Iterator[Ledger | None]:
    """Give the ledger for a short question, None before the first run."""
    database = Location.of(config).open()
    try:
        ledger = Ledger(database)
        if create:
            ledger.create_tables()
        yield ledger if ledger.is_current() else None
    finally:
        database.close()
