"""What an incoming webhook of Slack receives, and what counts as its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from eemtcleanupd.events import Event, RunFailed, RunFinished
from eemtcleanupd.formatting import local_time
from eemtcleanupd.hookspecs import Digest
from eemtcleanupd.notifiers.http import RefusedError
from eemtcleanupd.notifiers.slack import SlackSettings, notify
from eemtcleanupd.plugins import Plugins
from tests.notifiers.samples import FAILED, FINISHED, HOSTILE_REPORT, NOW, report

Posted = Callable[[Event | Digest], dict[str, Any]]


@pytest.fixture
def posted(plugins: Callable[[str], Plugins], httpserver: HTTPServer) -> Posted:
    """Send an event, and return the JSON that arrives."""
    httpserver.expect_request("/hook").respond_with_data("ok")
    url = httpserver.url_for("/hook")
    loaded = plugins(f"notifications: {{slack: {{enabled: true, webhook_url: '{url}'}}}}")

    def post(event: Event | Digest) -> dict[str, Any]:
        call = loaded.hook_for("slack", "digest" if isinstance(event, Digest) else event.hook)
        assert call is not None
        call(event)
        document: dict[str, Any] = httpserver.log[-1][0].get_json()
        return document

    return post


def fields(document: dict[str, Any]) -> dict[str, str]:
    (attachment,) = document["attachments"]
    return {field["title"]: field["value"] for field in attachment["fields"]}


def test_a_report_has_the_documented_text_and_fields(posted: Posted) -> None:
    document = posted(FINISHED)
    assert document["text"] == "EEMT Cleanup Report"
    assert document["attachments"][0]["color"] == "good"
    first = document["attachments"][0]["fields"][:3]
    assert first == [
        {"title": "Jobs Cleaned", "value": "5", "short": True},
        {"title": "Space Freed", "value": "45.5 GB", "short": True},
        {"title": "Status", "value": "Success", "short": True},
    ]
    assert (fields(document)["Successful Jobs"], fields(document)["Failed Jobs"]) == ("3", "2")


def test_a_digest_has_the_same_text_and_fields(posted: Posted) -> None:
    document = posted(Digest(NOW, NOW, (FINISHED, FINISHED), ()))
    assert document["text"] == "EEMT Cleanup Report"
    assert fields(document)["Jobs Cleaned"] == "10"


def test_a_failure_is_in_the_title_and_the_colour(posted: Posted) -> None:
    (attachment,) = posted(HOSTILE_REPORT)["attachments"]
    assert attachment["color"] == "danger"
    assert attachment["title"].startswith("FAILED")
    assert attachment["fallback"] == attachment["title"]
    assert not set("<>@").intersection(attachment["title"].replace("@\u200b", ""))


def test_a_dry_run_does_not_say_that_jobs_were_cleaned(posted: Posted) -> None:
    found = fields(posted(RunFinished(report(dry_run=True))))
    assert found["Jobs to Clean"] == "5"
    assert not {"Jobs Cleaned", "Space Freed"} & found.keys()


@pytest.mark.parametrize(
    ("outcomes", "failed", "color"),
    [
        (("success", "success"), (), "good"),
        (("interrupted", "success"), (), "warning"),
        (("interrupted", "success"), (FAILED,), "danger"),
    ],
)
def test_a_digest_says_what_was_interrupted(
    posted: Posted, outcomes: tuple[str, ...], failed: tuple[RunFailed, ...], color: str
) -> None:
    runs = tuple(RunFinished(report(outcome)) for outcome in outcomes)
    document = posted(Digest(NOW, NOW, runs, failed))
    assert document["attachments"][0]["color"] == color
    assert (fields(document)["Status"] == "Success") == (color == "good")


def test_a_digest_has_the_next_run_that_the_newest_event_knows(posted: Posted) -> None:
    later = NOW + timedelta(hours=38)
    document = posted(Digest(NOW, NOW, (FINISHED,), (replace(FAILED, next_run_at=later),)))
    assert fields(document)["Next cleanup scheduled for"] == local_time(later)


def test_a_digest_counts_no_jobs_of_dry_runs(posted: Posted) -> None:
    found = fields(posted(Digest(NOW, NOW, (FINISHED, RunFinished(report(dry_run=True, storage=None))), ())))
    assert (found["Jobs Cleaned"], found["Space Freed"]) == ("5", "45.5 GB")
    assert "Current Storage Usage" in found


@pytest.fixture
def settings(httpserver: HTTPServer) -> SlackSettings:
    return SlackSettings.model_validate({"enabled": True, "webhook_url": httpserver.url_for("/hook")})


@pytest.mark.parametrize("body", ["", "<html>Sign in</html>", "ok, if you sign in", "no_team"])
def test_only_the_text_ok_is_a_success(settings: SlackSettings, httpserver: HTTPServer, body: str) -> None:
    httpserver.expect_request("/hook").respond_with_data(body)
    with pytest.raises(RefusedError):
        notify(FINISHED, settings)


def test_the_text_ok_is_a_success(settings: SlackSettings, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/hook").respond_with_data("ok\n")
    assert notify(FINISHED, settings) == "200 ok"
