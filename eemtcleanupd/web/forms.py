"""Forms that change something: hold, release, restore, purge, clean and stop, each with a page to confirm.

They do what the routes of the API do, with the same scope, checks and audit lines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from eemtcleanupd.clock import system_clock
from eemtcleanupd.config import Config
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.formatting import plural
from eemtcleanupd.web.auth import Caller
from eemtcleanupd.web.cache import PLAN_FRESH_SECONDS
from eemtcleanupd.web.context import open_ledger
from eemtcleanupd.web.dashboard_data import plan_summary
from eemtcleanupd.web.pages import Pages, from_key
from eemtcleanupd.web.problems import http_error
from eemtcleanupd.web.routes.jobs import hold_job, release_job, restore_job
from eemtcleanupd.web.routes.runs import plan_document, start_run, stop_run
from eemtcleanupd.web.schemas import CleanupBody, HoldBody, PurgeBody, ReleaseBody, RestoreBody

_START_SECONDS = 10.0
_MOST_DAYS = 36_500


def add_forms(router: APIRouter, pages: Pages) -> None:
    """Add the routes: GET shows the form that POST receives."""
    _add_job_forms(router, pages)
    _add_confirmations(router, pages)
    _add_run_actions(router, pages)


def _add_job_forms(router: APIRouter, pages: Pages) -> None:
    context = pages.context

    async def confirm(request: Request, action: str, job: str) -> Response:
        values = {"action": action, "job": from_key(job)}
        return await pages.show(request, "action", lambda _: values, "clean")

    @router.get("/hold")
    async def hold_form(request: Request, job: str = "") -> Response:
        return await confirm(request, "hold", job)

    @router.get("/release")
    async def release_form(request: Request, job: str = "") -> Response:
        return await confirm(request, "release", job)

    @router.get("/restore")
    async def restore_form(request: Request, job: str = "") -> Response:
        return await confirm(request, "restore", job)

    @router.post("/hold")
    async def hold(
        request: Request, job: str = Form(""), reason: str = Form(""), days: str = Form("")
    ) -> Response:
        def values(caller: Caller) -> dict[str, object]:
            body = HoldBody(job_id=from_key(job), reason=reason.strip(), hours=_hours(days))
            held, replaced, warning = hold_job(context, caller, body)
            return {
                "action": "hold",
                "job": body.job_id,
                "hold": held,
                "replaced": replaced,
                "warning": warning,
            }

        return await pages.show(request, "result", values, "clean")

    @router.post("/release")
    async def release(request: Request, job: str = Form("")) -> Response:
        def values(caller: Caller) -> dict[str, object]:
            body = ReleaseBody(job_id=from_key(job))
            release_job(context, caller, body)
            return {"action": "release", "job": body.job_id}

        return await pages.show(request, "result", values, "clean")

    @router.post("/restore")
    async def restore(request: Request, job: str = Form("")) -> Response:
        def values(caller: Caller) -> dict[str, object]:
            body = RestoreBody(job_id=from_key(job), hold=True)
            return {"action": "restore", "job": body.job_id, "restored": restore_job(context, caller, body)}

        return await pages.show(request, "result", values, "clean")


def _add_confirmations(router: APIRouter, pages: Pages) -> None:
    context = pages.context
    backend, cache = context.backend, context.cache

    @router.get("/purge")
    async def purge_form(request: Request) -> Response:
        def values(is_running: bool) -> dict[str, object]:
            shown_at = system_clock().timestamp()
            with open_ledger(backend.config) as ledger:
                jobs, size_bytes, _first = ledger.trash_summary() if ledger else (0, 0, None)
            return {
                "action": "purge",
                "jobs": jobs,
                "size_bytes": size_bytes,
                "shown_at": shown_at,
                "is_running": is_running,
                "dry_run": backend.config.dry_run,
            }

        async def make(caller: Caller) -> bytes:
            is_running = await backend.progress() is not None
            return pages.render("action", caller=caller, **await asyncio.to_thread(values, is_running))

        return await pages.respond(request, make, "clean")

    @router.get("/clean")
    async def clean_form(request: Request) -> Response:
        async def make(caller: Caller) -> bytes:
            plan = await cache.get("plan", lambda: plan_document(backend), PLAN_FRESH_SECONDS)
            is_running = await backend.progress() is not None
            summary, jobs = await asyncio.to_thread(plan_summary, plan)
            return pages.render(
                "action",
                caller=caller,
                action="clean",
                plan=summary,
                jobs=jobs[:10],
                is_running=is_running,
                most=backend.config.safety.max_jobs_per_run,
                dry_run=backend.config.dry_run,
            )

        return await pages.respond(request, make, "clean")


def _add_run_actions(router: APIRouter, pages: Pages) -> None:
    context = pages.context

    async def start(request: Request, options: Callable[[], CleanupBody | PurgeBody]) -> Response:
        async def make(caller: Caller) -> Response:
            body = options()
            is_idle = await asyncio.to_thread(_finds_nothing, context.backend.config, body)
            run = await start_run(context, caller, body)
            run_id = await run.wait_for_start(_START_SECONDS)
            run.discard_outcome()
            if run_id is None and run.finished.done():
                outcome = run.finished.result()
                if isinstance(outcome, CleanupError):
                    raise outcome
                raise CleanupError("The run did not start. See the daemon's log.")
            return RedirectResponse("/trash" if is_idle else _page_of(run_id), 303)

        return await pages.respond(request, make, "clean")

    @router.post("/purge")
    async def purge(request: Request, shown_at: str = Form("")) -> Response:
        return await start(request, lambda: PurgeBody(older_than_hours=_hours_since(shown_at)))

    @router.post("/clean")
    async def clean(request: Request) -> Response:
        return await start(request, lambda: CleanupBody.model_validate({}))

    @router.post("/stop")
    async def stop(request: Request, run_id: str = Form("")) -> Response:
        async def make(caller: Caller) -> Response:
            # The run that the page showed: without its id, the form would stop whichever follows it.
            if not run_id:
                raise CleanupError("The form names no run. Reload the page of the run, and stop it there.")
            await stop_run(context, caller, run_id)
            return RedirectResponse("/", 303)

        return await pages.respond(request, make, "clean")


def _page_of(run_id: str | None) -> str:
    return "/runs" if run_id is None else f"/runs/{run_id}"


def _finds_nothing(config: Config, body: CleanupBody | PurgeBody) -> bool:
    """Return whether this is a purge that has nothing to do: it is not recorded, so it has no page."""
    if isinstance(body, CleanupBody):
        return False
    now = system_clock()
    with open_ledger(config) as ledger:
        return ledger is None or not (
            ledger.open_intents() or ledger.expired(now, 1, trashed_before=now - body.age, with_held=True)
        )


def _hours(days: str) -> float | None:
    """Return a number of days from a form in hours, None for an empty field.

    Raises:
        HTTPException: 422, it is not a number of days that a hold can have.
    """
    if not days.strip():
        return None
    if (number := _number(days)) is None or not 0 < number <= _MOST_DAYS:
        raise http_error(
            422,
            f"A hold lasts more than 0 and at most {plural(_MOST_DAYS, 'day')}. Give a number such as 7, or "
            "nothing.",
        )
    return 24 * number


def _hours_since(shown_at: str) -> float:
    """Return how long ago a page was shown, so that what moved to the trash since then stays there.

    Raises:
        HTTPException: 422, the form does not say when.
    """
    now = system_clock().timestamp()
    if (then := _number(shown_at)) is None or not 0 <= now - then <= _MOST_DAYS * 86400:
        raise http_error(422, "Confirm the purge on its page, which lists its content.")
    return (now - then) / 3600


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
