"""The data of the dashboard's pages, read from the backend and the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from eemtcleanupd.cleanup.session import held_jobs
from eemtcleanupd.clock import system_clock
from eemtcleanupd.config import Config, Loaded
from eemtcleanupd.daemon.status_document import run_document
from eemtcleanupd.events import StoragePoint
from eemtcleanupd.policy.forecast import forecast
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.history import LogEntry
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.runs import RunRecord
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.context import open_ledger
from eemtcleanupd.web.routes.queries import run_with_details

_MAX_JOBS, _MAX_RUNS, _MAX_ERRORS, _MAX_DETAILS = 100, 15, 5, 1000
_CHART_WIDTH, _CHART_HEIGHT = 600, 120


class DashboardData:
    """Collects the values of the dashboard page."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._errors: dict[str, list[LogEntry]] = {}

    def dashboard(self, plan: bytes | None) -> dict[str, Any]:
        """Return all values of the page; ``plan`` is the next run's dry run as JSON, None if not known yet.

        Raises:
            StoreError: the job database cannot be read.
        """
        config = self._backend.config
        status = self._backend.overview()
        summary, jobs = (None, []) if plan is None else _largest_first(plan)
        values: dict[str, Any] = {
            "status": status,
            "plan": summary,
            "jobs": jobs,
            "runs": [],
            "holds": [],
            "trash": [],
            "successful": config.retention.statuses.successful,
            "free_chart": None,
            "used_chart": None,
            "full_at": None,
            "policy": str(Policy.from_config(config.retention)),
            "settings": _settings(self._backend.loaded),
            "database": Path(config.paths.database).name,
        }
        with open_ledger(config) as ledger:
            if ledger is not None:
                values["runs"] = [
                    {**run_document(run), "failed_jobs": self._errors_of(ledger, run)}
                    for run in ledger.runs(_MAX_RUNS)
                ]
                values["holds"] = held_jobs(config, ledger)[:_MAX_JOBS]
                values["trash"] = ledger.trashed(limit=_MAX_JOBS)
                usage = status["storage"]
                if usage["total_bytes"] is not None:
                    state = ledger.storage_state(system_clock(), usage["free_bytes"], usage["total_bytes"])
                    trend = state.trend
                    values["free_chart"] = _chart(trend, [point.free_bytes for point in trend])
                    values["used_chart"] = _chart(trend, [point.used_bytes for point in trend])
                    full = forecast([(point.at, point.free_bytes) for point in trend])
                    values["full_at"] = full and full.at
        return values

    def _errors_of(self, ledger: Ledger, run: RunRecord) -> list[LogEntry]:
        """Return the first errors of a finished run; they are read once."""
        if not (run.errors and run.finished_at):
            return []
        if run.id not in self._errors:
            failed = (entry for entry in ledger.log_entries(run.id) if entry.action == "failed")
            if len(self._errors) > 10 * _MAX_RUNS:
                self._errors.clear()
            self._errors[run.id] = list(islice(failed, _MAX_ERRORS))
        return self._errors[run.id]


def run_page_data(config: Config, run_id: str) -> dict[str, Any]:
    """Return the values of a run's page.

    Raises:
        HTTPException: 404, there is no such run.
        StoreError: the job database cannot be read.
    """
    with open_ledger(config) as ledger:
        run = run_with_details(ledger, run_id, _MAX_DETAILS)
    details = sorted(
        run["details"],
        key=lambda entry: (entry["action"] != "failed", -entry["bytes_freed"] - entry["bytes_trashed"]),
    )
    return {"run": run, "details": details, "is_cut": len(details) == _MAX_DETAILS}


@lru_cache(maxsize=1)
def _largest_first(plan: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the plan without its jobs, and its largest jobs; the same plan is parsed once."""
    document = json.loads(plan)
    jobs = sorted(
        document["details"], key=lambda job: -(job["space_freed_bytes"] + job["space_trashed_bytes"])
    )
    summary = {key: document[key] for key in ("cleaned_jobs", "space_freed", "space_trashed", "finished_at")}
    return {**summary, "jobs": len(jobs)}, jobs[:_MAX_JOBS]


def _settings(loaded: Loaded) -> Iterator[tuple[str, str, str]]:
    for setting in loaded.settings():
        value = setting.value
        yield setting.key, value if isinstance(value, str) else json.dumps(value), setting.origin


def _chart(points: Sequence[StoragePoint], values: Sequence[int]) -> dict[str, Any] | None:
    """Return a line over time and the area below it, None for less than two points."""
    if len(points) < 2:
        return None
    since: datetime = points[0].at
    span = (points[-1].at - since).total_seconds() or 1
    top = max(values) or 1
    xs = [_CHART_WIDTH * (point.at - since).total_seconds() / span for point in points]
    ys = [_CHART_HEIGHT * (1 - 0.94 * value / top) for value in values]  # leaves space above the maximum
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    return {
        "line": line,
        "area": f"0,{_CHART_HEIGHT} {line} {_CHART_WIDTH},{_CHART_HEIGHT}",
        "first": values[0],
        "last": values[-1],
        "top": max(values),
        "since": since,
        "until": points[-1].at,
        "width": _CHART_WIDTH,
        "height": _CHART_HEIGHT,
    }
