"""What the pages show, read from the ledger and worked out for the eye."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from eemtcleanupd.clock import system_clock
from eemtcleanupd.config import Config, Loaded
from eemtcleanupd.daemon.status_document import run_document
from eemtcleanupd.events import StoragePoint
from eemtcleanupd.policy.forecast import full_at
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.history import LogEntry
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.web.backend import Backend
from eemtcleanupd.web.context import open_ledger
from eemtcleanupd.web.routes.queries import run_with_details

_JOBS, _RUNS, _TROUBLES, _DETAILS = 100, 15, 5, 1000
_WIDTH, _HEIGHT = 600, 120


class DashboardData:
    """Works out the dashboard.

    Args:
        engine: whose.
    """

    def __init__(self, engine: Backend) -> None:
        self._engine = engine
        self._troubles: dict[str, list[LogEntry]] = {}

    def everything(self, plan: bytes | None) -> dict[str, Any]:
        """Return all that the dashboard shows.

        Args:
            plan: the next run's dry run as JSON, None when there is none yet.

        Raises:
            StoreError: the job database cannot be read.
        """
        config = self._engine.config
        how = self._engine.overview()
        told, jobs = (None, []) if plan is None else _largest_first(plan)
        values: dict[str, Any] = {
            "how": how,
            "plan": told,
            "jobs": jobs,
            "runs": [],
            "holds": [],
            "trash": [],
            "free": None,
            "held": None,
            "full_at": None,
            "policy": str(Policy.from_config(config.retention)),
            "settings": _settings(self._engine.loaded),
            "database": Path(config.paths.database).name,
        }
        with open_ledger(config) as ledger:
            if ledger is not None:
                values["runs"] = [
                    {
                        **run_document(run),
                        "troubles": self._of(ledger, run.id) if run.errors and run.finished_at else [],
                    }
                    for run in ledger.runs(_RUNS)
                ]
                values["holds"] = ledger.all_holds()[:_JOBS]
                values["trash"] = ledger.trashed(limit=_JOBS)
                usage = how["storage"]
                if usage["total_bytes"] is not None:
                    state = ledger.storage_state(system_clock(), usage["free_bytes"], usage["total_bytes"])
                    values["free"] = _chart(state.trend, [point.free_bytes for point in state.trend])
                    values["held"] = _chart(state.trend, [point.used_bytes for point in state.trend])
                    values["full_at"] = full_at([(point.at, point.free_bytes) for point in state.trend])
        return values

    def _of(self, ledger: Ledger, run_id: str) -> list[LogEntry]:
        """Return the first errors of a run that is over, which are looked for once."""
        if run_id not in self._troubles:
            failed = (entry for entry in ledger.log_entries(run_id) if entry.action == "failed")
            if len(self._troubles) > 10 * _RUNS:
                self._troubles.clear()
            self._troubles[run_id] = list(islice(failed, _TROUBLES))
        return self._troubles[run_id]


def run_page_data(config: Config, run_id: str) -> dict[str, Any]:
    """Return what the page of a run shows.

    Raises:
        HTTPException: 404, there is no such run.
        StoreError: the job database cannot be read.
    """
    with open_ledger(config) as ledger:
        run = run_with_details(ledger, run_id, _DETAILS)
    details = sorted(run["details"], key=lambda each: (each["action"] != "failed", -each["bytes_freed"]))
    return {"run": run, "details": details, "is_cut": len(details) == _DETAILS}


@lru_cache(maxsize=1)
def _largest_first(plan: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the plan without its jobs, and the largest of them; a long one is read once."""
    told = json.loads(plan)
    jobs = sorted(told.pop("details"), key=lambda job: -job["space_freed_bytes"])
    counts = {key: told[key] for key in ("cleaned_jobs", "space_freed", "finished_at")}
    return {**counts, "jobs": len(jobs)}, jobs[:_JOBS]


def _settings(loaded: Loaded) -> list[tuple[str, str, str]]:
    return [
        (each.key, each.value if isinstance(each.value, str) else json.dumps(each.value), each.origin)
        for each in loaded.settings()
    ]


def _chart(points: Sequence[StoragePoint], values: Sequence[int]) -> dict[str, Any] | None:
    """Return a line over time and the area below it; None with less than two points."""
    if len(points) < 2:
        return None
    began: datetime = points[0].at
    span = (points[-1].at - began).total_seconds() or 1
    top = max(values) or 1
    across = [_WIDTH * (point.at - began).total_seconds() / span for point in points]
    down = [_HEIGHT * (1 - 0.94 * value / top) for value in values]  # with air above the highest
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
    return {
        "line": line,
        "area": f"0,{_HEIGHT} {line} {_WIDTH},{_HEIGHT}",
        "first": values[0],
        "last": values[-1],
        "top": max(values),
        "since": began,
        "until": points[-1].at,
        "width": _WIDTH,
        "height": _HEIGHT,
    }
