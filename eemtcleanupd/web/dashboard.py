"""The pages for people; they read without JavaScript, which only adds the buttons and live progress."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from importlib import resources
from typing import Annotated

import jinja2
from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.exceptions import HTTPException

from eemtcleanupd import __version__
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.formatting import human_age, human_size, printable
from eemtcleanupd.web.auth import Authenticator, Caller, bearer_token, session_cookie_name
from eemtcleanupd.web.cache import PLAN_SECONDS
from eemtcleanupd.web.context import ApiContext
from eemtcleanupd.web.dashboard_data import DashboardData, run_page_data
from eemtcleanupd.web.problems import SILENT
from eemtcleanupd.web.routes.runs import planned

_STALE_SECONDS = 5.0
_SESSION_SECONDS = 12 * 3600
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def pages(site: ApiContext, access: Authenticator) -> APIRouter:
    """Return the routes of the pages."""
    router = APIRouter(include_in_schema=False)
    engine, kept, shown = site.backend, site.cache, DashboardData(site.backend)
    static = {
        entry.name: entry.read_bytes()
        for entry in resources.files("eemtcleanupd.web").joinpath("static").iterdir()
    }
    environment = _environment(hashlib.sha256(b"".join(static.values())).hexdigest()[:12])
    # Compiled now, so that the first who asks does not wait for it.
    templates = {
        name: environment.get_template(f"{name}.html") for name in ("login", "dashboard", "run", "problem")
    }

    def page(name: str, **values: object) -> bytes:
        return templates[name].render(**values).encode("utf-8", "backslashreplace")

    async def for_readers(request: Request, make: Callable[[Caller], Awaitable[bytes]]) -> Response:
        """Return a page for whoever may read, the form to log in for others, or why there is none."""
        try:
            caller = access.check(request, "read", bearer_token(request))
        except HTTPException as error:
            words = "" if error.status_code == 401 else error.detail
            return HTMLResponse(page("login", problem=words), error.status_code, dict(error.headers or {}))
        try:
            return HTMLResponse(await make(caller))
        except HTTPException as error:
            return HTMLResponse(page("problem", caller=caller, problem=error.detail), error.status_code)
        except CleanupError as error:
            return HTMLResponse(page("problem", caller=caller, problem=str(error)), 503)
        except TimeoutError:
            return HTMLResponse(page("problem", caller=caller, problem=SILENT), 503)

    @router.get("/")
    async def dashboard(request: Request) -> Response:
        async def make(caller: Caller) -> bytes:
            if kept.is_expired("plan") and await engine.progress() is None:
                kept.refresh("plan", lambda: planned(engine), PLAN_SECONDS)
            plan = kept.peek("plan")
            return await kept.get(
                ("page", caller.name, caller.scope, plan is None),
                lambda: page("dashboard", caller=caller, **shown.everything(plan)),
                stale_seconds=_STALE_SECONDS,
            )

        return await for_readers(request, make)

    @router.get("/runs/{run_id}")
    async def run(request: Request, run_id: str) -> Response:
        async def make(caller: Caller) -> bytes:
            values = await asyncio.to_thread(run_page_data, engine.config, run_id)
            return page("run", caller=caller, **values)

        return await for_readers(request, make)

    _add_session(router, access, page)
    _add_assets(router, static)
    return router


def _add_session(router: APIRouter, access: Authenticator, page: Callable[..., bytes]) -> None:
    @router.post("/login")
    def login(request: Request, token: Annotated[str, Form()] = "") -> Response:
        try:
            session = access.log_in(token.strip(), request)
        except HTTPException as error:
            return HTMLResponse(page("login", problem=error.detail), error.status_code)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            session_cookie_name(request),
            session,
            max_age=_SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @router.post("/logout")
    def logout(request: Request) -> Response:
        name = session_cookie_name(request)
        access.log_out(request.cookies.get(name, ""))
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(name, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return answer


def _add_assets(router: APIRouter, static: dict[str, bytes]) -> None:
    @router.get("/static/{name}")
    async def asset(name: str) -> Response:
        if name not in static:
            return Response(status_code=404)
        # Pages name it with its hash, so it may be kept for ever.
        keep = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(static[name], media_type=_TYPES[name.rpartition(".")[2]], headers=keep)


def _environment(stamp: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eemtcleanupd.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = lambda value: "unknown" if value is None else human_size(value)
    environment.filters["name"] = lambda value: printable(str(value))
    environment.filters["moment"] = lambda value: f"{_moment(value).astimezone():%Y-%m-%d %H:%M}"
    environment.filters["relative"] = _relative
    environment.globals.update(version=__version__, stamp=stamp, now=system_clock)
    return environment


def _moment(value: str | datetime) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def _relative(value: str | datetime) -> str:
    """Return how far away a time is: ``in 5.2 hours``, ``3 minutes ago``."""
    distance = _moment(value) - system_clock()
    seconds = abs(distance.total_seconds())
    if seconds < 60:
        return "in a moment" if distance.total_seconds() > 0 else "just now"
    if seconds < 3600:
        minutes = int(seconds / 60)
        span = f"{minutes} minute{'' if minutes == 1 else 's'}"
    else:
        span = human_age(abs(distance))
    return f"in {span}" if distance.total_seconds() > 0 else f"{span} ago"
