"""``POST /api/cleanup``: starts a run, or a dry run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import IO, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import StreamingResponse

from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.cleanup.ballast import release_initial_ballast
from eemtcleanupd.config import Config
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.model import Trigger
from eemtcleanupd.report.run_document import RunDocument
from eemtcleanupd.web.api_run import ApiRun, Outcome, run_document
from eemtcleanupd.web.auth import Caller
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.context import ApiContext
from eemtcleanupd.web.problems import COMMON_ERRORS, AsciiJsonResponse, FieldProblem, error_responses, problem
from eemtcleanupd.web.schemas import CleanupAnswer, CleanupBody, RunAccepted

log = logging.getLogger(__name__)


def add_run_routes(router: APIRouter, context: ApiContext) -> None:
    """Add the route."""
    backend, cache = context.backend, context.cache
    dry_run_lock = asyncio.Lock()

    @router.post(
        "",
        response_model=CleanupAnswer,
        responses={
            202: {"model": RunAccepted, "description": "With `Prefer: respond-async`"},
            **COMMON_ERRORS,
            **error_responses(409),
        },
    )
    async def cleanup(
        request: Request,
        body: CleanupBody | None = None,
        prefer: str = Header(""),
        caller: Caller = Depends(context.may_clean),
    ) -> Response:
        """Start a run, or with `dry_run` a dry run, and answer when it has finished."""
        if request.query_params:
            # Otherwise a client that sends ?dry_run=true would start a real run.
            message = "Send run options in the JSON body, not in the query string."
            return problem(
                422, message, [FieldProblem(field=name, message=message) for name in request.query_params]
            )
        options = body or CleanupBody()
        if options.dry_run or backend.config.dry_run:
            config = backend.config.with_retention(*options.retention)
            async with dry_run_lock:
                return _answer(await asyncio.to_thread(dry_run, backend, config, caller.name, options.force))
        await asyncio.to_thread(_audit_run, context, caller, options)
        loop = asyncio.get_running_loop()
        started: asyncio.Future[str] = loop.create_future()
        finished: asyncio.Future[Outcome] = loop.create_future()

        def on_finished(outcome: Outcome) -> None:
            cache.clear()
            _set_result(loop, finished, outcome)

        def on_started(run_id: str) -> None:
            _set_result(loop, started, run_id)

        backend.run(ApiRun(caller.name, options, on_started, on_finished))
        if "respond-async" in prefer.lower():
            await asyncio.wait((started, finished), return_when=asyncio.FIRST_COMPLETED)
            if started.done():
                run_id = started.result()
                url = f"{request.url.path}/runs/{run_id}"
                return AsciiJsonResponse({"run_id": run_id, "url": url}, 202, headers={"Location": url})
        return _answer(await finished)


def _audit_run(context: ApiContext, caller: Caller, options: CleanupBody) -> None:
    # On a full disk, the audit log needs the ballast's space.
    if warning := release_initial_ballast(context.backend.config):
        log.warning("%s", warning)
    context.audit(caller, "http_cleanup", body=options.model_dump())


def dry_run(backend: Backend, config: Config, user: str, force: bool) -> IO[str] | CleanupError:
    """Return the document of a dry run."""
    with closing(RunDocument()) as document:
        clean(
            config,
            RunRequest(user=user, trigger=Trigger.API, dry_run=True, force=force),
            emit=document,
            hooks=backend.plugins,
        )
        return run_document(document)


def plan_document(backend: Backend) -> bytes:
    """Return the next run's dry run as JSON; it overrides the breakers because it changes nothing."""
    outcome = dry_run(backend, backend.config, "plan", force=True)
    if isinstance(outcome, CleanupError):
        raise outcome
    with outcome:
        return outcome.read().encode("ascii")


def _answer(outcome: Outcome) -> Response:
    if isinstance(outcome, CleanupError):
        raise outcome
    if outcome is None:
        return problem(503, "The run failed unexpectedly. See the log. The next run continues its work.")

    def chunks() -> Iterator[str | bytes]:
        with outcome:
            while chunk := outcome.read(1 << 16):
                yield chunk

    return StreamingResponse(chunks(), media_type="application/json")


def _set_result(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], value: object) -> None:
    """Set the result of a future of the loop from any thread, unless the request was cancelled."""

    def set_result() -> None:
        if not future.done():
            future.set_result(value)

    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(set_result)
