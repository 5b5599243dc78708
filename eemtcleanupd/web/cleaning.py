"""``POST /api/cleanup``: a run, or what it would do."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import StreamingResponse

from eemtcleanupd.answer import Answer
from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.config import Config
from eemtcleanupd.daemon.inbox import Order
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.events import Event, RunReport, RunStarted
from eemtcleanupd.web.access import Caller
from eemtcleanupd.web.bodies import CleanupAnswer, CleanupBody, RunBegun
from eemtcleanupd.web.engine import TRIGGER, Engine
from eemtcleanupd.web.problems import REFUSED, FieldProblem, Json, documented, problem
from eemtcleanupd.web.site import Site


def add_cleaning(router: APIRouter, site: Site) -> None:
    """Add the route."""
    engine, kept = site.engine, site.kept
    one_at_a_time = asyncio.Lock()

    @router.post(
        "",
        response_model=CleanupAnswer,
        responses={
            202: {"model": RunBegun, "description": "With `Prefer: respond-async`"},
            **REFUSED,
            **documented(409),
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
                looked = await asyncio.to_thread(dry_run, engine, config, caller.name, force=wanted.force)
            return await asyncio.to_thread(_stream, looked)
        await asyncio.to_thread(site.audit, caller, "http_cleanup", body=wanted.model_dump())
        answer, begun, ended = Answer(), asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        waits = "respond-async" not in prefer.lower()
        outcome: list[RunReport | CleanupError | None] = []
        started: list[str] = []

        def emit(event: Event) -> None:
            answer(event)
            if isinstance(event, RunStarted):
                started.append(event.run_id)
                _tell(loop, begun)

        def done(result: RunReport | CleanupError | None) -> None:
            outcome.append(result)
            if not isinstance(result, RunReport) or not waits:
                answer.close()
            kept.forget()
            _tell(loop, begun)
            _tell(loop, ended)

        engine.run(caller.name, Order(emit, done, retention, wanted.force))
        if not waits:
            await begun.wait()
            if started:
                url = f"{request.url.path}/runs/{started[0]}"
                return Json({"run_id": started[0], "url": url}, 202, headers={"Location": url})
        await ended.wait()
        result = outcome[0]
        if isinstance(result, CleanupError):
            raise result
        if result is None:
            return problem(503, "the run broke off; the log says where, and the next one goes on")
        return await asyncio.to_thread(_stream, answer)


def dry_run(engine: Engine, config: Config, user: str, *, force: bool = False) -> Answer:
    """Say what a run would do."""
    answer = Answer()
    try:
        clean(
            config,
            RunRequest(user=user, trigger=TRIGGER, dry_run=True, force=force),
            emit=answer,
            guards=engine.plugins,
        )
    except BaseException:
        answer.close()
        raise
    return answer


def planned(engine: Engine) -> bytes:
    """Return the next run's dry run as JSON; breakers do not count, for nothing happens."""
    with tempfile.SpooledTemporaryFile(max_size=1 << 20, mode="w+", encoding="ascii") as file:
        with closing(dry_run(engine, engine.config, "plan", force=True)) as answer:
            answer.write(file)
        file.seek(0)
        return file.read().encode("ascii")


def _stream(answer: Answer) -> StreamingResponse:
    file = tempfile.SpooledTemporaryFile(max_size=1 << 20, mode="w+", encoding="ascii")  # noqa: SIM115
    with closing(answer):
        answer.write(file)
    file.seek(0)

    def chunks() -> Iterator[str]:
        with file:
            while chunk := file.read(1 << 16):
                yield chunk

    return StreamingResponse(chunks(), media_type="application/json")


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(event.set)
