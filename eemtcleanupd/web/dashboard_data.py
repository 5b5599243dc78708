"""The data of the dashboard's pages, read from the backend and the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from eemtcleanupd.cleanup.session import held_jobs
from eemtcleanupd.clock import system_clock
from eemtcleanupd.config import Loaded
from eemtcleanupd.daemon.status_document import run_document
from eemtcleanupd.policy.forecast import forecast
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.history import LogEntry
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.runs import RunRecord
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.charts import line_chart
from eemtcleanupd.web.context import open_ledger

_MAX_JOBS, _MAX_RUNS, _MAX_ERRORS = 25, 15, 5
MOST_PLANNED = 10_000
"""How many jobs of the next run the pages list."""


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
        summary, jobs = (None, []) if plan is None else plan_summary(plan)
        values: dict[str, Any] = {
            "status": status,
            "plan": summary,
            "jobs": jobs[:_MAX_JOBS],
            "runs": [],
            "holds": [],
            "trash": [],
            "successful": config.retention.statuses.successful,
            "free_chart": None,
            "used_chart": None,
            "full_at": None,
            "policy": str(Policy.from_config(config.retention)),
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
                    values["free_chart"] = line_chart(trend, [point.free_bytes for point in trend])
                    values["used_chart"] = line_chart(trend, [point.used_bytes for point in trend])
                    full = forecast([(point.at, point.free_bytes) for point in trend])
                    values["full_at"] = full and full.at
        return values

    def _errors_of(self, ledger: Ledger, run: RunRecord) -> list[LogEntry]:
        """Return the first errors of a finished run; they are read once."""
        if not (run.errors and run.finished_at):
            return []
        if run.id not in self._errors:
            if len(self._errors) > 10 * _MAX_RUNS:
                self._errors.clear()
            self._errors[run.id] = ledger.failed_entries(run.id, _MAX_ERRORS)
        return self._errors[run.id]


@lru_cache(maxsize=1)
def plan_summary(plan: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the plan without its jobs, and its jobs, the largest first; the same plan is parsed once."""
    document = json.loads(plan)
    jobs = sorted(
        document["details"], key=lambda job: -(job["space_freed_bytes"] + job["space_trashed_bytes"])
    )
    summary = {key: document[key] for key in ("cleaned_jobs", "space_freed", "space_trashed", "finished_at")}
    return {**summary, "jobs": len(jobs)}, jobs[:MOST_PLANNED]


def settings(loaded: Loaded) -> Iterator[tuple[str, str, str]]:
    """Yield each key of the configuration in force, its value as text without secrets, and its origin."""
    for setting in loaded.settings():
        value = setting.value
        yield setting.key, value if isinstance(value, str) else json.dumps(value), setting.origin
