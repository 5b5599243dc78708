"""Error messages: place, key, the invalid value, the expected value, and the probably intended key."""

from __future__ import annotations

import pytest

from eemtcleanupd.config import Config
from tests.config.conftest import RefuseText


@pytest.mark.parametrize(
    ("text", "start", "details"),
    [
        (
            "retention:\n  sucessful_jobs:\n    hours: 5\n",
            "FILE:2:3: retention.sucessful_jobs: ",
            ["mean successful_jobs?", "failed_jobs"],
        ),
        (
            "hours: 5\n",
            "FILE:1:1: hours: ",
            ["mean retention.successful_jobs.hours or retention.failed_jobs.hours?", *Config.model_fields],
        ),
        ("notifications:\n  teams: {}\n", "FILE:2:3: notifications.teams: ", ["mean email?", "slack"]),
        (
            "retention:\n  failed_jobs:\n    hours: twelve\n",
            "FILE:3:12: retention.failed_jobs.hours: ",
            ["'twelve'", "number"],
        ),
        ("paths: ./data\n", "FILE:1:8: paths: ", ["database, uploads, "]),
        (
            "retention:\n  overrides:\n    - {workflow_type: a, failed_hours: -2}\n",
            "FILE:3:40: retention.overrides[0].failed_hours: ",
            ["-2", "0"],
        ),
    ],
)
def test_an_error_has_place_key_found_value_and_expected_value(
    refuse_text: RefuseText, text: str, start: str, details: list[str]
) -> None:
    message = refuse_text(text)
    assert message.startswith(start)
    for detail in details:
        assert detail in message


def test_the_message_of_a_validator_ends_with_a_full_stop(refuse_text: RefuseText) -> None:
    assert refuse_text("performance: {truncate_chunk: x}").endswith(".")
