"""Each service has its own outcome."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pytest_httpserver import HTTPServer

from eemtcleanupd.hookspecs import RetryLater
from eemtcleanupd.plugins import Plugins
from tests.notifiers.samples import FINISHED


def test_a_retry_does_not_repeat_what_a_service_accepted(
    plugins: Callable[[str], Plugins], httpserver: HTTPServer
) -> None:
    address = f"{httpserver.host}:{httpserver.port}"
    block = f"enabled: true, urls: ['json://{address}/first', 'json://{address}/second']"
    call = plugins(f"notifications: {{apprise: {{{block}}}}}").hook_for("apprise", "run_finished")
    assert call is not None
    httpserver.expect_request("/first").respond_with_data("ok")
    httpserver.expect_oneshot_request("/second").respond_with_data("no", status=503)
    httpserver.expect_request("/second").respond_with_data("ok")
    with pytest.raises(RetryLater) as caught:
        call(FINISHED)
    assert len(caught.value.recipients) == 1
    assert "second" not in caught.value.recipients[0]
    call(FINISHED, caught.value.recipients)
    assert [request.path for request, _ in httpserver.log] == ["/first", "/second", "/second"]
