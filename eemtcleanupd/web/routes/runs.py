"""``POST /api/cleanup``: a run, or what it would do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import IO, Annotated, Any

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
from eemtcleanupd.web.problems import REFUSED, AsciiJsonResponse, FieldProblem, error_responses, problem
from eemtcleanupd.web.schemas import CleanupAnswer, CleanupBody, RunAccepted

log = logging.getLogger(__name__)


def add_run_routes(router: APIRouter, site: ApiContext) -> None:
    """Add the route."""
    engine, kept = site.backend, site.cache
    one_at_a_time = asyncio.Lock()

    @router.post(
        "",
        response_model=CleanupAnswer,
        responses={
            202: {"model": RunAccepted, "description": "With `Prefer: respond-async`"},
            **REFUSED,
            **error_responses(409),
        },
    )
    async def cleanup(
        request: Request,
        body: CleanupBody | None = None,
        prefer: Annotated[str, Header()] = "",
        caller: Caller = Depends(site.may_clean),
    ) -> Response:
        """Clean now, or with `dry_run` say what would go.  Answers when the run is over."""
        if request.query_params:
            # Who writes ?dry_run=true must not find that it was none.
            words = "what a run is to do stands in the body, not in the address"
            return problem(
                422, words, [FieldProblem(field=name, message=words) for name in request.query_params]
            )
        wanted = body or CleanupBody()
        retention = (wanted.success_retention_hours, wanted.failed_retention_hours)
        if wanted.dry_run or engine.config.dry_run:
            config = engine.config.with_retention(*retention)
            async with one_at_a_time:
                return _answer(
                    await asyncio.to_thread(dry_run, engine, config, caller.name, force=wanted.force)
                )
        await asyncio.to_thread(_write_down, site, caller, wanted)
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[str] = loop.create_future()
        over: asyncio.Future[Outcome] = loop.create_future()

        def end(outcome: Outcome) -> None:
            kept.clear()
            _tell(loop, over, outcome)

        engine.run(
            ApiRun(caller.name, retention, wanted.force, lambda run_id: _tell(loop, begun, run_id), end)
        )
        if "respond-async" in prefer.lower():
            await asyncio.wait((begun, over), return_when=asyncio.FIRST_COMPLETED)
            if begun.done():
                run_id = begun.result()
                url = f"{request.url.path}/runs/{run_id}"
                return AsciiJsonResponse({"run_id": run_id, "url": url}, 202, headers={"Location": url})
        return _answer(await over)


def _write_down(site: ApiContext, caller: Caller, wanted: CleanupBody) -> None:
    if told := release_initial_ballast(site.backend.config):  # or the line below has none on a full disk
        log.warning("%s", told)
    site.audit(caller, "http_cleanup", body=wanted.model_dump())


def dry_run(engine: Backend, config: Config, user: str, *, force: bool = False) -> IO[str] | CleanupError:
    """Say what a run would do."""
    with closing(RunDocument()) as answer:
        clean(
            config,
            RunRequest(user=user, trigger=Trigger.API, dry_run=True, force=force),
            emit=answer,
            hooks=engine.plugins,
        )
        return run_document(answer)


def planned(engine: Backend) -> bytes:
    """Return the next run's dry run as JSON; breakers do not count, for nothing happens."""
    outcome = dry_run(engine, engine.config, "plan", force=True)
    if isinstance(outcome, CleanupError):
        raise outcome
    with outcome:
        return outcome.read().encode("ascii")


def _answer(outcome: Outcome) -> Response:
    if isinstance(outcome, CleanupError):
        raise outcome
    if outcome is None:
        return problem(503, "the run broke off; the log says where, and the next one goes on")

    def chunks() -> Iterator[str | bytes]:
        with outcome:
            while chunk := outcome.read(1 << 16):
                yield chunk

    return StreamingResponse(chunks(), media_type="application/json")


def _tell(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], value: object) -> None:
    """Tell something to who waits in the loop, from any thread; perhaps nobody does any more."""

    def tell() -> None:
        if not future.done():
            future.set_result(value)

    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(tell)
