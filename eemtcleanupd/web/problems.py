"""Errors over HTTP as problem details (RFC 9457), and JSON that carries any name."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from eemtcleanupd.errors import AuditError, CleanupError, ReportError, RootError, StoreError

log = logging.getLogger(__name__)
MEDIA_TYPE: Final = "application/problem+json"
SILENT: Final = "the daemon does not answer"


class FieldProblem(BaseModel):
    """What is wrong with a field."""

    field: str
    message: str


class Problem(BaseModel):
    """Why something was not done (RFC 9457)."""

    title: str = Field(examples=["Conflict"])
    status: int = Field(examples=[409])
    detail: str = Field(examples=["another run works on jobs.db: process 4711 on host, since 02:00"])
    errors: list[FieldProblem] = Field(default_factory=list, description="With 422: each field.")


class AsciiJsonResponse(Response):
    """JSON in ASCII: names that are not UTF-8 pass as lone escapes."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes."""
        return json.dumps(content, separators=(",", ":")).encode("ascii")


def error_responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of these codes."""
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    schema["properties"]["errors"] = {"type": "array", "items": FieldProblem.model_json_schema()}
    return {
        code: {"description": HTTPStatus(code).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for code in codes
    }


REFUSED: Final = error_responses(401, 403, 422, 429, 503)
"""What every route but health may answer."""


def problem(
    status: int, detail: str, errors: list[FieldProblem] | None = None, headers: dict[str, str] | None = None
) -> Response:
    """Return an answer that says why something was not done."""
    words = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors or [])
    return Response(
        json.dumps(words.model_dump()).encode("ascii"), status, headers=headers, media_type=MEDIA_TYPE
    )


def problem_from(error: Exception) -> Response:
    """Return the answer for an exception."""
    match error:
        case RequestValidationError():
            fields = [
                FieldProblem(
                    field=".".join(str(part) for part in each["loc"][1:]) or "body", message=each["msg"]
                )
                for each in error.errors()
            ]
            detail = "; ".join(f"{each.field}: {each.message}" for each in fields)
            return problem(422, detail, fields)
        case StarletteHTTPException(status_code=400):  # so FastAPI says that it cannot read the body
            words = "it is not JSON in UTF-8"
            return problem(422, f"body: {words}", [FieldProblem(field="body", message=words)])
        case StarletteHTTPException():
            return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))
        case StoreError() | RootError() | AuditError() | ReportError():
            return problem(503, str(error))
        case TimeoutError():
            return problem(503, SILENT)
        case CleanupError():
            return problem(409, str(error))
        case _:
            log.error("The HTTP interface failed", exc_info=error)
            return problem(500, "something broke that should not; the daemon's log says what")


class ProblemRoute(APIRoute):
    """A route whose errors are problem details, in whichever program it is mounted."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler."""
        handle = super().get_route_handler()

        async def safely(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:
                return problem_from(error)

        return safely


def http_error(status: int, detail: str, **headers: str) -> HTTPException:
    """Return what to raise."""
    return HTTPException(status, detail, {name.replace("_", "-"): value for name, value in headers.items()})
