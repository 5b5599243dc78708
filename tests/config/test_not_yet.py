"""Nothing silently does nothing: what this version cannot do is told, or refused where it protects data."""

from __future__ import annotations

import pytest

from eemtcleanupd.config.not_yet import NOT_YET, NotYet
from eemtcleanupd.plugins import schema
from tests.config.conftest import LoadText

FIELDS = schema().fields

ASKING = {
    "performance.executor": ("performance: {executor: dask}", "dask"),
    "performance.io_priority": ("performance: {io_priority: idle}", "idle"),
    "performance.max_deletes_per_second": ("performance: {max_deletes_per_second: 50}", "50"),
}
IDLE = """
schedule: {enabled: true, cron: '@daily', catch_up: false}
paths: {database: ./jobs.db}
performance: {executor: threads, io_priority: best-effort, max_deletes_per_second: 0}
pressure: {enabled: false, high_watermark_percent: 95}
backup: {enabled: false, path: /b}
api: {enabled: false}
metrics: {textfile: null}
plugins: []
notifications: {email: {enabled: false}, slack: {enabled: false}, audit_log: {enabled: false}}
"""


@pytest.mark.parametrize("entry", NOT_YET, ids=lambda entry: entry.key)
def test_what_asks_for_something_missing_is_told(load_text: LoadText, entry: NotYet) -> None:
    text, value = ASKING[entry.key]
    assert load_text(text).warnings == (
        f"{entry.key}: {value} has no effect in this version ({entry.missing})",
    )


def test_every_entry_is_a_key() -> None:
    assert {each.key for each in NOT_YET} <= set(FIELDS)


def test_what_asks_for_nothing_is_no_matter(load_text: LoadText) -> None:
    assert load_text(IDLE).warnings == ()


def test_defaults_are_no_matter(load_text: LoadText) -> None:
    assert load_text().warnings == ()
