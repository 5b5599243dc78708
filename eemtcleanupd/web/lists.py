"""Pages with lists and details: jobs, the plan, the trash, runs, the audit log and the configuration."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from eemtcleanupd.cleanup.session import find_job_id
from eemtcleanupd.clock import system_clock
from eemtcleanupd.daemon.status_document import run_document
from eemtcleanupd.errors import AuditError
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import JobClass
from eemtcleanupd.notifiers.audit_reader import AuditPage, read_page
from eemtcleanupd.report.job_list import JobQuery, list_jobs
from eemtcleanupd.report.job_state import job_state
from eemtcleanupd.web.auth import Caller
from eemtcleanupd.web.cache import PLAN_FRESH_SECONDS
from eemtcleanupd.web.charts import bar_chart
from eemtcleanupd.web.context import open_ledger
from eemtcleanupd.web.dashboard_data import MOST_PLANNED, plan_summary, settings
from eemtcleanupd.web.pages import Pages, from_key, to_key
from eemtcleanupd.web.problems import http_error
from eemtcleanupd.web.routes.runs import plan_document

_ROWS = 50
_DETAILS = 200
_CHART_DAYS = 90
_MOST_CHARACTERS = 10_000
_SHOWN = {"all": None, "data": False, "cleaned": True}


def add_lists(router: APIRouter, pages: Pages) -> None:
    """Add the routes."""
    _add_job_pages(router, pages)
    _add_run_pages(router, pages)
    _add_other_pages(router, pages)


def _add_job_pages(router: APIRouter, pages: Pages) -> None:
    backend, cache = pages.context.backend, pages.context.cache

    @router.get("/jobs")
    async def jobs(
        request: Request, q: str = "", show: str = "all", status: str = "", after: str | None = None
    ) -> Response:
        def values(_: Caller) -> dict[str, Any]:
            start = from_key(q.strip())
            job_class = JobClass(status) if status in set(JobClass) else None
            query = JobQuery(
                start,
                job_class,
                _SHOWN.get(show),
                held=show == "held",
                needs_attention=show == "attention",
            )
            place = None if after is None else from_key(after)
            page = list_jobs(backend.config, query, place, _ROWS, system_clock())
            return {
                "page": page,
                "next": None if page.next_after is None else to_key(page.next_after),
                "query": {"q": q.strip(), "show": show, "status": "" if job_class is None else status},
                "is_first": after is None,
                "classes": list(JobClass),
            }

        return await pages.show(request, "jobs", values)

    @router.get("/job")
    async def job(request: Request, job_id: str = "") -> Response:
        def values(_: Caller) -> dict[str, Any]:
            found = find_job_id(backend.config, from_key(job_id))
            state = found and job_state(backend.config, found, backend.plugins, system_clock())
            if not state:
                raise http_error(404, f"There is no job {printable(from_key(job_id))}.")
            return {
                "job": state,
                "is_successful": state.status in backend.config.retention.statuses.successful,
            }

        if not job_id:  # a form that was sent empty
            return RedirectResponse("/jobs", 303)
        return await pages.show(request, "job", values)

    @router.get("/plan")
    async def plan(request: Request, number: int = Query(1, ge=1, le=1_000_000)) -> Response:
        async def make(caller: Caller) -> bytes:
            document = await cache.get("plan", lambda: plan_document(backend), PLAN_FRESH_SECONDS)
            summary, jobs = plan_summary(document)
            first = (number - 1) * _ROWS
            return pages.render(
                "plan",
                caller=caller,
                plan=summary,
                jobs=jobs[first : first + _ROWS],
                number=number,
                has_more=len(jobs) > first + _ROWS,
                most=MOST_PLANNED,
                successful=backend.config.retention.statuses.successful,
            )

        return await pages.respond(request, make)

    @router.get("/trash")
    async def trash(request: Request, q: str = "", after: str | None = None) -> Response:
        def values(_: Caller) -> dict[str, Any]:
            with open_ledger(backend.config) as ledger:
                jobs, size_bytes, _first = ledger.trash_summary() if ledger else (0, 0, None)
                found = ledger.trash_page(from_key(q.strip()), after, _ROWS) if ledger else ([], None)
            return {
                "jobs": jobs,
                "size_bytes": size_bytes,
                "trash": found[0],
                "next": found[1],
                "q": q.strip(),
                "is_first": after is None,
            }

        return await pages.show(request, "trash", values)


def _add_run_pages(router: APIRouter, pages: Pages) -> None:
    backend = pages.context.backend

    @router.get("/runs")
    async def runs(request: Request, before: str = "") -> Response:
        def values(_: Caller) -> dict[str, Any]:
            now = system_clock()
            with open_ledger(backend.config) as ledger:
                if ledger is None:
                    return {"runs": [], "next": None, "chart": None, "is_first": True}
                found = ledger.runs_before(before, _ROWS + 1) if before else ledger.runs(_ROWS + 1)
                amounts = [] if before else ledger.amounts_since(now - timedelta(days=_CHART_DAYS))
            return {
                "runs": [run_document(run) for run in found[:_ROWS]],
                "next": found[_ROWS - 1].id if len(found) > _ROWS else None,
                "chart": bar_chart(amounts, now, _CHART_DAYS),
                "is_first": not before,
            }

        return await pages.show(request, "runs", values)

    @router.get("/runs/{run_id}")
    async def run(request: Request, run_id: str, after: int = Query(0, ge=0, lt=2**63)) -> Response:
        def values(_: Caller) -> dict[str, Any]:
            with open_ledger(backend.config) as ledger:
                found = ledger.runs(2, run_id) if ledger else []
                record = next((run for run in found if run.id == run_id), None)
                if record is None or ledger is None:
                    raise http_error(404, f"There is no run {printable(run_id)}.")
                failed = [] if after else ledger.failed_entries(run_id, _DETAILS)
                details, rest = ledger.log_page(run_id, after, _DETAILS)
            return {
                "status": {"run": None} if record.finished_at else backend.overview(),
                "run": run_document(record),
                "policy": record.policy,
                "host": record.host,
                "failed": failed,
                "details": details,
                "next": rest,
                "is_first": not after,
            }

        return await pages.show(request, "run", values)


def _add_other_pages(router: APIRouter, pages: Pages) -> None:
    backend = pages.context.backend

    @router.get("/audit")
    async def audit(request: Request, q: str = "", before: int | None = None) -> Response:
        def values(_: Caller) -> dict[str, Any]:
            block = getattr(backend.config.notifications, "audit_log", None)
            page = AuditPage((), None, is_partial=False)
            if block is not None and block.enabled:
                try:
                    page = read_page(block.path, before, q.strip(), _ROWS)
                except OSError as error:
                    raise AuditError(f"The audit log is not readable: {error.strerror}.") from error
            return {
                "is_enabled": block is not None and block.enabled,
                "page": page,
                "lines": [_audit_line(entry) for entry in page.entries],
                "q": q.strip(),
                "is_first": before is None,
            }

        return await pages.show(request, "audit", values)

    @router.get("/config")
    async def config(request: Request, q: str = "", changed: str = "") -> Response:
        def values(_: Caller) -> dict[str, Any]:
            status = backend.overview()
            wanted = q.strip().lower()
            shown = [
                setting
                for setting in settings(backend.loaded)
                if wanted in setting[0].lower() and not (changed and setting[2] == "default")
            ]
            return {"settings": shown, "status": status, "q": q.strip(), "changed": bool(changed)}

        return await pages.show(request, "config", values)


def _audit_line(entry: dict[str, Any]) -> dict[str, str]:
    """Return what a line of the audit log says, whatever its values are: other programs can write there."""
    details = entry.get("details")
    if isinstance(details, dict):
        pairs = ((name, value) for name, value in details.items() if value is not None)
        details = ", ".join(
            f"{name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in pairs
        )
    at = str(entry.get("timestamp"))
    with suppress(ValueError, OverflowError):
        at = f"{datetime.fromisoformat(at).astimezone():%Y-%m-%d %H:%M:%S %z}"
    texts = {
        "seq": entry.get("seq"),
        "at": at,
        "user": entry.get("user"),
        "action": entry.get("action"),
        "address": entry.get("ip_address") or "",
        "details": details,
    }
    return {name: _cut(str(text)) for name, text in texts.items()}


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} …"
