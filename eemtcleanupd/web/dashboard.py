"""The dashboard: HTML pages that work without JavaScript, which only adds buttons and live progress."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from importlib import resources

import jinja2
from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from humanize import naturaltime
from starlette.exceptions import HTTPException

from eemtcleanupd import __version__
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.formatting import human_size, printable
from eemtcleanupd.web.auth import SESSION_LIFETIME, Authenticator, Caller, bearer_token, session_cookie_name
from eemtcleanupd.web.cache import PLAN_FRESH_SECONDS
from eemtcleanupd.web.context import ApiContext
from eemtcleanupd.web.dashboard_data import DashboardData, run_page_data
from eemtcleanupd.web.problems import DAEMON_TIMEOUT, public_text
from eemtcleanupd.web.routes.runs import plan_document

_STALE_SECONDS = 5.0
_MEDIA_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def build_pages(context: ApiContext, authenticator: Authenticator) -> APIRouter:
    """Return the routes of the pages, of login and logout, and of the static files."""
    router = APIRouter(include_in_schema=False, route_class=context.guard.route_class(accepts_forms=True))
    backend, cache, data = context.backend, context.cache, DashboardData(context.backend)
    static = {
        entry.name: entry.read_bytes()
        for entry in resources.files("eemtcleanupd.web").joinpath("static").iterdir()
    }
    environment = _environment(hashlib.sha256(b"".join(static.values())).hexdigest()[:12])
    # Compiled now, so that the first request is not slow.
    templates = {
        name: environment.get_template(f"{name}.html") for name in ("login", "dashboard", "run", "problem")
    }

    def render(name: str, **values: object) -> bytes:
        return templates[name].render(**values).encode("utf-8", "backslashreplace")

    async def page(request: Request, make: Callable[[Caller], Awaitable[bytes]]) -> Response:
        """Return a page for clients with read scope, the login form for others, or an error page."""
        try:
            caller = authenticator.check(request, "read", bearer_token(request))
        except HTTPException as error:
            text = "" if error.status_code == 401 else error.detail
            return HTMLResponse(render("login", problem=text), error.status_code, dict(error.headers or {}))
        try:
            with context.guard.place(request, caller):
                return HTMLResponse(await make(caller))
        except HTTPException as error:
            status, text = error.status_code, error.detail
        except CleanupError as error:
            status, text = 503, public_text(error)
        except TimeoutError:
            status, text = 503, DAEMON_TIMEOUT
        return HTMLResponse(render("problem", caller=caller, problem=text), status)

    @router.get("/")
    async def dashboard(request: Request) -> Response:
        async def make(caller: Caller) -> bytes:
            if cache.is_expired("plan") and await backend.progress() is None:
                cache.refresh("plan", lambda: plan_document(backend), PLAN_FRESH_SECONDS)
            plan = cache.peek("plan")
            return await cache.get(
                ("page", caller.name, caller.scope, plan is None),
                lambda: render("dashboard", caller=caller, **data.dashboard(plan)),
                stale_seconds=_STALE_SECONDS,
            )

        return await page(request, make)

    @router.get("/runs/{run_id}")
    async def run(request: Request, run_id: str) -> Response:
        async def make(caller: Caller) -> bytes:
            values = await asyncio.to_thread(run_page_data, backend.config, run_id)
            return render("run", caller=caller, **values)

        return await page(request, make)

    @router.get("/static/{name}")
    async def asset(name: str) -> Response:
        if name not in static:
            return Response(status_code=404)
        # The pages' links contain a hash of the files, so browsers can cache them permanently.
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(static[name], media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)

    _add_session_routes(router, authenticator, render)
    return router


def _add_session_routes(
    router: APIRouter, authenticator: Authenticator, render: Callable[..., bytes]
) -> None:
    @router.post("/login")
    def login(request: Request, token: str = Form("")) -> Response:
        try:
            session = authenticator.log_in(token.strip(), request)
        except HTTPException as error:
            return HTMLResponse(render("login", problem=error.detail), error.status_code)
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


def _environment(static_hash: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eemtcleanupd.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = lambda value: "unknown" if value is None else human_size(value)
    environment.filters["printable"] = lambda value: printable(str(value))
    environment.filters["moment"] = lambda value: f"{_moment(value).astimezone():%Y-%m-%d %H:%M}"
    environment.filters["relative"] = lambda value: naturaltime(system_clock() - _moment(value))
    environment.globals.update(version=__version__, static_hash=static_hash, now=system_clock)
    return environment


def _moment(value: str | datetime) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value
