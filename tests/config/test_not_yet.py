"""Nothing silently does nothing: what this version cannot do is told, or refused where it protects data."""

from __future__ import annotations

import pytest

from eemtcleanupd.config.not_yet import NOT_YET
from eemtcleanupd.plugins import schema
from tests.config.conftest import LoadText, RefuseText

FIELDS = schema().fields

ASKING = {
    "performance.executor": ("performance: {executor: dask}", "dask"),
    "performance.io_priority": ("performance: {io_priority: idle}", "idle"),
    "performance.max_deletes_per_second": ("performance: {max_deletes_per_second: 50}", "50"),
    "backup.enabled": ("backup: {enabled: true}", "true"),
    "api.enabled": ("api: {enabled: true}", "true"),
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
def test_what_asks_for_something_missing_is_told(
    load_text: LoadText, refuse_text: RefuseText, entry: object
) -> None:
    assert entry in NOT_YET
    each = NOT_YET[NOT_YET.index(entry)]
    text, value = ASKING[each.key]
    if each.protects:
        message = refuse_text(text)
        assert message.startswith("FILE:1:")
        assert f"{each.key}: {value} is not possible in this version ({each.missing})" in message
    else:
        assert load_text(text).warnings == (
            f"{each.key}: {value} has no effect in this version ({each.missing})",
        )


def test_what_protects_data_is_refused() -> None:
    assert {each.key for each in NOT_YET if each.protects} == {"backup.enabled"}


def test_every_entry_is_a_key() -> None:
    assert {each.key for each in NOT_YET} <= set(FIELDS)


def test_what_asks_for_nothing_is_no_matter(load_text: LoadText) -> None:
    assert load_text(IDLE).warnings == ()


def test_defaults_are_no_matter(load_text: LoadText) -> None:
    assert load_text().warnings == ()
