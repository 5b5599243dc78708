"""The values that each key accepts and refuses."""

from __future__ import annotations

import pytest

from eemtcleanupd.plugins import schema
from tests.config.conftest import LoadText, RefuseText

FIELDS = schema().fields


@pytest.mark.parametrize(
    "text",
    [
        "retention: {successful_jobs: {hours: 0}}",
        "retention: {failed_jobs: {hours: 0.5}}",
        "retention: {overrides: [{workflow_type: eemt, successful_hours: 336, failed_hours: 24}]}",
        "retention: {overrides: [{workflow_type: a, failed_hours: 2}, {workflow_type: b, failed_hours: 1}]}",
        "retention: {statuses: {live: [], failed: []}}",
        "schedule: {cron: 0 2 * * *}",
        "schedule: {cron: ['*/15 8-18 * * MON-FRI', '0 0 L * *']}",
        "schedule: {cron: '@daily', timezone: Europe/Berlin}",
        "performance: {max_workers: 256, batch_size: 1}",
        "performance: {max_workers: auto, auto_max_workers: 1, nice: 19, io_priority: idle}",
        "performance: {max_bytes_per_second: 200M, max_deletes_per_second: 5, truncate_chunk: 1G}",
        (
            "performance: {executor: dask, dask: {scheduler: 'tls://[::1]:1',"
            " tls_ca_file: a, tls_cert_file: b, tls_key_file: c}}"
        ),
        "safety: {max_fraction: 1}",
        "safety: {max_fraction: 0.0}",
        "orphans: {delete_after_hours: 720}",
        "pressure: {high_watermark_percent: 50, low_watermark_percent: 49.5}",
        "api: {listen: 'unix:/run/eemtcleanupd/api.sock'}",
        "api: {listen: '[::1]:5001'}",
        "logging: {level: debug, format: json}",
    ],
)
def test_a_valid_value_is_accepted(load_text: LoadText, text: str) -> None:
    assert load_text(text).warnings == ()


@pytest.mark.parametrize(
    ("text", "key", "detail"),
    [
        ("retention: {successful_jobs: {hours: -1}}", "successful_jobs.hours", "0"),
        ("retention: {successful_jobs: {hours: .nan}}", "successful_jobs.hours", "finite"),
        ("retention: {failed_jobs: {hours: .inf}}", "failed_jobs.hours", "finite"),
        ("retention: {failed_jobs: {hours: 1e9}}", "failed_jobs.hours", "1000000000"),
        ("retention: {failed_jobs: {hours: 1000001}}", "failed_jobs.hours", "1e+06"),
        ("retention: {failed_jobs: {hours: true}}", "failed_jobs.hours", "true"),
        ("retention: {failed_jobs: {hours: [1]}}", "failed_jobs.hours", "list"),
        ("retention: {failed_jobs: {hours: }}", "failed_jobs.hours", "number"),
        ("retention: {failed_jobs: {keep_metadata: false}}", "failed_jobs.keep_metadata", "true"),
        ("retention: {successful_jobs: {keep_metadata: false}}", "successful_jobs.keep_metadata", "true"),
        ("retention: {successful_jobs: {keep_last: -1}}", "keep_last", "0"),
        ("retention: {successful_jobs: {keep_last: 1.5}}", "keep_last", "whole number"),
        ("retention: {log_patterns: ['logs/*.log']}", "log_patterns[0]", "slash"),
        ("retention: {statuses: {successful: []}}", "statuses.successful", "entry"),
        ("retention: {statuses: {successful: ['']}}", "statuses.successful[0]", "empty"),
        ("retention: {statuses: {successful: [timeout]}}", "retention.statuses", "timeout"),
        ("retention: {overrides: [{workflow_type: a}]}", "overrides[0]", "successful_hours"),
        ("retention: {overrides: [{failed_hours: 1}]}", "overrides[0].workflow_type", "missing"),
        (
            "retention: {overrides: [&x {workflow_type: b7, failed_hours: 1}, *x]}",
            "retention.overrides",
            "b7",
        ),
        ("schedule: {cron: 0 2 * *}", "schedule.cron[0]", "five"),
        ("schedule: {cron: 0 0 2 * * *}", "schedule.cron[0]", "five"),
        ("schedule: {cron: 61 2 * * *}", "schedule.cron[0]", "minute"),
        ("schedule: {cron: '@reboot'}", "schedule.cron[0]", "run_on_start"),
        ("schedule: {cron: []}", "schedule.cron", "entry"),
        ("schedule: {timezone: Mars/Olympus}", "schedule.timezone", "Mars/Olympus"),
        ("database: {timezone: ../../etc/passwd}", "database.timezone", "../../etc/passwd"),
        ("database: {busy_timeout_seconds: -1}", "busy_timeout_seconds", "0"),
        ("ha: {takeover_seconds: 2}", "ha.takeover_seconds", "3"),
        ("performance: {batch_size: 0}", "batch_size", "1"),
        ("performance: {max_workers: 0}", "max_workers", "1"),
        ("performance: {max_workers: 100000}", "max_workers", "256"),
        ("performance: {max_workers: many}", "max_workers", "auto"),
        ("performance: {auto_max_workers: 0}", "auto_max_workers", "1"),
        ("performance: {nice: -1}", "nice", "0"),
        ("performance: {truncate_chunk: 10}", "truncate_chunk", "1M"),
        ("performance: {max_bytes_per_second: lots}", "max_bytes_per_second", "lots"),
        ("performance: {dask: {scheduler: 'tcp://x:8786'}}", "dask.scheduler", "tls://"),
        ("performance: {executor: dask}", "performance", "dask.tls_ca_file"),
        ("performance: {executor: fork}", "executor", "'threads' or 'dask'"),
        ("performance: {executor: processes}", "executor", "'threads' or 'dask'"),
        ("safety: {max_fraction: 1.01}", "max_fraction", "1"),
        ("safety: {max_fraction: -0.1}", "max_fraction", "0"),
        ("pressure: {high_watermark_percent: 70}", "low_watermark_percent", "70"),
        ("pressure: {high_watermark_percent: 101}", "high_watermark_percent", "100"),
        ("api: {listen: localhost}", "api.listen", "localhost"),
        ("api: {listen: 'localhost:70000'}", "api.listen", "localhost:70000"),
        ("paths: {results: ''}", "paths.results", "empty"),
        ('paths: {results: "a\\0b"}', "paths.results", "NUL"),
        ("paths: {database: '  '}", "paths.database", "empty"),
        ("notifications: {email: {enabled: true}}", "notifications.email", "recipients"),
        ("notifications: {slack: {enabled: true}}", "notifications.slack", "webhook_url"),
        ("plugins: mine", "plugins", "mine"),
        ("plugins: [a.b, '']", "plugins[0]", "a.b"),
        ("plugins: ['']", "plugins[0]", "empty"),
        ("blocked_plugins: [slack, '']", "blocked_plugins[1]", "empty"),
    ],
)
def test_an_invalid_value_is_refused(refuse_text: RefuseText, text: str, key: str, detail: str) -> None:
    place, _, message = refuse_text(text).partition(f"{key}: ")
    assert place.startswith("FILE:1:")
    assert detail in message


def test_nicknames_of_crontab_become_five_fields(load_text: LoadText) -> None:
    assert load_text("schedule: {cron: ['@weekly', '0  2 * * *']}").config.schedule.cron == (
        "0 0 * * 0",
        "0 2 * * *",
    )


def test_an_empty_block_has_its_defaults(load_text: LoadText) -> None:
    assert load_text("retention:\n  failed_jobs:\nnotifications:\n").config.retention.failed_jobs.hours == 12


def test_every_key_is_described() -> None:
    assert [key for key, field in FIELDS.items() if not field.description] == []
