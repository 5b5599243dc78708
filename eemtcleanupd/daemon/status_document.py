"""How the daemon and the job store are, as one document, for ``status --json`` and the dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from eemtcleanupd.clock import system_clock
from eemtcleanupd.config import Config
from eemtcleanupd.daemon.status import DaemonStatus
from eemtcleanupd.daemon.store_queries import StoreQueries
from eemtcleanupd.policy.capacity import Budget
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.lock import Holder
from eemtcleanupd.store.outbox import DeliveryStats, delivery_stats
from eemtcleanupd.store.runs import RunRecord


def overview(config: Config, holder: Holder | None, told: DaemonStatus | None) -> dict[str, Any]:
    """Return all there is to say; times are aware UTC in ISO 8601, sizes bytes."""
    database = StoreAddress.of(config).open()
    try:
        ledger = Ledger(database)
        has_ledger = ledger.is_current()
        last = ledger.runs(1)[:1] if has_ledger else []
        by_class = ledger.storage_by_class() if has_ledger else {}
        waiting, waiting_bytes, first_goes = ledger.trash_summary() if has_ledger else (0, 0, None)
        told_by = delivery_stats(database) if has_ledger else {}
        active = holder if database.file is not None else database.holder("daemon")
    finally:
        database.close()
    return {
        "running": holder is not None,
        "pid": None if holder is None else holder.pid,
        "host": None if holder is None else holder.host,
        "state": None if told is None else told.state,
        "role": None if holder is None else "active" if told is None else told.role,
        "active": None if active is None else {"pid": active.pid, "host": active.host, "since": active.since},
        "beat_at": iso(None if told is None else told.heartbeat_at),
        "started_at": iso(None if told is None else told.started_at),
        "next_run": iso(None if told is None else told.next_run_at),
        "schedule": None if told is None else told.schedule,
        "dry_run": config.dry_run if told is None else told.dry_run,
        "run": None
        if told is None or told.run is None
        else {
            "trigger": told.run.trigger,
            "started_at": iso(told.run.started_at),
            "jobs_done": told.run.jobs_done,
            "jobs_total": told.run.jobs_total,
            "bytes_freed": told.run.bytes_freed,
        },
        "last_run": run_document(last[0]) if last else None,
        "last_refusal": None if told is None else told.last_error,
        "storage": _storage(config, by_class),
        "capacity": _capacity(config, by_class if has_ledger else None),
        "trash": {"jobs": waiting, "bytes": waiting_bytes, "next_purge": iso(first_goes)},
        "notifiers": _notifiers(config, told_by, told),
        "config": {
            "file": None if told is None else told.config_file,
            "loaded_at": iso(None if told is None else told.config_loaded_at),
            "attempted_at": iso(None if told is None else told.config_attempted_at),
            "error": None if told is None else told.config_error,
        },
    }


def _notifiers(
    config: Config, told_by: Mapping[str, DeliveryStats], told: DaemonStatus | None
) -> dict[str, Any]:
    """Return how each notifier is that is switched on, or that has had something to tell."""
    switched_on = {
        name
        for name in type(config.notifications).model_fields
        if (block := getattr(config.notifications, name)) is not None and block.enabled
    }
    document: dict[str, Any] = {}
    for name in sorted(switched_on | set(told_by)):
        tally = told_by.get(name, DeliveryStats())
        document[name] = {
            "enabled": name in switched_on,
            "delivered": tally.delivered,
            "retried": tally.retried,
            "failed": tally.failed,
            "dropped": tally.dropped,
            "waiting": tally.waiting,
            "unresponsive": told is not None and name in told.unresponsive,
            "last_delivered_at": iso(tally.last_delivered_at),
            "last_error": tally.last_error,
            "last_error_at": iso(tally.last_error_at),
        }
    return document


def run_document(run: RunRecord) -> dict[str, Any]:
    """Return a run of the ledger."""
    return {
        "run_id": run.id,
        "trigger": run.trigger,
        "started_at": iso(run.started_at),
        "finished_at": iso(run.finished_at),
        "outcome": run.outcome,
        "successful": run.successful,
        "failed": run.failed,
        "errors": run.errors,
        "bytes_freed": run.bytes_freed,
        "error": run.error,
    }


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
    """Return how much of the budget is used, None without a budget; nobody knows before the first run."""
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


def iso(moment: datetime | None) -> str | None:
    """Return a time in ISO 8601, to the second."""
    return None if moment is None else moment.isoformat(timespec="seconds")
