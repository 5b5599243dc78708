"""The routes below ``/api/cleanup``: DESIGN's contract, which also mounts in the EEMT web interface."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from eemtcleanupd.answer import Answer
from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.cleanup.restoring import Restoring, restore
from eemtcleanupd.clock import system_clock
from eemtcleanupd.config import Config
from eemtcleanupd.daemon.inbox import Order
from eemtcleanupd.daemon.overview import run_document
from eemtcleanupd.errors import CleanupError, ConfigError
from eemtcleanupd.events import AuditEntry, Event, RunReport, RunStarted
from eemtcleanupd.model import Hold
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.ledger import Intent, Ledger
from eemtcleanupd.units import printable
from eemtcleanupd.web.access import Access, Caller
from eemtcleanupd.web.engine import TRIGGER, Engine, Kept, LocalEngine
from eemtcleanupd.web.problems import Json, ProblemRoute, documented, problem, refuse

_POLL_SECONDS = 0.5
_REFUSED = documented(401, 403, 422, 429, 503)


def _storable(value: str) -> str:
    """Refuse text that no database takes."""
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("it has a character that is none") from None
    return value


JobId = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_storable)]
Authorize = Callable[..., Awaitable[Caller]]
Hours = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CleanupBody(_Body):
    """What a run is to do; all of it may be left out."""

    dry_run: bool = Field(False, description="Only say what would be cleaned.", examples=[True])
    success_retention_hours: Hours | None = Field(
        None, description="Hours for successful jobs, in place of the configured ones.", examples=[168]
    )
    failed_retention_hours: Hours | None = Field(
        None, description="Hours for failed jobs, in place of the configured ones.", examples=[12]
    )
    force: bool = Field(False, description="Override the breakers (clock, share of jobs); no other rule.")


class Jobs(BaseModel):
    """How many jobs."""

    successful: int = Field(examples=[3])
    failed: int = Field(examples=[2])


class Space(BaseModel):
    """How much space."""

    bytes: int = Field(examples=[48318382080])
    human_readable: str = Field(examples=["45.0 GB"])


class Detail(BaseModel):
    """A job that was cleaned, or would be."""

    model_config = ConfigDict(extra="allow")

    job_id: str = Field(examples=["job-20240115-123456"])
    status: str = Field(examples=["completed"])
    age_days: float | None = Field(examples=[8.2])
    space_freed: str = Field(examples=["15.0 GB"])


class CleanupAnswer(BaseModel):
    """What a run did, or would do."""

    model_config = ConfigDict(extra="allow")

    success: bool
    run_id: str = Field(examples=["20240120T020001-3f2a"])
    dry_run: bool
    cleaned_jobs: Jobs
    space_freed: Space
    details: list[Detail]


class RunBegun(BaseModel):
    """A run that goes on."""

    run_id: str = Field(examples=["20240120T020001-3f2a"])
    url: str = Field(examples=["/api/cleanup/runs/20240120T020001-3f2a"])


class HoldBody(_Body):
    """A job that must stay."""

    job_id: JobId = Field(examples=["job-20240115-123456"])
    reason: Annotated[str, Field(max_length=1000), AfterValidator(_storable)] = ""
    hours: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] | None = Field(
        None, description="How long; without: for ever."
    )


class ReleaseBody(_Body):
    """A job that need not stay any more."""

    job_id: JobId = Field(examples=["job-20240115-123456"])


class RestoreBody(_Body):
    """A job whose data is to come back from the trash."""

    job_id: JobId = Field(examples=["job-20240115-123456"])
    only: list[Annotated[str, AfterValidator(_storable)]] = Field(
        default_factory=list, max_length=100, examples=[["results/job-20240115-123456/"]]
    )
    hold: bool = Field(True, description="Keep it for its retention once more.")


def cleanup_router(
    config: str | Path, *, authorize: Callable[..., Any] | None = None, environ: dict[str, str] | None = None
) -> APIRouter:
    """Return the routes for another FastAPI program, which works without a daemon.

    Args:
        config: the configuration file.
        authorize: a dependency of that program that refuses who may not (it raises HTTPException) and may
            return the name of who may; without it the tokens of ``api.tokens_file`` count.
        environ: the environment, by default the process's.

    Raises:
        ConfigError: the configuration is wrong, or there is neither ``authorize`` nor a file of tokens.
    """
    engine = LocalEngine(Path(config).absolute(), dict(os.environ if environ is None else environ))
    if authorize is None and engine.config.api.tokens_file is None:
        raise ConfigError("cleanup_router needs authorize=, or api.tokens_file in the configuration")
    return routes(engine, Access(engine), authorize)


def routes(
    engine: Engine, access: Access, authorize: Callable[..., Any] | None = None, kept: Kept | None = None
) -> APIRouter:
    """Return the routes over an engine."""
    kept = kept or Kept(engine)
    site = _Site(engine, kept, *_dependencies(access, authorize))
    router = APIRouter(prefix="/api/cleanup", tags=["cleanup"], route_class=ProblemRoute)
    _add_runs(router, site)
    _add_reading(router, site)
    _add_changing(router, site)
    return router


@dataclass(frozen=True, slots=True)
class _Site:
    engine: Engine
    kept: Kept
    may_read: Authorize
    may_clean: Authorize


def _add_runs(router: APIRouter, site: _Site) -> None:
    engine, kept = site.engine, site.kept
    dry_run_lock = threading.Lock()

    @router.post(
        "",
        response_model=CleanupAnswer,
        responses={
            202: {"model": RunBegun, "description": "With `Prefer: respond-async`"},
            **_REFUSED,
            **documented(409),
        },
    )
    async def cleanup(
        body: CleanupBody | None = None,
        prefer: Annotated[str, Header()] = "",
        caller: Caller = Depends(site.may_clean),
    ) -> Response:
        """Clean now, or with `dry_run` say what would go.  Answers when the run is over."""
        wanted = body or CleanupBody()
        retention = (wanted.success_retention_hours, wanted.failed_retention_hours)
        if wanted.dry_run or engine.config.dry_run:
            config = engine.config.with_retention(*retention)

            def look() -> Answer:
                with dry_run_lock:
                    return dry_run(engine, config, caller.name, force=wanted.force)

            return _stream(await asyncio.to_thread(look))
        await asyncio.to_thread(_audit, engine, caller, "http_cleanup", body=wanted.model_dump())
        answer, begun, ended = Answer(), asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
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

        waits = "respond-async" not in prefer.lower()
        engine.run(caller.name, Order(emit, done, retention, wanted.force))
        if not waits:
            await begun.wait()
            if started:
                url = f"{router.prefix}/runs/{started[0]}"
                return Json({"run_id": started[0], "url": url}, 202, headers={"Location": url})
        await ended.wait()
        result = outcome[0]
        if isinstance(result, CleanupError):
            raise result
        if result is None:
            return problem(503, "the run broke off; the log says where, and the next one goes on")
        return _stream(answer)


def _add_reading(router: APIRouter, site: _Site) -> None:
    engine, kept = site.engine, site.kept

    async def answer(key: object, make: Callable[[Ledger | None], object]) -> Response:
        """Answer from what is kept, without a thread; else work it out in one."""

        def work() -> bytes:
            with opened(engine.config) as ledger:
                return json.dumps(make(ledger), default=str).encode("ascii")

        made = kept.look(key)
        if made is None:
            made = await asyncio.to_thread(kept.get, key, work)
        return Response(made, media_type="application/json")

    @router.get(
        "/plan", dependencies=[Depends(site.may_read)], response_model=CleanupAnswer, responses=_REFUSED
    )
    def plan() -> Response:
        """Say what the next run would take."""
        return Response(kept.plan(lambda config: planned(engine, config)), media_type="application/json")

    @router.get("/status", dependencies=[Depends(site.may_read)], responses=_REFUSED)
    async def status() -> Response:
        """Say how the daemon and the job store are."""
        return await answer("status", lambda _: engine.overview())

    @router.get("/runs", dependencies=[Depends(site.may_read)], responses=_REFUSED)
    async def runs(limit: Annotated[int, Query(ge=1, le=500)] = 20) -> Response:
        """List past runs, the newest first."""
        return await answer(
            ("runs", limit),
            lambda ledger: {"runs": [run_document(run) for run in ledger.runs(limit)] if ledger else []},
        )

    @router.get(
        "/runs/{run_id}", dependencies=[Depends(site.may_read)], responses={**_REFUSED, **documented(404)}
    )
    def run(
        run_id: Annotated[str, AfterValidator(_storable)],
        limit: Annotated[int, Query(ge=1, le=100_000, description="How many details.")] = 1000,
    ) -> Response:
        """Show a run and what it did."""
        with opened(engine.config) as ledger:
            found = [each for each in ledger.runs(2, run_id) if each.id == run_id] if ledger else []
            if not found or ledger is None:
                raise refuse(404, f"there is no run {printable(run_id)}")
            return Json({**run_document(found[0]), "details": _details(ledger, run_id, limit)})

    @router.get(
        "/events",
        dependencies=[Depends(site.may_read)],
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}, **_REFUSED},
    )
    async def events(
        request: Request,
        once: Annotated[bool, Query(description="End after the first event.")] = False,
    ) -> StreamingResponse:
        """Tell how a run goes on, as server-sent events: `progress`, and `idle` when none does."""
        return StreamingResponse(
            _progress(engine, request, once=once),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    @router.get("/holds", dependencies=[Depends(site.may_read)], responses=_REFUSED)
    async def holds() -> Response:
        """List the jobs that must stay."""
        return await answer(
            "holds",
            lambda ledger: {"holds": [_hold(each) for each in ledger.all_holds()] if ledger else []},
        )

    @router.get("/trash", dependencies=[Depends(site.may_read)], responses=_REFUSED)
    async def trash() -> Response:
        """List what has been cleaned and is not gone yet."""
        return await answer(
            "trash",
            lambda ledger: {"trash": [_trashed(each) for each in ledger.trash_of()] if ledger else []},
        )


def _add_changing(router: APIRouter, site: _Site) -> None:
    engine, kept = site.engine, site.kept

    @router.post("/holds", status_code=201, responses=_REFUSED)
    def hold(body: HoldBody, caller: Caller = Depends(site.may_clean)) -> Response:
        """Never clean a job, for some hours or for ever."""
        now = system_clock()
        until = (
            None if body.hours is None else datetime.fromtimestamp(now.timestamp() + body.hours * 3600, UTC)
        )
        wanted = Hold(body.job_id, body.reason or "no reason given", caller.name, until)
        _audit(engine, caller, "hold", job_id=printable(body.job_id), reason=printable(body.reason))
        with opened(engine.config, create=True) as ledger:
            assert ledger is not None  # noqa: S101  (it was made)
            ledger.hold(wanted, now)
        kept.forget()
        return Json(_hold(wanted), 201)

    @router.post("/holds/release", responses={**_REFUSED, **documented(404)})
    def release(body: ReleaseBody, caller: Caller = Depends(site.may_clean)) -> Response:
        """Take a hold off a job."""
        with opened(engine.config) as ledger:
            if ledger is None or not any(each.job_id == body.job_id for each in ledger.all_holds()):
                raise refuse(404, f"job {printable(body.job_id)} is not held")
            _audit(engine, caller, "release", job_id=printable(body.job_id))
            ledger.release(body.job_id)
        kept.forget()
        return Json({"job_id": body.job_id, "released": True})

    @router.post("/trash/restore", responses={**_REFUSED, **documented(409)})
    def put_back(body: RestoreBody, caller: Caller = Depends(site.may_clean)) -> Response:
        """Put a job's data back where it was, never over something that is there now."""
        labels = {label.rstrip("/") for label in body.only}
        restored = restore(
            Restoring(
                engine.config, body.job_id, labels, body.hold, caller.name, engine.plugins, system_clock
            )
        )
        kept.forget()
        until = restored.held_until
        return Json(
            {
                "job_id": body.job_id,
                "restored": [found.label for found in restored.artifacts],
                "held_until": None if until is None else until.isoformat(),
            }
        )


def _dependencies(access: Access, authorize: Callable[..., Any] | None) -> tuple[Authorize, Authorize]:
    if authorize is None:
        return access.requires("read"), access.requires("clean")

    async def known(request: Request, name: Any = Depends(authorize)) -> Caller:
        address = None if request.client is None else request.client.host
        return Caller(name if isinstance(name, str) else "web interface", "clean", address)

    return known, known


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


def planned(engine: Engine, config: Config) -> bytes:
    """Return the next run's dry run as JSON; breakers do not count, for nothing happens."""
    with tempfile.SpooledTemporaryFile(max_size=1 << 20, mode="w+", encoding="ascii") as file:
        with closing(dry_run(engine, config, "plan", force=True)) as answer:
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


def _audit(engine: Engine, caller: Caller, action: str, **details: object) -> None:
    engine.plugins.audit([AuditEntry(system_clock(), caller.name, action, details, caller.address)])


@contextmanager
def opened(config: Config, *, create: bool = False) -> Iterator[Ledger | None]:
    """Give the ledger for a short question, None before the first run."""
    timeout = config.database.busy_timeout_seconds
    database = Database(Path(config.paths.database), busy_timeout_seconds=timeout)
    try:
        ledger = Ledger(database)
        if create:
            ledger.create_tables()
        yield ledger if ledger.is_current() else None
    finally:
        database.close()


async def _progress(engine: Engine, request: Request, *, once: bool) -> AsyncIterator[str]:
    """Tell each change as a server-sent event until nobody listens."""
    last: object = ()
    while not await request.is_disconnected():
        progress = engine.progress()
        if progress != last:
            kind = "idle" if progress is None else "progress"
            yield f"event: {kind}\ndata: {json.dumps(progress)}\n\n"
            last = progress
            if once:
                return
        await asyncio.sleep(_POLL_SECONDS)


def _details(ledger: Ledger, run_id: str, limit: int) -> list[dict[str, Any]]:
    return [
        {
            "job_id": entry.job_id,
            "status": entry.status,
            "action": entry.action,
            "bytes_freed": entry.bytes_freed,
            "message": entry.message,
        }
        for entry in itertools.islice(ledger.log_entries(run_id), limit)
    ]


def _hold(hold: Hold) -> dict[str, Any]:
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
