"""Routes that read: plan, status, runs, progress events, holds and trash."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Hashable
from dataclasses import asdict
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from eemtcleanupd.cleanup.session import held_jobs
from eemtcleanupd.clock import system_clock
from eemtcleanupd.daemon.status_document import run_document
from eemtcleanupd.formatting import human_size, printable
from eemtcleanupd.report.job_state import job_state
from eemtcleanupd.store.intents import Intent
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.web.auth import Caller
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.cache import PLAN_FRESH_SECONDS
from eemtcleanupd.web.context import ApiContext, open_ledger
from eemtcleanupd.web.problems import COMMON_ERRORS, AsciiJsonResponse, error_responses, http_error
from eemtcleanupd.web.routes.runs import plan_document
from eemtcleanupd.web.schemas import CleanupAnswer, JobAnswer, Text
from eemtcleanupd.web.what_if_panel import CACHE_KEY, FRESH_SECONDS, comparison_document

_POLL_SECONDS = 0.5
_POLLS_PER_KEEPALIVE = 30


def add_query_routes(router: APIRouter, context: ApiContext) -> None:
    """Add the routes."""
    backend = context.backend
    may_read = [Depends(context.may_read)]

    async def answer(request: Request, key: Hashable, query: Callable[[Ledger | None], object]) -> Response:
        def compute() -> bytes:
            with open_ledger(backend.config) as ledger:
                return json.dumps(query(ledger), default=datetime.isoformat).encode("ascii")

        return await context.answer(request, key, compute)

    @router.get("/plan", dependencies=may_read, response_model=CleanupAnswer, responses=COMMON_ERRORS)
    async def plan(request: Request) -> Response:
        """Show what the next run would clean."""
        return await context.answer(request, "plan", lambda: plan_document(backend), PLAN_FRESH_SECONDS)

    @router.get("/status", dependencies=may_read, responses=COMMON_ERRORS)
    async def status(request: Request) -> Response:
        """Show the status of the daemon and the job store."""
        return await context.answer(request, "status", lambda: json.dumps(backend.overview()).encode("ascii"))

    @router.get("/what-if", dependencies=may_read, responses=COMMON_ERRORS)
    async def what_if(request: Request) -> Response:
        """Compare retention periods: what each keeps and frees, and when the disk is full."""
        return await context.answer(request, CACHE_KEY, lambda: comparison_document(backend), FRESH_SECONDS)

    @router.get("/runs", dependencies=may_read, responses=COMMON_ERRORS)
    async def runs(request: Request, limit: int = Query(20, ge=1, le=500)) -> Response:
        """List runs, the newest first."""
        return await answer(
            request,
            ("runs", limit),
            lambda ledger: {"runs": [run_document(run) for run in ledger.runs(limit)] if ledger else []},
        )

    @router.get("/runs/{run_id}", dependencies=may_read, responses={**COMMON_ERRORS, **error_responses(404)})
    def run(
        run_id: Text,
        limit: int = Query(1000, ge=1, le=100_000, description="Maximum number of details."),
    ) -> Response:
        """Show a run and what it did with each job."""
        with open_ledger(backend.config) as ledger:
            return AsciiJsonResponse(run_with_details(ledger, run_id, limit))

    @router.get(
        "/jobs/{job_id}",
        dependencies=may_read,
        response_model=JobAnswer,
        responses={**COMMON_ERRORS, **error_responses(404)},
    )
    def job(job_id: Text) -> Response:
        """Show where a job's data is: kept until when and why, cleaned, in the trash, or held."""
        return AsciiJsonResponse(job_document(backend, job_id))

    @router.get(
        "/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}, **COMMON_ERRORS},
    )
    async def events(
        request: Request,
        once: bool = Query(False, description="End after the first event."),
        caller: Caller = Depends(context.may_read),
    ) -> Response:
        """Stream server-sent events: `progress` during a run, and `idle` without one."""
        return context.guard.stream(request, caller, progress_events(backend, request, caller, once=once))

    @router.get("/holds", dependencies=may_read, responses=COMMON_ERRORS)
    async def holds(request: Request) -> Response:
        """List the holds."""
        return await answer(
            request,
            "holds",
            lambda ledger: {
                "holds": [
                    {**asdict(hold), "has_row": has_row}
                    for hold, has_row in (held_jobs(backend.config, ledger) if ledger else [])
                ]
            },
        )

    @router.get("/trash", dependencies=may_read, responses=COMMON_ERRORS)
    async def trash(
        request: Request,
        limit: int = Query(
            1000, ge=1, le=100_000, description="Maximum number of jobs, the next to be deleted first."
        ),
    ) -> Response:
        """List the jobs in the trash. `more` is true if there are more than `limit`."""

        def query(ledger: Ledger | None) -> object:
            intents = ledger.trashed(limit=limit + 1) if ledger else []
            return {
                "trash": [_trash_document(intent) for intent in intents[:limit]],
                "more": len(intents) > limit,
            }

        return await answer(request, ("trash", limit), query)


async def progress_events(
    backend: Backend, request: Request, caller: Caller, *, once: bool
) -> AsyncIterator[str]:
    """Yield each change of the progress as a server-sent event.

    The stream ends when the client disconnects, its token becomes invalid, or the backend stops.
    """
    last: object = ()
    silent_polls = 0
    while not backend.is_stopping and caller.is_still_valid() and not await request.is_disconnected():
        try:
            progress = await backend.progress()
        except TimeoutError:  # a stopped daemon can be continued
            yield ": the daemon does not answer\n\n"
            continue
        silent_polls += 1
        if progress != last:
            kind = "idle" if progress is None else "progress"
            data = json.dumps(progress and asdict(progress), default=datetime.isoformat)
            yield f"event: {kind}\ndata: {data}\n\n"
            last, silent_polls = progress, 0
            if once:
                return
        elif silent_polls == _POLLS_PER_KEEPALIVE:
            yield ": keep-alive\n\n"  # proxies keep the connection open, and a closed one is noticed
            silent_polls = 0
        await asyncio.sleep(_POLL_SECONDS)


def run_with_details(ledger: Ledger | None, run_id: str, limit: int) -> dict[str, Any]:
    """Return a run with what it did.

    Raises:
        HTTPException: 404, there is no such run.
    """
    run = next((run for run in ledger.runs(2, run_id) if run.id == run_id), None) if ledger else None
    if run is None or ledger is None:
        raise http_error(404, f"There is no run {printable(run_id)}.")
    details = [entry._asdict() for entry in itertools.islice(ledger.log_entries(run_id), limit)]
    return {**run_document(run), "details": details}


def job_document(backend: Backend, job_id: str) -> dict[str, Any]:
    """Return the state of a job.

    Raises:
        HTTPException: 404, there is no such job.
    """
    state = job_state(backend.config, job_id, backend.plugins, system_clock())
    if state is None:
        raise http_error(404, f"There is no job {printable(job_id)}.")
    document = asdict(state)
    # Not looked for, and only as far as `why` says.
    for name in ("shared", "would_clean", "is_warned_of", "acknowledgement"):
        del document[name]
    size_bytes = document.pop("size_bytes")
    document["size"] = None
    if size_bytes is not None:
        document["size"] = {"bytes": size_bytes, "human_readable": human_size(size_bytes, fixed=True)}
    return document


def _trash_document(intent: Intent) -> dict[str, Any]:
    return {
        "job_id": intent.job_id or None,
        "status": intent.status,
        "bytes": intent.size_bytes,
        "purge_after": intent.purge_after,
        "artifacts": [artifact.label for artifact, _ in intent.items],
    }
