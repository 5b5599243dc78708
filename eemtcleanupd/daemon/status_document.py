"""The status document: state of daemon and job store for ``status --json``, the API and the dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from typing import Any

from eemtcleanupd.clock import system_clock
from eemtcleanupd.config import Config
from eemtcleanupd.daemon.status import DaemonStatus, RunStatus, read_progress
from eemtcleanupd.daemon.store_queries import StoreQueries
from eemtcleanupd.formatting import space
from eemtcleanupd.model import Outcome
from eemtcleanupd.policy.capacity import Budget
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.lock import Holder
from eemtcleanupd.store.outbox import DeliveryStats, delivery_stats
from eemtcleanupd.store.runs import RunRecord


def overview(config: Config, holder: Holder | None, status: DaemonStatus | None) -> dict[str, Any]:
    """Return the status document; times are aware UTC in ISO 8601, sizes are bytes.

    ``holder`` is the daemon that runs, if any; ``status`` is its status, where it can be read.

    Raises:
        StoreError: the job database cannot be read.
    """
    with closing(StoreAddress.of(config).open()) as database:
        ledger = Ledger(database)
        has_ledger = ledger.exists()
        last = ledger.last_cleanup() if has_ledger else None
        by_class = ledger.storage_by_class() if has_ledger else {}
        trash_jobs, trash_bytes, next_purge = ledger.trash_summary() if has_ledger else (0, 0, None)
        acknowledged = ledger.count_acknowledgements() if has_ledger else 0
        deliveries = delivery_stats(database) if has_ledger else {}
        active = holder if database.file is not None else database.holder("daemon")
        run_holder = database.holder("run")
    document = daemon_document(holder, status)
    if document["run"] is None:  # a run without the daemon
        document["run"] = _run_status(read_progress(StoreAddress.of(config), run_holder))
    return {
        **document,
        "active": None
        if active is None
        else {"pid": active.pid, "host": active.host, "since": iso(active.began_at)},
        "dry_run": config.dry_run if status is None else status.dry_run,
        "last_run": None if last is None else run_document(last),
        "last_refusal": _last_failure(status, last),
        "storage": _storage(config, by_class),
        "capacity": _capacity(config, by_class if has_ledger else None),
        "acknowledged": acknowledged,
        "trash": {"jobs": trash_jobs, "bytes": trash_bytes, "next_purge": iso(next_purge)},
        "notifiers": _notifiers(config, deliveries, () if status is None else status.unresponsive),
    }


def daemon_document(holder: Holder | None, status: DaemonStatus | None) -> dict[str, Any]:
    """Return the part of the status document that needs neither the configuration nor the database."""
    return {
        "running": holder is not None,
        "pid": None if holder is None else holder.pid,
        "host": None if holder is None else holder.host,
        "state": None if status is None else status.state,
        "role": None if holder is None else "active" if status is None else status.role,
        "active": None,
        "beat_at": iso(None if status is None else status.heartbeat_at),
        "started_at": iso(None if status is None else status.started_at),
        "next_run": iso(None if status is None else status.next_run_at),
        "schedule": None if status is None else status.schedule,
        "dry_run": None if status is None else status.dry_run,
        "run": None if status is None else _run_status(status.run),
        "last_run": None,
        "last_refusal": None if status is None else status.last_error,
        "storage": None,
        "capacity": None,
        "acknowledged": None,
        "trash": None,
        "notifiers": None,
        "config": {
            "file": None if status is None else status.config_file,
            "loaded_at": iso(None if status is None else status.config_loaded_at),
            "attempted_at": iso(None if status is None else status.config_attempted_at),
            "error": None if status is None else status.config_error,
        },
    }


def _run_status(run: RunStatus | None) -> dict[str, Any] | None:
    return None if run is None else asdict(run) | {"started_at": iso(run.started_at)}


def _last_failure(status: DaemonStatus | None, last: RunRecord | None) -> str | None:
    """Return why the last run failed: the daemon knows it even if the ledger could not be written.

    The ledger also knows the runs without the daemon, one of which can be newer than the daemon's failure.
    """
    if status is not None and status.last_error:
        failed_at = status.last_error_at
        if last is None or failed_at is None or last.started_at <= failed_at:
            return status.last_error
    return last.error if last is not None and last.outcome in Outcome.unsuccessful() else None


def run_document(run: RunRecord) -> dict[str, Any]:
    """Return a run of the ledger as a document."""
    return {
        "run_id": run.id,
        "trigger": run.trigger,
        "user": run.user,
        "started_at": iso(run.started_at),
        "finished_at": iso(run.finished_at),
        "outcome": run.outcome,
        "successful": run.successful,
        "failed": run.failed,
        "errors": run.errors,
        "bytes_freed": run.bytes_freed,
        "bytes_trashed": run.bytes_trashed or 0,
        "purge_after": iso(run.purge_after),
        "error": run.error,
        # As in the document of a run that `clean --json` and the API return.
        "cleaned_jobs": {"successful": run.successful, "failed": run.failed},
        "space_freed": space(run.bytes_freed),
        "error_count": run.errors,
    }


def iso(moment: datetime | None) -> str | None:
    """Return a time in ISO 8601, to the second."""
    return None if moment is None else moment.isoformat(timespec="seconds")


def _notifiers(
    config: Config, deliveries: Mapping[str, DeliveryStats], unresponsive: tuple[str, ...]
) -> dict[str, Any]:
    """Return the state of each notifier that is enabled or has deliveries."""
    enabled = {
        name
        for name in type(config.notifications).model_fields
        if (block := getattr(config.notifications, name)) is not None and block.enabled
    }
    document: dict[str, Any] = {}
    for name in sorted(enabled | set(deliveries)):
        stats = deliveries.get(name, DeliveryStats())
        document[name] = {
            "enabled": name in enabled,
            "delivered": stats.delivered,
            "retried": stats.retried,
            "failed": stats.failed,
            "dropped": stats.dropped,
            "waiting": stats.waiting,
            "unresponsive": name in unresponsive,
            "last_delivered_at": iso(stats.last_delivered_at),
            "last_error": stats.last_error,
            "last_error_at": iso(stats.last_error_at),
            "next_attempt_at": iso(stats.next_attempt_at),
        }
    return document


def _storage(config: Config, by_class: dict[str, tuple[int, int]]) -> dict[str, Any]:
    usage = StoreQueries(system_clock).usage(config)
    return {
        "by_status": {name: {"jobs": jobs, "bytes": size} for name, (jobs, size) in sorted(by_class.items())},
        "total_bytes": None if usage is None else usage.total_bytes,
        "used_bytes": None if usage is None else usage.used_bytes,
        "free_bytes": None if usage is None else usage.free_bytes,
        "used_percent": None if usage is None else round(usage.used_percent, 1),
    }


def _capacity(config: Config, by_class: dict[str, tuple[int, int]] | None) -> dict[str, Any] | None:
    """Return the use of the budget; None without a budget, and no usage before the first run."""
    budget = Budget.of(config.capacity)
    if budget is None:
        return None
    held = None if by_class is None else sum(size for _, size in by_class.values())
    return {
        "max_bytes": budget.max_bytes,
        "warn_percent": budget.warn_percent,
        "held_bytes": held,
        "used_percent": None if held is None else round(budget.used_percent(held), 1),
    }
