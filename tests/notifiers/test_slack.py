"""What counts as an answer of Slack."""

from __future__ import annotations

import pytest
from pytest_httpserver import HTTPServer

from eemtcleanupd.notifiers.http import RefusedError
from eemtcleanupd.notifiers.slack import SlackSettings, notify
from tests.notifiers.samples import FINISHED


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
