"""The routes below ``/api/cleanup`` with which people keep a job, or get it back."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Depends, Response

from eemtcleanupd.cleanup.restore import RestoreRequest, restore
from eemtcleanupd.cleanup.session import hold_warning
from eemtcleanupd.clock import system_clock
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Hold
from eemtcleanupd.web.auth import Caller
from eemtcleanupd.web.context import ApiContext, open_ledger
from eemtcleanupd.web.problems import REFUSED, AsciiJsonResponse, error_responses, http_error
from eemtcleanupd.web.routes.queries import hold_document
from eemtcleanupd.web.schemas import HoldBody, ReleaseBody, RestoreBody


def add_job_routes(router: APIRouter, site: ApiContext) -> None:
    """Add the routes."""
    engine, kept = site.backend, site.cache

    @router.post("/holds", status_code=201, responses=REFUSED)
    def hold(body: HoldBody, caller: Caller = Depends(site.may_clean)) -> Response:
        """Never clean a job, for some hours or for ever; `warning` says where that comes too late."""
        now = system_clock()
        until = None if body.hours is None else now + timedelta(hours=body.hours)
        wanted = Hold(body.job_id, body.reason or "no reason given", caller.name, until)
        site.audit(caller, "hold", job_id=printable(body.job_id), reason=printable(body.reason))
        with open_ledger(engine.config, create=True) as ledger:
            assert ledger is not None  # noqa: S101  (it was made)
            ledger.hold(wanted, now)
            warning = hold_warning(engine.config, ledger, body.job_id)
        kept.clear()
        return AsciiJsonResponse({**hold_document(wanted), "warning": warning}, 201)

    @router.post("/holds/release", responses={**REFUSED, **error_responses(404)})
    def release(body: ReleaseBody, caller: Caller = Depends(site.may_clean)) -> Response:
        """Take a hold off a job."""
        with open_ledger(engine.config) as ledger:
            if ledger is None or not any(each.job_id == body.job_id for each in ledger.all_holds()):
                raise http_error(404, f"job {printable(body.job_id)} is not held")
            site.audit(caller, "release", job_id=printable(body.job_id))
            ledger.release(body.job_id)
        kept.clear()
        return AsciiJsonResponse({"job_id": body.job_id, "released": True})

    @router.post("/trash/restore", responses={**REFUSED, **error_responses(409)})
    def put_back(body: RestoreBody, caller: Caller = Depends(site.may_clean)) -> Response:
        """Put a job's data back where it was, never over something that is there now."""
        labels = {label.rstrip("/") for label in body.only}
        restored = restore(
            RestoreRequest(
                engine.config, body.job_id, labels, body.hold, caller.name, engine.plugins, system_clock
            )
        )
        kept.clear()
        until = restored.held_until
        return AsciiJsonResponse(
            {
                "job_id": body.job_id,
                "restored": [found.label for found in restored.artifacts],
                "held_until": None if until is None else until.isoformat(),
            }
        )
