"""The page for people; it reads without JavaScript, which only adds the buttons and live progress."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.exceptions import HTTPException

from eemtcleanupd import __version__
from eemtcleanupd.clock import system_clock
from eemtcleanupd.config import Loaded
from eemtcleanupd.daemon.overview import run_document
from eemtcleanupd.daemon.status import in_words
from eemtcleanupd.events import StorageState
from eemtcleanupd.policy.forecast import full_at
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.units import human_size, printable
from eemtcleanupd.web.access import COOKIE, Access
from eemtcleanupd.web.engine import Engine, Kept
from eemtcleanupd.web.router import opened, planned

_SHOWN_JOBS = 200
_SHOWN_RUNS = 15
_WIDTH, _HEIGHT = 600, 140
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def _when(value: str | datetime | None) -> str:
    if value is None or value == "":
        return "never"
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return in_words(moment, system_clock())


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eemtcleanupd.web"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["size"] = lambda value: "unknown" if value is None else human_size(value)
    environment.filters["when"] = _when
    environment.filters["name"] = lambda value: printable(str(value))
    environment.globals["version"] = __version__
    return environment


def pages(engine: Engine, access: Access, kept: Kept) -> APIRouter:
    """Return the routes of the page."""
    router = APIRouter(include_in_schema=False)
    environment = _environment()
    # Compiled now, so that the first who asks does not wait for it.
    templates = {name: environment.get_template(name) for name in ("login.html", "dashboard.html")}
    static = {
        entry.name: entry.read_bytes()
        for entry in resources.files("eemtcleanupd.web").joinpath("static").iterdir()
    }

    def page(name: str, status: int = 200, **values: object) -> HTMLResponse:
        return HTMLResponse(templates[name].render(**values), status)

    @router.get("/")
    async def dashboard(request: Request) -> Response:
        try:
            caller = access.check(request, "read", _bearer(request))
        except HTTPException as error:
            return page(
                "login.html", error.status_code, problem="" if error.status_code == 401 else error.detail
            )
        key = ("page", caller.name, caller.scope)

        def make() -> bytes:
            return templates["dashboard.html"].render(caller=caller, **_state(engine, kept)).encode()

        made = kept.get_soon(key, make) or await asyncio.to_thread(kept.get, key, make)
        return HTMLResponse(made)

    @router.post("/login")
    def login(request: Request, token: Annotated[str, Form(max_length=200)]) -> Response:
        try:
            session = access.log_in(token.strip(), request)
        except HTTPException as error:
            return page("login.html", error.status_code, problem=error.detail)
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, session, max_age=12 * 3600, httponly=True, samesite="strict", secure=secure)
        return answer

    @router.post("/logout")
    def logout(request: Request) -> Response:
        access.log_out(request.cookies.get(COOKIE, ""))
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(COOKIE)
        return answer

    @router.get("/static/{name}")
    def asset(name: str) -> Response:
        if name not in static:
            return Response(status_code=404)
        kind = _TYPES[name.rpartition(".")[2]]
        return Response(static[name], media_type=kind, headers={"Cache-Control": "max-age=3600"})

    return router


def _bearer(request: Request) -> str | None:
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret if kind.lower() == "bearer" else None


def _state(engine: Engine, kept: Kept) -> dict[str, Any]:
    """Return all that the page shows."""
    config = engine.config
    how = engine.overview()
    plan = kept.plan_so_far(lambda config: planned(engine, config))
    told = None if plan is None else json.loads(plan)
    jobs = [] if told is None else sorted(told["details"], key=lambda job: -job["space_freed_bytes"])
    now = system_clock()
    runs: list[dict[str, Any]] = []
    holds: list[Any] = []
    trash: list[Any] = []
    storage: StorageState | None = None
    with opened(config) as ledger:
        if ledger is not None:
            for run in ledger.runs(_SHOWN_RUNS):
                runs.append(
                    {**run_document(run), "troubles": _troubles(ledger, run.id) if run.errors else []}
                )
            holds, trash = ledger.all_holds(), ledger.trash_of()
            usage = how["storage"]
            if usage["total_bytes"] is not None:
                storage = ledger.storage_state(now, usage["free_bytes"], usage["total_bytes"])
    return {
        "how": how,
        "plan": told,
        "jobs": jobs[:_SHOWN_JOBS],
        "more_jobs": max(0, len(jobs) - _SHOWN_JOBS),
        "runs": runs,
        "holds": holds,
        "trash": trash,
        "trend": None if storage is None else _trend(storage),
        "full_at": None if storage is None else full_at([(p.at, p.free_bytes) for p in storage.trend]),
        "policy": str(Policy.from_config(config.retention)),
        "settings": _settings(engine.loaded),
        "database": Path(config.paths.database).name,
    }


def _troubles(ledger: Any, run_id: str) -> list[Any]:
    found = []
    for entry in ledger.log_entries(run_id):
        if entry.action == "failed":
            found.append(entry)
            if len(found) == 10:
                break
    return found


def _settings(loaded: Loaded) -> list[tuple[str, str]]:
    return [
        (each.key, each.value if isinstance(each.value, str) else json.dumps(each.value))
        for each in loaded.settings()
    ]


def _trend(storage: StorageState) -> dict[str, Any] | None:
    """Return the points of the picture: used by jobs, and free, over 90 days."""
    points = storage.trend
    if len(points) < 2:
        return None
    began, span = points[0].at, (points[-1].at - points[0].at).total_seconds() or 1
    top = max(max(point.used_bytes, point.free_bytes) for point in points) or 1

    def line(values: list[int]) -> str:
        return " ".join(
            f"{_WIDTH * (point.at - began).total_seconds() / span:.1f},{_HEIGHT - _HEIGHT * value / top:.1f}"
            for point, value in zip(points, values, strict=True)
        )

    return {
        "used": line([point.used_bytes for point in points]),
        "free": line([point.free_bytes for point in points]),
        "first": points[0],
        "last": points[-1],
        "top": top,
        "width": _WIDTH,
        "height": _HEIGHT,
    }
