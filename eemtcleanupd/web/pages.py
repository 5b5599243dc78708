"""Rendering of HTML pages for clients with the right scope: the login form for others, or an error page."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from importlib import resources
from typing import Any, Final
from urllib.parse import urlencode

import jinja2
from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from humanize import naturaltime
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from eemtcleanupd import __version__
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.formatting import human_size, local_minute, plural, printable
from eemtcleanupd.web.auth import Authenticator, Caller, bearer_token
from eemtcleanupd.web.context import ApiContext
from eemtcleanupd.web.problems import status_and_detail
from eemtcleanupd.web.tokens import Scope

MEDIA_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class Pages:
    """The templates, and what every page needs."""

    def __init__(self, context: ApiContext, authenticator: Authenticator) -> None:
        self.context = context
        self.authenticator = authenticator
        self.static = {
            entry.name: entry.read_bytes()
            for entry in resources.files("eemtcleanupd.web").joinpath("static").iterdir()
        }
        environment = _environment(hashlib.sha256(b"".join(self.static.values())).hexdigest()[:12])
        # Compiled now, with those that they include, so that the first request is not slow.
        self._templates = {name: environment.get_template(name) for name in environment.list_templates()}

    def render(self, name: str, **values: object) -> bytes:
        """Return a page."""
        return self._templates[f"{name}.html"].render(**values).encode("utf-8", "backslashreplace")

    def login(self, problem: str, status: int, headers: dict[str, str] | None = None) -> Response:
        """Return the login form, with the reason why it is shown."""
        return HTMLResponse(self.render("login", problem=problem), status, headers)

    async def respond(
        self,
        request: Request,
        make: Callable[[Caller], Awaitable[bytes | Response]],
        scope: Scope = "read",
    ) -> Response:
        """Return what ``make`` returns, the login form without a token, or an error page."""
        check, secret = self.authenticator.check, bearer_token(request)
        try:
            caller = check(request, "read", secret)
        except HTTPException as error:
            text = "" if error.status_code == 401 else error.detail
            return self.login(text, error.status_code, dict(error.headers or {}))
        try:
            with self.context.guard.place(request, caller):
                if scope != "read":
                    check(request, scope, secret)
                answer = await make(caller)
                return answer if isinstance(answer, Response) else HTMLResponse(answer)
        except ValidationError as error:
            status, text = 422, "; ".join(f"{detail['loc'][0]}: {detail['msg']}" for detail in error.errors())
        except (HTTPException, CleanupError, TimeoutError) as error:
            status, text = status_and_detail(error)
        return HTMLResponse(self.render("problem", caller=caller, problem=text), status)

    async def show(
        self, request: Request, name: str, collect: Callable[[Caller], dict[str, Any]], scope: Scope = "read"
    ) -> Response:
        """Return a page with the values of ``collect``, which can block."""

        def make(caller: Caller) -> bytes:
            return self.render(name, caller=caller, **collect(caller))

        return await self.respond(request, lambda caller: asyncio.to_thread(make, caller), scope)


def to_key(job_id: str) -> str:
    """Return a job id in a form that an address or a form of HTML returns unchanged, whatever it contains."""
    return job_id if job_id.isprintable() and not job_id.startswith('"') else json.dumps(job_id)


def from_key(key: str) -> str:
    """Return the id of :func:`to_key`; a key that it returns for no id stands for itself."""
    if key.startswith('"'):
        try:
            job_id = str(json.loads(key))
            job_id.encode("utf-8", "surrogateescape")  # other lone surrogates stand for no byte
        except ValueError:
            return key
        return job_id
    return key


def with_query(path: str, **values: object) -> str:
    """Return an address with the parameters that have a value."""
    query = urlencode({name: value for name, value in values.items() if value not in {None, ""}})
    return f"{path}?{query}" if query else path


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
    environment.filters["moment"] = lambda value: local_minute(_moment(value))
    environment.filters["day"] = lambda value: f"{_moment(value).astimezone():%Y-%m-%d}"
    environment.filters["relative"] = lambda value: naturaltime(system_clock() - _moment(value))
    environment.filters["count"] = plural
    environment.filters["grouped"] = lambda value: f"{value:,}"
    environment.filters["key"] = to_key
    environment.globals.update(
        version=__version__, static_hash=static_hash, now=system_clock, with_query=with_query
    )
    return environment


def _moment(value: str | datetime) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value
