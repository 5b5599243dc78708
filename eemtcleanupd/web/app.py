"""The ASGI application of a daemon: API routes, metrics, health and dashboard, behind the middleware."""

from __future__ import annotations

import re
from http import HTTPStatus

from fastapi import Depends, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from eemtcleanupd import __version__
from eemtcleanupd.web.auth import Authenticator
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.cache import CacheMiddleware, ResponseCache
from eemtcleanupd.web.context import ApiContext
from eemtcleanupd.web.dashboard import build_pages
from eemtcleanupd.web.error_pages import ErrorPages
from eemtcleanupd.web.middleware import SecurityMiddleware
from eemtcleanupd.web.pages import Pages
from eemtcleanupd.web.problems import AsciiJsonResponse, error_responses, problem_from
from eemtcleanupd.web.router import routes

_UNKNOWN = {404: "There is nothing at this address.", 405: "This address does not accept this method."}
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def create_app(backend: Backend, authenticator: Authenticator) -> ASGIApp:
    """Return the application with its middleware: error pages, then security checks, then the cache."""
    cache = ResponseCache()
    refusals, requires = authenticator.refusals, authenticator.requires
    context = ApiContext.create(backend, cache, refusals, requires("read"), requires("clean"))
    pages = Pages(context, authenticator)
    app = build_routes(pages)
    cached = CacheMiddleware(app, cache, authenticator)
    guarded = SecurityMiddleware(cached, lambda: backend.config.api, refusals.record)
    return ErrorPages(guarded, lambda problem: pages.render("problem", caller=None, problem=problem))


def build_routes(pages: Pages) -> FastAPI:
    """Return all routes, without the middleware."""
    context = pages.context
    app = FastAPI(
        title="eemtcleanupd",
        version=__version__,
        description="The retention daemon of an EEMT job store.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.router.route_class = context.guard.route_class()

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        detail = _UNKNOWN.get(error.status_code, error.detail)
        answer = problem_from(HTTPException(error.status_code, detail, error.headers))
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            # FastAPI has a route per method, and each names only its own in Allow (RFC 9110, 15.5.6).
            allowed = {
                method.upper()
                for template, methods in app.openapi()["paths"].items()
                if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), request.url.path)
                for method in methods
            }
            if allowed:
                answer.headers["Allow"] = ", ".join(sorted(allowed))
        return answer

    @app.head("/healthz", include_in_schema=False)  # what uptime monitors send
    @app.get("/healthz", responses=error_responses(503), tags=["daemon"])
    async def healthz() -> Response:
        """Report whether the scheduler responds."""
        alive = await context.backend.is_alive()
        status = "ok" if alive else "the scheduler does not respond"
        return AsciiJsonResponse({"status": status}, 200 if alive else 503)

    @app.head("/metrics", dependencies=[Depends(context.may_read)], include_in_schema=False)
    @app.get(
        "/metrics",
        dependencies=[Depends(context.may_read)],
        responses={200: {"content": {"text/plain": {}}}, **error_responses(401, 403, 429)},
        tags=["daemon"],
    )
    async def metrics(request: Request) -> Response:
        """Return the metrics in Prometheus' text format."""
        return await context.answer(request, "metrics", context.backend.metrics, media_type=_PROMETHEUS)

    @app.get("/api/cleanup/openapi.json", dependencies=[Depends(context.may_read)], include_in_schema=False)
    def description() -> Response:
        return AsciiJsonResponse(app.openapi())

    app.include_router(routes(context))
    app.include_router(build_pages(pages))
    return app
