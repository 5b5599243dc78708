"""The routes below ``/api/cleanup`` with which people keep a job, or get it back."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Depends, Response

from eemtcleanupd.cleanup.lookup import too_late
from eemtcleanupd.cleanup.restore import Restoring, restore
from eemtcleanupd.clock import system_clock
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Hold
from eemtcleanupd.web.auth import Caller
from eemtcleanupd.web.context import Site, opened
from eemtcleanupd.web.problems import REFUSED, Json, documented, refuse
from eemtcleanupd.web.routes.queries import hold_document
from eemtcleanupd.web.schemas import HoldBody, ReleaseBody, RestoreBody


def add_changing(router: APIRouter, site: Site) -> None:
    """Add the routes."""
    engine, kept = site.engine, site.kept

    @router.post("/holds", status_code=201, responses=REFUSED)
    def hold(body: HoldBody, caller: Caller = Depends(site.may_clean)) -> Response:
        """Never clean a job, for some hours or for ever; `warning` says where that comes too late."""
        now = system_clock()
        until = None if body.hours is None else now + timedelta(hours=body.hours)
        wanted = Hold(body.job_id, body.reason or "no reason given", caller.name, until)
        site.audit(caller, "hold", job_id=printable(body.job_id), reason=printable(body.reason))
        with opened(engine.config, create=True) as ledger:
            assert ledger is not None  # noqa: S101  (it was made)
            ledger.hold(wanted, now)
            warning = too_late(engine.config, ledger, body.job_id)
        kept.forget()
        return Json({**hold_document(wanted), "warning": warning}, 201)

    @router.post("/holds/release", responses={**REFUSED, **documented(404)})
    def release(body: ReleaseBody, caller: Caller = Depends(site.may_clean)) -> Response:
        """Take a hold off a job."""
        with opened(engine.config) as ledger:
            if ledger is None or not any(each.job_id == body.job_id for each in ledger.all_holds()):
                raise refuse(404, f"job {printable(body.job_id)} is not held")
            site.audit(caller, "release", job_id=printable(body.job_id))
            ledger.release(body.job_id)
        kept.forget()
        return Json({"job_id": body.job_id, "released": True})

    @router.post("/trash/restore", responses={**REFUSED, **documented(409)})
    def put_back(body: RestoreBody, caller: Caller = Depends(site.may_clean)) -> Response:
        """Put a job's data back where it was, never over something that is there now."""
        labels = {label.rstrip("/") for label in body.only}
        restored = restore(
            Restoring(
                engine.config, body.job_id, labels, body.hold, caller.name, engine.plugins, system_clock
            )
        )
        kept.forget()
        until = restored.held_until
        return Json(
            {
                "job_id": body.job_id,
                "restored": [found.label for found in restored.artifacts],
                "held_until": None if until is None else until.isoformat(),
            }
        )
