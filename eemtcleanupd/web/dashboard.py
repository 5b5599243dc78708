"""The routes of the HTML pages, which work without JavaScript: it only adds live progress and sorting."""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from eemtcleanupd.web.auth import SESSION_LIFETIME, Caller, session_cookie_name
from eemtcleanupd.web.cache import PLAN_FRESH_SECONDS
from eemtcleanupd.web.dashboard_data import DashboardData
from eemtcleanupd.web.forms import add_forms
from eemtcleanupd.web.lists import add_lists
from eemtcleanupd.web.pages import MEDIA_TYPES, Pages
from eemtcleanupd.web.problems import http_error
from eemtcleanupd.web.routes.runs import plan_document
from eemtcleanupd.web.what_if_panel import refresh_comparison, what_if_panel

_STALE_SECONDS = 5.0


def build_pages(pages: Pages) -> APIRouter:
    """Return the routes of the pages, of login and logout, and of the static files."""
    context = pages.context
    router = APIRouter(include_in_schema=False, route_class=context.guard.route_class(accepts_forms=True))
    backend, cache, data = context.backend, context.cache, DashboardData(context.backend)

    async def refresh() -> None:
        """Start what takes seconds with a million jobs, after the page, which it would slow down."""
        with suppress(TimeoutError):  # of a daemon that was stopped: the next page tries again
            if cache.is_expired("plan") and await backend.progress() is None:
                cache.refresh("plan", lambda: plan_document(backend), PLAN_FRESH_SECONDS)
        refresh_comparison(cache, backend)

    @router.get("/")
    async def dashboard(request: Request) -> Response:
        async def make(caller: Caller) -> Response:
            plan, what_if = cache.peek("plan"), what_if_panel(cache)
            page = await cache.get(
                ("page", caller.name, caller.scope, plan is None, what_if is None),
                lambda: pages.render("dashboard", caller=caller, what_if=what_if, **data.dashboard(plan)),
                stale_seconds=_STALE_SECONDS,
            )
            return HTMLResponse(page, background=BackgroundTask(refresh))

        return await pages.respond(request, make)

    @router.get("/static/{name}")
    async def asset(name: str) -> Response:
        if name not in pages.static:
            raise http_error(404, "There is no such file.")
        # The pages' links contain a hash of the files, so browsers can cache them permanently.
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(pages.static[name], media_type=MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)

    add_lists(router, pages)
    add_forms(router, pages)
    _add_session_routes(router, pages)
    return router


def _add_session_routes(router: APIRouter, pages: Pages) -> None:
    authenticator = pages.authenticator

    @router.get("/login")
    @router.get("/logout")
    @router.get("/stop")
    def form() -> Response:
        """Redirect to the dashboard, which has the forms."""
        return RedirectResponse("/", 303)

    @router.post("/login")
    def login(request: Request, token: str = Form("")) -> Response:
        try:
            session = authenticator.log_in(token.strip(), request)
        except HTTPException as error:
            return pages.login(error.detail, error.status_code)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            session_cookie_name(request),
            session,
            max_age=int(SESSION_LIFETIME.total_seconds()),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @router.post("/logout")
    def logout(request: Request) -> Response:
        name = session_cookie_name(request)
        authenticator.log_out(request.cookies.get(name, ""))
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(name, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return answer
