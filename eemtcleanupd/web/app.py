"""The whole HTTP interface of a daemon: the routes, metrics, health, and the dashboard."""

from __future__ import annotations

import re
from http import HTTPStatus

from fastapi import Depends, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from eemtcleanupd import __version__
from eemtcleanupd.web.auth import Authenticator
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.cache import ResponseCache
from eemtcleanupd.web.context import ApiContext
from eemtcleanupd.web.dashboard import pages
from eemtcleanupd.web.middleware import SecurityMiddleware
from eemtcleanupd.web.problems import AsciiJsonResponse, ProblemRoute, error_responses, problem_from
from eemtcleanupd.web.router import routes
from eemtcleanupd.web.shortcut import CacheMiddleware

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def create_app(engine: Backend, access: Authenticator) -> ASGIApp:
    """Return the interface over an engine, with what every request passes first."""
    site = ApiContext(engine, ResponseCache(), access.requires("read"), access.requires("clean"))

    def refused(method: str, path: str, reason: str, address: str | None) -> bool:
        return access.record_refusal(method, path, reason, address=address)

    return SecurityMiddleware(
        CacheMiddleware(build_routes(site, access), site.cache, access), lambda: engine.config.api, refused
    )


def build_routes(site: ApiContext, access: Authenticator) -> FastAPI:
    """Return all routes."""
    app = FastAPI(
        title="eemtcleanupd",
        version=__version__,
        description="The retention daemon of an EEMT job store.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.router.route_class = ProblemRoute

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        answer = problem_from(error)
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            # Each method is a route of its own, which only knows itself (RFC 9110, 15.5.6).
            allowed = {
                method.upper()
                for template, methods in app.openapi()["paths"].items()
                if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), request.url.path)
                for method in methods
            }
            if allowed:
                answer.headers["Allow"] = ", ".join(sorted(allowed))
        return answer

    @app.get("/healthz", responses=error_responses(503), tags=["daemon"])
    async def healthz() -> Response:
        """Say whether the scheduler beats."""
        alive = await site.backend.is_alive()
        return AsciiJsonResponse({"status": "ok" if alive else "the scheduler hangs"}, 200 if alive else 503)

    @app.get(
        "/metrics",
        dependencies=[Depends(site.may_read)],
        responses={200: {"content": {"text/plain": {}}}, **error_responses(401, 403, 429)},
        tags=["daemon"],
    )
    async def metrics(request: Request) -> Response:
        """Return the metrics as Prometheus reads them."""
        return await site.answer(request, "metrics", site.backend.exposition, media_type=_PROMETHEUS)

    @app.get("/api/cleanup/openapi.json", dependencies=[Depends(site.may_read)], include_in_schema=False)
    def description() -> Response:
        return AsciiJsonResponse(app.openapi())

    app.include_router(routes(site))
    app.include_router(pages(site, access))
    return app
