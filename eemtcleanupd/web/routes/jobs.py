"""Changes to single jobs, and the routes for them: hold, release and restore."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

from fastapi import APIRouter, Depends, Response

from eemtcleanupd.cleanup.restore import RestoreRequest, RestoreResult, restore
from eemtcleanupd.cleanup.session import find_row, hold_warning
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import StoreError
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Hold
from eemtcleanupd.web.auth import Caller
from eemtcleanupd.web.context import ApiContext, open_ledger
from eemtcleanupd.web.problems import COMMON_ERRORS, AsciiJsonResponse, error_responses, http_error
from eemtcleanupd.web.schemas import HoldBody, ReleaseBody, RestoreBody


def add_job_routes(router: APIRouter, context: ApiContext) -> None:
    """Add the routes."""

    @router.post("/holds", status_code=201, responses={**COMMON_ERRORS, **error_responses(404)})
    def hold(body: HoldBody, caller: Caller = Depends(context.may_clean)) -> Response:
        """Hold a job, so that it is not cleaned. `warning` is set if the hold comes too late.

        `replaced` is the hold that the job had. Its reason stays if you give none.
        """
        new, replaced, warning = hold_job(context, caller, body)
        before = None if replaced is None else asdict(replaced)
        return AsciiJsonResponse({**asdict(new), "replaced": before, "warning": warning}, 201)

    @router.post("/holds/release", responses={**COMMON_ERRORS, **error_responses(404)})
    def release(body: ReleaseBody, caller: Caller = Depends(context.may_clean)) -> Response:
        """Release a job from its hold."""
        release_job(context, caller, body)
        return AsciiJsonResponse({"job_id": body.job_id, "released": True})

    @router.post("/trash/restore", responses={**COMMON_ERRORS, **error_responses(409)})
    def put_back(body: RestoreBody, caller: Caller = Depends(context.may_clean)) -> Response:
        """Restore a job's data from the trash. Existing files are never overwritten."""
        result = restore_job(context, caller, body)
        return AsciiJsonResponse(
            {
                "job_id": body.job_id,
                "restored": [artifact.label for artifact in result.artifacts],
                "not_restored": [
                    {"artifact": artifact.label, "error": reason} for artifact, reason in result.not_restored
                ],
                "held_until": result.held_until,
                "warnings": list(result.warnings),
            }
        )


def hold_job(context: ApiContext, caller: Caller, body: HoldBody) -> tuple[Hold, Hold | None, str | None]:
    """Hold a job; return the hold, the one that it replaces, and a warning if the data is not protected.

    Raises:
        HTTPException: 404, the database has no such job.
    """
    config, now = context.backend.config, system_clock()
    try:
        is_known = body.unknown_ok or find_row(config, body.job_id) is not None
    except StoreError:  # the hold is more urgent: it is set below, with a warning
        is_known = True
    if not is_known:
        raise http_error(
            404,
            f"The database has no job {printable(body.job_id)}. Check the id, or hold it anyway with "
            "unknown_ok.",
        )
    until = None if body.hours is None else now + timedelta(hours=body.hours)
    new = Hold(body.job_id, body.reason, caller.name, until)
    context.audit(caller, "hold", job_id=printable(body.job_id), reason=printable(body.reason))
    with open_ledger(config, create=True) as ledger:
        assert ledger is not None  # noqa: S101  (create=True)
        new, replaced = ledger.hold(new, now)
        warning = hold_warning(config, ledger, body.job_id)
    context.cache.clear()
    return new, replaced, warning


def release_job(context: ApiContext, caller: Caller, body: ReleaseBody) -> None:
    """Release a job from its hold.

    Raises:
        HTTPException: 404, the job is not held.
    """
    with open_ledger(context.backend.config) as ledger:
        if ledger is None or not any(held.job_id == body.job_id for held in ledger.all_holds()):
            raise http_error(404, f"Job {printable(body.job_id)} is not held.")
        context.audit(caller, "release", job_id=printable(body.job_id))
        ledger.release(body.job_id)
    context.cache.clear()


def restore_job(context: ApiContext, caller: Caller, body: RestoreBody) -> RestoreResult:
    """Restore a job's data from the trash; the restore itself writes the audit log."""
    backend = context.backend
    labels = {label.rstrip("/") for label in body.only}
    result = restore(
        RestoreRequest(
            backend.config, body.job_id, labels, body.hold, caller.name, backend.plugins, system_clock
        )
    )
    context.cache.clear()
    return result
