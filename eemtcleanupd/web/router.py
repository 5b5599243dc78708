"""The routes below ``/api/cleanup``: DESIGN's contract, which also mounts in the EEMT web interface."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request

from eemtcleanupd.errors import ConfigError
from eemtcleanupd.web.auth import Authenticator, Caller, client_address
from eemtcleanupd.web.backend import LocalBackend
from eemtcleanupd.web.cache import ResponseCache
from eemtcleanupd.web.context import ApiContext, Authorize
from eemtcleanupd.web.problems import ProblemRoute
from eemtcleanupd.web.routes.jobs import add_job_routes
from eemtcleanupd.web.routes.queries import add_query_routes
from eemtcleanupd.web.routes.runs import add_run_routes


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
    engine = LocalBackend(Path(config).absolute(), dict(os.environ if environ is None else environ))
    if authorize is None and engine.config.api.tokens_file is None:
        raise ConfigError("cleanup_router needs authorize=, or api.tokens_file in the configuration")
    return routes(ApiContext(engine, ResponseCache(), *_dependencies(Authenticator(engine), authorize)))


def routes(site: ApiContext) -> APIRouter:
    """Return the routes of a site."""
    router = APIRouter(prefix="/api/cleanup", tags=["cleanup"], route_class=ProblemRoute)
    add_run_routes(router, site)
    add_query_routes(router, site)
    add_job_routes(router, site)
    return router


def _dependencies(access: Authenticator, authorize: Callable[..., Any] | None) -> tuple[Authorize, Authorize]:
    if authorize is None:
        return access.requires("read"), access.requires("clean")

    async def known(request: Request, name: Any = Depends(authorize)) -> Caller:
        return Caller(name if isinstance(name, str) else "web interface", "clean", client_address(request))

    return known, known
