"""HTTP errors as problem details (RFC 9457), and JSON answers in ASCII."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final

from fastapi import HTTPException, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from eemtcleanupd.errors import (
    AuditError,
    CleanupError,
    JobTableError,
    NoDatabaseError,
    ReportError,
    RootError,
    StoreError,
)

log = logging.getLogger(__name__)
MEDIA_TYPE: Final = "application/problem+json"
_SEE: Final = "See the log, or run `eemtcleanupd doctor` on the server."
_WITHOUT_PATHS: Final[dict[type[CleanupError], str]] = {
    NoDatabaseError: "There is no job database. Run `eemtcleanupd doctor` on the server to find it.",
    StoreError: f"The job database cannot be used. Another program might have locked it: try again. {_SEE}",
    RootError: f"A folder of the job store cannot be used. {_SEE}",
    AuditError: f"The audit log is not writable, so nothing was done. {_SEE}",
    JobTableError: f"The job database is probably not that of this job store, so runs are refused. {_SEE}",
}
"""What clients read instead of a message that names paths, hosts, users or processes of this machine."""
DAEMON_TIMEOUT: Final = "The daemon does not answer. Try again later."


class FieldProblem(BaseModel):
    """An invalid field."""

    field: str
    message: str


class Problem(BaseModel):
    """Why a request failed (RFC 9457)."""

    title: str = Field(examples=["Conflict"])
    status: int = Field(examples=[409])
    detail: str = Field(examples=["Another run is using jobs.db: process 4711 on host, since 02:00."])
    errors: list[FieldProblem] = Field(default_factory=list, description="With 422: the invalid fields.")


class AsciiJsonResponse(Response):
    """JSON in ASCII, so that names that are not UTF-8 pass as escaped surrogates; times in ISO 8601."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the content as JSON."""
        return json.dumps(content, separators=(",", ":"), default=datetime.isoformat).encode("ascii")


def error_responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of these status codes."""
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    schema["properties"]["errors"] = {"type": "array", "items": FieldProblem.model_json_schema()}
    return {
        code: {"description": HTTPStatus(code).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for code in codes
    }


COMMON_ERRORS: Final = error_responses(401, 403, 422, 429, 503)
"""The errors of every route except health and metrics."""


def problem(
    status: int, detail: str, errors: list[FieldProblem] | None = None, headers: dict[str, str] | None = None
) -> Response:
    """Return an error response."""
    document = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors or [])
    return Response(
        json.dumps(document.model_dump()).encode("ascii"), status, headers=headers, media_type=MEDIA_TYPE
    )


def problem_from(error: Exception) -> Response:
    """Return the error response for an exception."""
    match error:
        case RequestValidationError():
            fields = [
                FieldProblem(
                    field=".".join(str(part) for part in detail["loc"][1:]) or "body", message=detail["msg"]
                )
                for detail in error.errors()
            ]
            return problem(422, "; ".join(f"{field.field}: {field.message}" for field in fields), fields)
        case StarletteHTTPException(status_code=400):  # FastAPI cannot decode the body
            message = "The body is not JSON in UTF-8."
            return problem(422, message, [FieldProblem(field="body", message=message)])
        case StarletteHTTPException():
            return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))
        case _:
            return problem(*status_and_detail(error))


def status_and_detail(error: Exception) -> tuple[int, str]:
    """Return the status code and the text of the answer to a request that failed with this exception."""
    match error:
        case StarletteHTTPException():
            return error.status_code, str(error.detail)
        case StoreError() | RootError() | AuditError() | ReportError():
            return 503, public_text(error)
        case TimeoutError():
            return 503, DAEMON_TIMEOUT
        case CleanupError():
            return 409, public_text(error)
        case _:
            log.error("Cannot answer an HTTP request", exc_info=error)
            return 500, "Internal error. See the daemon's log."


def public_text(error: CleanupError) -> str:
    """Return what clients may read of an error.  The log has its message if that names more."""
    kind = next((kind for kind in _WITHOUT_PATHS if isinstance(error, kind)), None)
    if kind is None:
        return str(error)
    log.warning("Cannot answer an HTTP request: %s", error)
    return _WITHOUT_PATHS[kind]


def http_error(status: int, detail: str, **headers: str) -> HTTPException:
    """Return an exception to raise in a route; underscores in names of headers stand for hyphens."""
    return HTTPException(status, detail, {name.replace("_", "-"): value for name, value in headers.items()})
