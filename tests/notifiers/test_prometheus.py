"""Metrics have the documented names, add up over processes, and match the alert rules and the dashboard."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from eemtcleanupd.config.schema import MetricsConfig
from eemtcleanupd.events import ConfigReloaded, DaemonStarted, RunFinished, Total
from eemtcleanupd.model import Trigger
from eemtcleanupd.notifiers.prometheus import Prometheus
from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli
from tests.notifiers.samples import FAILED, FINISHED, NOW, report
from tests.requirements import needs

PACKAGING = Path(__file__).parents[2] / "packaging" / "prometheus"
CONTRACT = (
    "eemt_cleanup_runs_total",
    "eemt_jobs_cleaned_total",
    "eemt_space_freed_bytes_total",
    "eemt_cleanup_duration_seconds_bucket",
    "eemt_storage_usage_bytes",
)
OFF = MetricsConfig()


def samples(text: bytes | str) -> dict[str, float]:
    """Return every sample by its name and labels."""
    decoded = text.decode() if isinstance(text, bytes) else text
    values = {}
    for family in text_string_to_metric_families(decoded):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            values[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return values


def test_all_contract_metrics_exist() -> None:
    prometheus = Prometheus()
    prometheus.run_finished(FINISHED, OFF)
    names = {name.partition("{")[0] for name in samples(prometheus.exposition())}
    assert set(CONTRACT) <= names


def test_values_come_from_the_ledger_and_the_report() -> None:
    prometheus = Prometheus()
    prometheus.run_finished(FINISHED, OFF)
    values = samples(prometheus.exposition())
    assert values["eemt_cleanup_runs_total"] == 7
    assert values['eemt_jobs_cleaned_total{status="completed"}'] == 12
    assert values["eemt_storage_usage_bytes"] == 31 * 2**30
    assert values["eemt_cleanup_last_success_timestamp_seconds"] == NOW.timestamp()


def test_the_budget_metric_exists_only_with_a_budget() -> None:
    prometheus = Prometheus()
    prometheus.run_finished(FINISHED, OFF)
    assert samples(prometheus.exposition())["eemt_capacity_max_bytes"] == 60 * 2**30
    assert FINISHED.report.storage is not None
    without = replace(FINISHED.report.storage, capacity_max_bytes=None)
    prometheus.run_finished(RunFinished(report(storage=without)), OFF)
    assert b"eemt_capacity" not in prometheus.exposition()


def test_a_new_daemon_has_the_time_of_the_last_success() -> None:
    prometheus = Prometheus()
    prometheus.daemon_started(DaemonStarted(1, "gis1", None, FINISHED.report.totals, NOW), OFF)
    values = samples(prometheus.exposition())
    assert values["eemt_cleanup_last_success_timestamp_seconds"] == NOW.timestamp()
    assert values["eemt_cleanup_runs_total"] == 7


def test_reloads_and_refused_runs_are_counted() -> None:
    prometheus = Prometheus()
    prometheus.config_reloaded(ConfigReloaded("f", "SIGHUP"), OFF)
    prometheus.config_rejected(OFF)
    prometheus.run_failed(FAILED, OFF)
    values = samples(prometheus.exposition())
    assert values["eemt_cleanup_config_last_reload_successful"] == 0
    assert values['eemt_cleanup_config_reloads_total{outcome="failure"}'] == 1
    assert values["eemt_cleanup_refused_runs_total"] == 1


def test_a_run_with_errors_is_not_the_last_success() -> None:
    prometheus = Prometheus()
    prometheus.run_finished(RunFinished(report("errors", errors=1)), OFF)
    assert "eemt_cleanup_last_success_timestamp_seconds" not in samples(prometheus.exposition())


@pytest.mark.parametrize("trigger", [Trigger.TRASH, Trigger.RECOVERY])
def test_a_run_that_plans_no_jobs_is_not_the_last_success(trigger: Trigger) -> None:
    prometheus = Prometheus()
    prometheus.run_finished(RunFinished(report(trigger=trigger)), OFF)
    assert "eemt_cleanup_last_success_timestamp_seconds" not in samples(prometheus.exposition())


def test_a_hostile_status_is_escaped() -> None:
    prometheus = Prometheus()
    hostile = 'a"} 1\nevil_total 99\n\\'
    prometheus.run_finished(RunFinished(report(totals=(Total("jobs_cleaned", hostile, 3.0),))), OFF)
    families = list(text_string_to_metric_families(prometheus.exposition().decode()))
    assert "evil" not in {family.name for family in families}
    labels = [
        sample.labels
        for family in families
        if family.name == "eemt_jobs_cleaned"
        for sample in family.samples
    ]
    assert {"status": hostile} in labels


@pytest.mark.slow
def test_values_in_the_text_file_add_up_over_single_runs(run_cli: RunCli, store: JobStore) -> None:
    textfile = store.path / "metrics" / "eemt.prom"
    config = store.path / "cleanup_config.yaml"
    config.write_text(f"metrics: {{textfile: {textfile}}}\ndatabase: {{timezone: UTC}}\n")
    store.now = datetime.now(UTC)
    for number, name in enumerate(("a", "b"), start=1):
        store.job(name)
        done = run_cli("clean", cwd=store.path)
        assert done.returncode == 0, done.stderr
        values = samples(textfile.read_text())
        assert values["eemt_cleanup_runs_total"] == number
        assert values['eemt_jobs_cleaned_total{status="completed"}'] == number
        assert values['eemt_cleanup_duration_seconds_bucket{le="+Inf"}'] == number
    assert textfile.stat().st_mode & 0o777 == 0o644


def _metrics() -> set[str]:
    prometheus = Prometheus()
    prometheus.daemon_started(DaemonStarted(1, "h", NOW, FINISHED.report.totals, NOW), OFF)
    prometheus.run_finished(FINISHED, OFF)
    prometheus.config_rejected(OFF)
    text = prometheus.exposition().decode()
    names = {name.partition("{")[0] for name in samples(text)}
    return names | {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} | names


@pytest.mark.parametrize("file", ["alerts.yaml", "dashboard.json"])
def test_rules_and_dashboard_use_only_existing_metrics(file: str) -> None:
    used = set(re.findall(r"\beemt_[a-z_]+", (PACKAGING / file).read_text()))
    assert used
    assert used - _metrics() == set()


@pytest.mark.slow
@needs("promtool")
def test_promtool_accepts_the_rules_and_their_own_tests() -> None:
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(
            ["promtool", *command], cwd=PACKAGING, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


@needs("promtool")
def test_promtool_accepts_the_metrics() -> None:
    prometheus = Prometheus()
    prometheus.run_finished(FINISHED, OFF)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=prometheus.exposition(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_every_alert_has_a_description() -> None:
    rules = yaml.safe_load((PACKAGING / "alerts.yaml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert {
        "EemtCleanupNotSucceeding",
        "EemtCleanupErrors",
        "EemtCleanupConfigRejected",
        "EemtDiskFilling",
    } <= {alert["alert"] for alert in alerts}
    assert all(alert["annotations"]["description"] for alert in alerts)


def test_every_panel_of_the_dashboard_has_a_query() -> None:
    dashboard = json.loads((PACKAGING / "dashboard.json").read_text())
    assert dashboard["title"]
    assert all(panel["targets"][0]["expr"] for panel in dashboard["panels"])
