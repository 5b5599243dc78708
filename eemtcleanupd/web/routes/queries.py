"""The routes below ``/api/cleanup`` that only look."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Hashable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from eemtcleanupd.daemon.status_document import run_document
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Hold
from eemtcleanupd.store.intents import Intent
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.web.auth import Caller
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.cache import PLAN_SECONDS
from eemtcleanupd.web.context import ApiContext, open_ledger
from eemtcleanupd.web.problems import REFUSED, AsciiJsonResponse, error_responses, http_error
from eemtcleanupd.web.routes.runs import planned
from eemtcleanupd.web.schemas import CleanupAnswer, Text

_POLL_SECONDS = 0.5
_POLLS_IN_SILENCE = 30


def add_query_routes(router: APIRouter, site: ApiContext) -> None:
    """Add the routes."""
    engine = site.backend
    may_read = [Depends(site.may_read)]

    async def answer(request: Request, key: Hashable, make: Callable[[Ledger | None], object]) -> Response:
        def work() -> bytes:
            with open_ledger(engine.config) as ledger:
                return json.dumps(make(ledger), default=str).encode("ascii")

        return await site.answer(request, key, work)

    @router.get("/plan", dependencies=may_read, response_model=CleanupAnswer, responses=REFUSED)
    async def plan(request: Request) -> Response:
        """Say what the next run would take."""
        return await site.answer(request, "plan", lambda: planned(engine), PLAN_SECONDS)

    @router.get("/status", dependencies=may_read, responses=REFUSED)
    async def status(request: Request) -> Response:
        """Say how the daemon and the job store are."""
        return await site.answer(request, "status", lambda: json.dumps(engine.overview()).encode("ascii"))

    @router.get("/runs", dependencies=may_read, responses=REFUSED)
    async def runs(request: Request, limit: Annotated[int, Query(ge=1, le=500)] = 20) -> Response:
        """List past runs, the newest first."""
        return await answer(
            request,
            ("runs", limit),
            lambda ledger: {"runs": [run_document(run) for run in ledger.runs(limit)] if ledger else []},
        )

    @router.get("/runs/{run_id}", dependencies=may_read, responses={**REFUSED, **error_responses(404)})
    def run(
        run_id: Text,
        limit: Annotated[int, Query(ge=1, le=100_000, description="How many details.")] = 1000,
    ) -> Response:
        """Show a run and what it did."""
        with open_ledger(engine.config) as ledger:
            return AsciiJsonResponse(run_with_details(ledger, run_id, limit))

    @router.get(
        "/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}, **REFUSED},
    )
    async def events(
        request: Request,
        once: Annotated[bool, Query(description="End after the first event.")] = False,
        caller: Caller = Depends(site.may_read),
    ) -> StreamingResponse:
        """Tell how a run goes on, as server-sent events: `progress`, and `idle` when none does."""
        return StreamingResponse(
            _progress(engine, request, caller, once=once),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    @router.get("/holds", dependencies=may_read, responses=REFUSED)
    async def holds(request: Request) -> Response:
        """List the jobs that must stay."""
        return await answer(
            request,
            "holds",
            lambda ledger: {"holds": [hold_document(each) for each in ledger.all_holds()] if ledger else []},
        )

    @router.get("/trash", dependencies=may_read, responses=REFUSED)
    async def trash(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100_000, description="How many, the first to go first.")] = 1000,
    ) -> Response:
        """List what has been cleaned and is not gone yet; `more` says that the list is cut."""

        def listed(ledger: Ledger | None) -> object:
            found = ledger.trashed(limit=limit + 1) if ledger else []
            return {"trash": [_trashed(each) for each in found[:limit]], "more": len(found) > limit}

        return await answer(request, ("trash", limit), listed)


async def _progress(engine: Backend, request: Request, caller: Caller, *, once: bool) -> AsyncIterator[str]:
    """Tell each change as a server-sent event until nobody listens, or who does may not any more."""
    last: object = ()
    silence = 0
    while not engine.is_ending and caller.is_still_valid() and not await request.is_disconnected():
        try:
            progress = await engine.progress()
        except TimeoutError:  # it may be stopped, and go on
            yield ": the daemon does not answer\n\n"
            continue
        silence += 1
        if progress != last:
            kind = "idle" if progress is None else "progress"
            yield f"event: {kind}\ndata: {json.dumps(progress)}\n\n"
            last, silence = progress, 0
            if once:
                return
        elif silence == _POLLS_IN_SILENCE:
            yield ": still here\n\n"  # so that no proxy thinks that we are gone, and we notice who is
            silence = 0
        await asyncio.sleep(_POLL_SECONDS)


def run_with_details(ledger: Ledger | None, run_id: str, limit: int) -> dict[str, Any]:
    """Return a run with what it did.

    Raises:
        HTTPException: 404, there is none.
    """
    found = [each for each in ledger.runs(2, run_id) if each.id == run_id] if ledger else []
    if not found or ledger is None:
        raise http_error(404, f"there is no run {printable(run_id)}")
    details = [
        {
            "job_id": entry.job_id,
            "status": entry.status,
            "action": entry.action,
            "bytes_freed": entry.bytes_freed,
            "message": entry.message,
        }
        for entry in itertools.islice(ledger.log_entries(run_id), limit)
    ]
    return {**run_document(found[0]), "details": details}


def hold_document(hold: Hold) -> dict[str, Any]:
    """Return a hold."""
    return {
        "job_id": hold.job_id,
        "reason": hold.reason,
        "owner": hold.owner,
        "until": None if hold.until is None else hold.until.isoformat(),
    }


def _trashed(intent: Intent) -> dict[str, Any]:
    return {
        "job_id": intent.job_id or None,
        "status": intent.status,
        "bytes": intent.size_bytes,
        "purge_after": None if intent.purge_after is None else intent.purge_after.isoformat(),
        "artifacts": [found.label for found, _ in intent.items],
    }
