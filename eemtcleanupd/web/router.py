"""The routes below ``/api/cleanup``, for the daemon and for mounting in another FastAPI application."""

from __future__ import annotations

import atexit
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request

from eemtcleanupd.errors import ConfigError
from eemtcleanupd.web.auth import Authenticator, Caller
from eemtcleanupd.web.backend import LocalBackend
from eemtcleanupd.web.cache import ResponseCache
from eemtcleanupd.web.context import ApiContext
from eemtcleanupd.web.refusals import Refusals, client_address
from eemtcleanupd.web.routes.jobs import add_job_routes
from eemtcleanupd.web.routes.queries import add_query_routes
from eemtcleanupd.web.routes.runs import add_run_routes

log = logging.getLogger(__name__)


def install(
    app: FastAPI,
    config: str | Path,
    *,
    authorize: Callable[..., Any] | None = None,
    environ: dict[str, str] | None = None,
) -> tuple[str, ...]:
    """Put the routes into another FastAPI application, in place of its own for the same path and method.

    They come first, whatever else the application has, or adds later, for their paths.

    Args:
        app: the application.
        config: the configuration file.
        authorize: see :func:`cleanup_router`.
        environ: the environment, by default the process's.

    Returns:
        The method and path of each replaced route, which the log names too.

    Raises:
        ConfigError: the configuration is invalid, or there is neither ``authorize`` nor a token file.
    """
    router = cleanup_router(config, authorize=authorize, environ=environ)
    ours = {operation for operation, _ in _operations(router.routes)}
    routes = app.router.routes
    theirs = list(routes)
    replaced = []
    for operation, route in _operations(theirs):
        if operation in ours:
            replaced.append(operation)
            route.include_in_schema = False  # it gets no more requests
            log.warning("Replaced %s of the application (%s)", operation, route.name)
    app.include_router(router)
    # In front: a pattern, a mount or a router of the application cannot answer first, now or later.
    routes[:] = [*routes[len(theirs) :], *theirs]
    return tuple(replaced)


def _operations(routes: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the operations of routes, such as ``GET /runs/{}``, each with its route."""
    for route in routes:
        # Since version 0.137, FastAPI does not copy the routes of included routers.
        if (included := getattr(route, "original_router", None)) is not None:
            yield from _operations(included.routes, prefix + route.include_context.prefix)
        for method in getattr(route, "methods", None) or ():
            yield f"{method} {prefix}{re.sub('{.*?}', '{}', route.path)}", route


def cleanup_router(
    config: str | Path, *, authorize: Callable[..., Any] | None = None, environ: dict[str, str] | None = None
) -> APIRouter:
    """Return the routes for another FastAPI application; they work without a daemon.

    Args:
        config: the configuration file.
        authorize: a dependency of that application. It raises HTTPException to refuse a request, and can
            return the user's name for the audit log. Without it clients need a token of ``api.tokens_file``.
        environ: the environment, by default the process's.

    Raises:
        ConfigError: the configuration is invalid, or there is neither ``authorize`` nor a token file.
    """
    backend = LocalBackend(Path(config).absolute(), dict(os.environ if environ is None else environ))
    if authorize is not None:
        refusals = Refusals(backend)
        read = clean = _caller_from(authorize)
    elif backend.config.api.tokens_file is None:
        raise ConfigError(
            "cleanup_router cannot authorize requests. Pass authorize=, or set api.tokens_file in the "
            "configuration."
        )
    else:
        authenticator = Authenticator(backend)
        refusals = authenticator.refusals
        read, clean = authenticator.requires("read"), authenticator.requires("clean")
    atexit.register(refusals.write_summary)
    return routes(ApiContext.create(backend, ResponseCache(), refusals, read, clean))


def routes(context: ApiContext) -> APIRouter:
    """Return the routes below ``/api/cleanup``."""
    router = APIRouter(prefix="/api/cleanup", tags=["cleanup"], route_class=context.guard.route_class())
    add_run_routes(router, context)
    add_query_routes(router, context)
    add_job_routes(router, context)
    return router


def _caller_from(authorize: Callable[..., Any]) -> Callable[..., Any]:
    async def caller(request: Request, name: Any = Depends(authorize)) -> Caller:
        return Caller(name if isinstance(name, str) else "web interface", "clean", client_address(request))

    return caller
