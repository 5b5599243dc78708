"""Routes that start a run, a dry run or a purge of the trash, and stop a run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from io import IOBase
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import StreamingResponse

from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.config import Config
from eemtcleanupd.deletion.ballast import release_initial_ballast
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Trigger
from eemtcleanupd.report.run_document import RunDocument
from eemtcleanupd.web.api_run import ApiRun, Outcome, run_document
from eemtcleanupd.web.auth import Caller
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.context import ApiContext
from eemtcleanupd.web.problems import COMMON_ERRORS, AsciiJsonResponse, FieldProblem, error_responses, problem
from eemtcleanupd.web.schemas import CleanupAnswer, CleanupBody, PurgeBody, RunAccepted, StopBody

log = logging.getLogger(__name__)


def add_run_routes(router: APIRouter, context: ApiContext) -> None:
    """Add the routes."""
    backend = context.backend
    dry_run_lock = asyncio.Lock()
    responses: dict[int | str, dict[str, Any]] = {
        202: {"model": RunAccepted, "description": "With `Prefer: respond-async`"},
        **COMMON_ERRORS,
        **error_responses(409),
    }

    @router.post("", response_model=CleanupAnswer, responses=responses)
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
        return await _answer_run(request, prefer, await start_run(context, caller, options))

    @router.post("/trash/purge", response_model=CleanupAnswer, responses=responses)
    async def purge(
        request: Request,
        body: PurgeBody | None = None,
        prefer: str = Header(""),
        caller: Caller = Depends(context.may_clean),
    ) -> Response:
        """Delete the contents of the trash now, and answer when that is done. Held jobs stay there."""
        return await _answer_run(request, prefer, await start_run(context, caller, body or PurgeBody()))

    @router.post(
        "/stop",
        status_code=202,
        responses={
            202: {"description": "The run stops as soon as it can, in order."},
            **COMMON_ERRORS,
            **error_responses(409),
        },
    )
    async def stop(body: StopBody | None = None, caller: Caller = Depends(context.may_clean)) -> Response:
        """Stop the run in progress. The next run continues its work."""
        await stop_run(context, caller, None if body is None else body.run_id)
        return AsciiJsonResponse({"stopping": True}, 202)


@dataclass(frozen=True, slots=True)
class RequestedRun:
    """A run that was requested: its id once it has started, and its outcome once it has finished."""

    started: asyncio.Future[str]
    finished: asyncio.Future[Outcome]

    async def wait_for_start(self, seconds: float | None = None) -> str | None:
        """Return the id of the run; None if it was refused (see its outcome), or waits for another run."""
        futures = (self.started, self.finished)
        await asyncio.wait(futures, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return self.started.result() if self.started.done() else None

    def discard_outcome(self) -> None:
        """Close the document of the run when it has finished, because nobody reads it."""
        self.finished.add_done_callback(lambda run: None if run.cancelled() else _close(run.result()))


async def start_run(context: ApiContext, caller: Caller, options: CleanupBody | PurgeBody) -> RequestedRun:
    """Write the audit log, and request a run.

    Raises:
        AuditError: the entry cannot be written.
        CleanupError: the configuration allows dry runs only.
    """
    if context.backend.config.dry_run:
        raise CleanupError("The configuration has dry_run: true, so nothing is deleted.")
    await asyncio.to_thread(_audit_run, context, caller, options)
    loop = asyncio.get_running_loop()
    run = RequestedRun(loop.create_future(), loop.create_future())

    def on_finished(outcome: Outcome) -> None:
        context.cache.clear()
        _set_result(loop, run.finished, outcome)

    def on_started(run_id: str) -> None:
        context.cache.clear()
        _set_result(loop, run.started, run_id)

    context.backend.run(ApiRun(caller.name, options, on_started, on_finished))
    return run


async def stop_run(context: ApiContext, caller: Caller, run_id: str | None) -> None:
    """Write the audit log, and ask the backend to stop its run, or only the run ``run_id``.

    Raises:
        CleanupError: the backend has no run, or another; one of a command is stopped where it was started.
    """
    active = await context.backend.progress()
    if active is None:
        raise CleanupError("There is no run to stop. Stop a run of a command where it was started.")
    if run_id not in {None, active.run_id}:
        raise CleanupError(
            f"Run {printable(str(run_id))} is not in progress, so nothing was stopped. "
            f"Run {active.run_id or '(starting)'} is."
        )
    await asyncio.to_thread(context.audit, caller, "http_stop", run_id=active.run_id)
    context.backend.stop_run(caller.name, run_id)
    context.cache.clear()


async def _answer_run(request: Request, prefer: str, run: RequestedRun) -> Response:
    if "respond-async" in prefer.lower() and (run_id := await run.wait_for_start()) is not None:
        run.discard_outcome()
        url = f"{request.url.path.removesuffix('/trash/purge')}/runs/{run_id}"
        return AsciiJsonResponse({"run_id": run_id, "url": url}, 202, headers={"Location": url})
    return _answer(await run.finished)


def _audit_run(context: ApiContext, caller: Caller, options: CleanupBody | PurgeBody) -> None:
    # On a full disk, the audit log needs the ballast's space.
    if warning := release_initial_ballast(context.backend.config):
        log.warning("%s", warning)
    action = "http_purge" if isinstance(options, PurgeBody) else "http_cleanup"
    context.audit(caller, action, body=options.model_dump())


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
    """Set the result of a future of the loop from any thread; close it if the request was cancelled."""

    def set_result() -> None:
        if future.done():
            _close(value)
        else:
            future.set_result(value)

    try:
        loop.call_soon_threadsafe(set_result)
    except RuntimeError:  # the loop is closed
        _close(value)


def _close(outcome: object) -> None:
    if isinstance(outcome, IOBase | SpooledTemporaryFile):
        outcome.close()
