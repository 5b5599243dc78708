"""What each key accepts."""

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
def test_a_value_that_works_is_taken(load_text: LoadText, text: str) -> None:
    assert load_text(text).warnings == ()


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        (
            "retention: {successful_jobs: {hours: -1}}",
            "successful_jobs.hours",
            "-1, allowed is a number of at least 0",
        ),
        (
            "retention: {successful_jobs: {hours: .nan}}",
            "successful_jobs.hours",
            ".nan, allowed is a finite number",
        ),
        ("retention: {failed_jobs: {hours: .inf}}", "failed_jobs.hours", "finite"),
        ("retention: {failed_jobs: {hours: 1e9}}", "failed_jobs.hours", "write 1000000000"),
        ("retention: {failed_jobs: {hours: 1000001}}", "failed_jobs.hours", "at most 1e+06"),
        ("retention: {failed_jobs: {hours: true}}", "failed_jobs.hours", "found true, allowed is a number"),
        ("retention: {failed_jobs: {hours: [1]}}", "failed_jobs.hours", "found a list, allowed is a number"),
        ("retention: {failed_jobs: {hours: }}", "failed_jobs.hours", "found nothing, allowed is a number"),
        ("retention: {failed_jobs: {keep_metadata: false}}", "failed_jobs.keep_metadata", "kept for ever"),
        ("retention: {successful_jobs: {keep_metadata: false}}", "keep_metadata", "kept for ever"),
        ("retention: {successful_jobs: {keep_last: -1}}", "keep_last", "at least 0"),
        ("retention: {successful_jobs: {keep_last: 1.5}}", "keep_last", "a whole number"),
        ("retention: {log_patterns: ['logs/*.log']}", "log_patterns[0]", "slash"),
        ("retention: {statuses: {successful: []}}", "statuses.successful", "needs an entry"),
        ("retention: {statuses: {successful: ['']}}", "statuses.successful[0]", "not empty"),
        ("retention: {statuses: {successful: [timeout]}}", "retention.statuses", "timeout is listed twice"),
        (
            "retention: {overrides: [{workflow_type: a}]}",
            "overrides[0]",
            "give successful_hours, failed_hours",
        ),
        ("retention: {overrides: [{failed_hours: 1}]}", "overrides[0].workflow_type", "missing"),
        (
            "retention: {overrides: [&x {workflow_type: a, failed_hours: 1}, *x]}",
            "retention.overrides",
            "a is listed twice",
        ),
        ("schedule: {cron: 0 2 * *}", "schedule.cron", "five fields"),
        ("schedule: {cron: 0 0 2 * * *}", "schedule.cron", "five fields"),
        ("schedule: {cron: 61 2 * * *}", "schedule.cron", "bad minute"),
        ("schedule: {cron: '@reboot'}", "schedule.cron", "run_on_start"),
        ("schedule: {cron: []}", "schedule.cron", "needs an entry"),
        ("schedule: {timezone: Mars/Olympus}", "schedule.timezone", "no such time zone"),
        ("database: {timezone: ../../etc/passwd}", "database.timezone", "no such time zone"),
        ("database: {busy_timeout_seconds: -1}", "busy_timeout_seconds", "at least 0"),
        ("performance: {batch_size: 0}", "batch_size", "at least 1"),
        ("performance: {max_workers: 0}", "max_workers", "at least 1"),
        ("performance: {max_workers: 100000}", "max_workers", "at most 256"),
        ("performance: {max_workers: many}", "max_workers", "or auto"),
        ("performance: {auto_max_workers: 0}", "auto_max_workers", "at least 1"),
        ("performance: {nice: -1}", "nice", "at least 0"),
        ("performance: {truncate_chunk: 10}", "truncate_chunk", "a step is 1M at least"),
        ("performance: {max_bytes_per_second: lots}", "max_bytes_per_second", "is not a size"),
        ("performance: {dask: {scheduler: 'tcp://x:8786'}}", "dask.scheduler", "always TLS"),
        ("performance: {executor: dask}", "performance", "needs dask.scheduler, dask.tls_ca_file"),
        ("performance: {executor: fork}", "executor", "'threads', 'processes' or 'dask'"),
        ("safety: {max_fraction: 1.01}", "max_fraction", "at most 1"),
        ("safety: {max_fraction: -0.1}", "max_fraction", "at least 0"),
        (
            "pressure: {high_watermark_percent: 70}",
            "low_watermark_percent",
            "below high_watermark_percent (70)",
        ),
        ("pressure: {high_watermark_percent: 101}", "high_watermark_percent", "at most 100"),
        ("api: {listen: localhost}", "api.listen", "host:port"),
        ("api: {listen: 'localhost:70000'}", "api.listen", "host:port"),
        ("paths: {results: ''}", "paths.results", "never empty"),
        ('paths: {results: "a\\0b"}', "paths.results", "NUL"),
        ("paths: {database: '  '}", "paths.database", "never empty"),
        ("notifications: {email: {enabled: true}}", "notifications.email", "needs recipients"),
        ("notifications: {slack: {enabled: true}}", "notifications.slack", "needs webhook_url"),
        ("plugins: mine", "plugins", "found 'mine', allowed is a list"),
        ("plugins: [a.b, '']", "plugins[0]", "the plugin a.b (ModuleNotFoundError"),
        ("plugins: ['']", "plugins[0]", "found '', allowed is text that is not empty"),
        ("blocked_plugins: [slack, '']", "blocked_plugins[1]", "found '', allowed is text that is not empty"),
    ],
)
def test_a_value_that_cannot_work_is_refused(
    refuse_text: RefuseText, text: str, key: str, words: str
) -> None:
    message = refuse_text(text)
    assert message.startswith("FILE:1:")
    assert key in message
    assert words in message


def test_names_of_crontab_stand_for_their_five_fields(load_text: LoadText) -> None:
    assert load_text("schedule: {cron: ['@weekly', '0  2 * * *']}").config.schedule.cron == (
        "0 0 * * 0",
        "0 2 * * *",
    )


def test_an_empty_block_has_its_defaults(load_text: LoadText) -> None:
    assert load_text("retention:\n  failed_jobs:\nnotifications:\n").config.retention.failed_jobs.hours == 12


def test_every_key_is_described() -> None:
    assert [key for key, field in FIELDS.items() if not field.description] == []
