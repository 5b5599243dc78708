"""Notifier ``prometheus``: all metrics, for ``/metrics`` and as a file for node_exporter.

Counters come from the ledger's totals, so that they add up over single runs and restarts of the daemon.
Reloads and refused runs are counted in this process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from eemtcleanupd.config.schema import MetricsConfig
from eemtcleanupd.events import (
    DURATION_BUCKETS,
    ConfigReloaded,
    DaemonStarted,
    RunFailed,
    RunFinished,
    StorageState,
    Total,
)
from eemtcleanupd.files import open_folder, write_atomic
from eemtcleanupd.hookspecs import hookimpl
from eemtcleanupd.model import Outcome

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class Prometheus:
    """Keeps the values of all metrics; :meth:`exposition` returns them in Prometheus' text format."""

    def __init__(self) -> None:
        self._totals: tuple[Total, ...] = ()
        self._storage: StorageState | None = None
        self._last_success: datetime | None = None
        self.next_run_at: datetime | None = None
        self._refused = 0
        self._reload: tuple[bool, float] | None = None
        self._reloads: Counter[str] = Counter()
        self._pressure = 0

    @hookimpl
    def daemon_started(self, event: DaemonStarted, settings: MetricsConfig) -> None:
        self._totals = event.totals
        self._last_success = event.last_success_at
        self.next_run_at = event.next_run_at
        self._reload = (True, datetime.now(UTC).timestamp())
        self._write(settings)

    @hookimpl
    def daemon_stopping(self, settings: MetricsConfig) -> None:
        self.next_run_at = None
        self._write(settings)

    @hookimpl
    def config_reloaded(self, event: ConfigReloaded, settings: MetricsConfig) -> None:
        self.next_run_at = event.next_run_at
        self._reload = (True, datetime.now(UTC).timestamp())
        self._reloads["success"] += 1
        self._write(settings)

    @hookimpl
    def config_rejected(self, settings: MetricsConfig) -> None:
        self._reload = (False, self._reload[1] if self._reload else 0.0)
        self._reloads["failure"] += 1
        self._write(settings)

    @hookimpl
    def disk_pressure(self, settings: MetricsConfig) -> None:
        self._pressure += 1
        self._write(settings)

    @hookimpl
    def run_failed(self, event: RunFailed, settings: MetricsConfig) -> None:
        self.next_run_at = event.next_run_at
        self._refused += 1
        self._write(settings)

    @hookimpl
    def run_finished(self, event: RunFinished, settings: MetricsConfig) -> str:
        report = event.report
        if report.is_test or report.dry_run:
            return "no metrics for a test or a dry run"
        self._totals = report.totals
        self._storage = report.storage
        self.next_run_at = report.next_run_at
        if report.outcome is Outcome.SUCCESS and report.trigger.plans_jobs:
            self._last_success = report.finished_at
        return self._write(settings)

    def _write(self, settings: MetricsConfig) -> str:
        if settings.textfile is None:
            return "available at /metrics"
        with open_folder(settings.textfile.parent, create=0o777):
            pass
        write_atomic(settings.textfile, self.exposition(), mode=0o644)  # node_exporter is another user
        return f"written to {settings.textfile}"

    def update(
        self, totals: tuple[Total, ...], last_success_at: datetime | None, storage: StorageState | None
    ) -> None:
        """Put newer values of the ledger in place: those of runs without the daemon, and of deliveries."""
        self._totals, self._last_success, self._storage = totals, last_success_at, storage or self._storage

    def exposition(self) -> bytes:
        """Return all metrics as text."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric with its current value, as collectors of prometheus-client do."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        def counter(name: str, help_text: str, value: float | Mapping[str, float], label: str = "") -> Metric:
            if not isinstance(value, Mapping):
                return CounterMetricFamily(name, help_text, value=value)
            family = CounterMetricFamily(name, help_text, labels=[label])
            for key, number in value.items():
                family.add_metric([key], number)
            return family

        runs = self._by_label("runs")
        yield counter("eemt_cleanup_runs", "Total cleanup runs", sum(runs.values()))
        yield counter("eemt_cleanup_outcomes", "Cleanup runs by outcome", {"success": 0, **runs}, "outcome")
        yield counter("eemt_cleanup_refused_runs", "Runs that were refused or failed", self._refused)
        cleaned = {"completed": 0.0, "failed": 0.0, **self._by_label("jobs_cleaned")}
        yield counter("eemt_jobs_cleaned", "Total jobs cleaned", cleaned, "status")
        yield counter("eemt_space_freed_bytes", "Total space freed", self._sum("bytes_freed"))
        yield counter("eemt_cleanup_errors", "Jobs that could not be cleaned", self._sum("errors"))
        yield counter("eemt_jobs_skipped", "Jobs skipped that need attention", self._sum("skipped"))
        buckets = self._by_label("run_seconds_bucket")
        yield HistogramMetricFamily(
            "eemt_cleanup_duration_seconds",
            "Cleanup duration",
            buckets=[
                *((f"{bound:g}", buckets.get(f"{bound:g}", 0.0)) for bound in DURATION_BUCKETS),
                ("+Inf", sum(runs.values())),
            ],
            sum_value=self._sum("run_seconds"),
        )
        storage, last_success = self._storage, _seconds(self._last_success)
        for name, help_text, attribute in (
            ("eemt_storage_usage_bytes", "Current storage usage", "used_bytes"),
            ("eemt_storage_free_bytes", "Free space of the results filesystem", "free_bytes"),
            ("eemt_storage_size_bytes", "Size of the results filesystem", "total_bytes"),
            ("eemt_trash_bytes", "Size of the data in the trash", "trash_bytes"),
            ("eemt_trash_jobs", "Jobs with data in the trash", "trash_jobs"),
        ):
            yield GaugeMetricFamily(name, help_text, None if storage is None else getattr(storage, attribute))
        if storage is not None and storage.capacity_max_bytes is not None:
            yield GaugeMetricFamily(
                "eemt_capacity_max_bytes", "Storage budget of all jobs", storage.capacity_max_bytes
            )
        is_accepted, accepted_at = self._reload or (None, None)
        for name, help_text, value in (
            ("last_success_timestamp_seconds", "End of the last successful run", last_success),
            ("next_run_timestamp_seconds", "Time of the next scheduled run", _seconds(self.next_run_at)),
            (
                "config_last_reload_successful",
                "Whether the configuration file was accepted at the last reload",
                is_accepted,
            ),
            (
                "config_last_reload_success_timestamp_seconds",
                "Time of the last successful reload",
                accepted_at,
            ),
        ):
            yield GaugeMetricFamily(f"eemt_cleanup_{name}", help_text, value)
        yield counter("eemt_cleanup_config_reloads", "Reloads by outcome", dict(self._reloads), "outcome")
        yield counter("eemt_cleanup_disk_pressure", "Disk pressure events", self._pressure)
        deliveries = CounterMetricFamily(
            "eemt_cleanup_deliveries", "Messages to notifiers", labels=["notifier", "outcome"]
        )
        for label, value in self._by_label("deliveries").items():
            deliveries.add_metric(list(label.rsplit(" ", 1)), value)
        yield deliveries

    def _by_label(self, name: str) -> dict[str, float]:
        return {total.label: total.value for total in self._totals if total.name == name}

    def _sum(self, name: str) -> float:
        return sum(self._by_label(name).values())


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
