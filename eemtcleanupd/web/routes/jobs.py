"""Routes that hold, release and restore jobs."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

from fastapi import APIRouter, Depends, Response

from eemtcleanupd.cleanup.restore import RestoreRequest, restore
from eemtcleanupd.cleanup.session import hold_warning
from eemtcleanupd.clock import system_clock
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Hold
from eemtcleanupd.web.auth import Caller
from eemtcleanupd.web.context import ApiContext, open_ledger
from eemtcleanupd.web.problems import COMMON_ERRORS, AsciiJsonResponse, error_responses, http_error
from eemtcleanupd.web.schemas import HoldBody, ReleaseBody, RestoreBody


def add_job_routes(router: APIRouter, context: ApiContext) -> None:
    """Add the routes."""
    backend, cache = context.backend, context.cache

    @router.post("/holds", status_code=201, responses=COMMON_ERRORS)
    def hold(body: HoldBody, caller: Caller = Depends(context.may_clean)) -> Response:
        """Hold a job, so that it is not cleaned. `warning` is set if the hold comes too late."""
        now = system_clock()
        until = None if body.hours is None else now + timedelta(hours=body.hours)
        new = Hold(body.job_id, body.reason or "no reason given", caller.name, until)
        context.audit(caller, "hold", job_id=printable(body.job_id), reason=printable(body.reason))
        with open_ledger(backend.config, create=True) as ledger:
            assert ledger is not None  # noqa: S101  (create=True)
            ledger.hold(new, now)
            warning = hold_warning(backend.config, ledger, body.job_id)
        cache.clear()
        return AsciiJsonResponse({**asdict(new), "warning": warning}, 201)

    @router.post("/holds/release", responses={**COMMON_ERRORS, **error_responses(404)})
    def release(body: ReleaseBody, caller: Caller = Depends(context.may_clean)) -> Response:
        """Release a job from its hold."""
        with open_ledger(backend.config) as ledger:
            if ledger is None or not any(held.job_id == body.job_id for held in ledger.all_holds()):
                raise http_error(404, f"Job {printable(body.job_id)} is not held.")
            context.audit(caller, "release", job_id=printable(body.job_id))
            ledger.release(body.job_id)
        cache.clear()
        return AsciiJsonResponse({"job_id": body.job_id, "released": True})

    @router.post("/trash/restore", responses={**COMMON_ERRORS, **error_responses(409)})
    def put_back(body: RestoreBody, caller: Caller = Depends(context.may_clean)) -> Response:
        """Restore a job's data from the trash. Existing files are never overwritten."""
        labels = {label.rstrip("/") for label in body.only}
        result = restore(
            RestoreRequest(
                backend.config, body.job_id, labels, body.hold, caller.name, backend.plugins, system_clock
            )
        )
        cache.clear()
        return AsciiJsonResponse(
            {
                "job_id": body.job_id,
                "restored": [artifact.label for artifact in result.artifacts],
                "not_restored": [
                    {"artifact": artifact.label, "error": reason} for artifact, reason in result.not_restored
                ],
                "held_until": result.held_until,
            }
        )
