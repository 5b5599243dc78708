"""Which runs a monitor of the kind of healthchecks.io hears of."""

from __future__ import annotations

import pytest
from pytest_httpserver import HTTPServer

from eemtcleanupd.events import RunFinished, RunStarted
from eemtcleanupd.hookspecs import RetryLater
from eemtcleanupd.model import Outcome, Trigger
from eemtcleanupd.notifiers.healthchecks import PingSettings, TooLateError, run_finished, run_started
from tests.notifiers.samples import report
from tests.ports import free_port


@pytest.fixture
def settings(httpserver: HTTPServer) -> PingSettings:
    for path in ("/hook", "/hook/start", "/hook/fail"):
        httpserver.expect_request(path).respond_with_data("ok")
    return PingSettings.model_validate({"enabled": True, "url": httpserver.url_for("/hook")})


@pytest.mark.parametrize("trigger", [Trigger.RECOVERY, Trigger.TRASH])
def test_a_run_that_plans_no_jobs_does_not_count_as_the_expected_cleanup(
    settings: PingSettings, httpserver: HTTPServer, trigger: Trigger
) -> None:
    run_started(RunStarted("r", False, trigger, "policy", 0, 0), settings)
    run_finished(RunFinished(report(trigger=trigger)), settings)
    assert httpserver.log == []


def test_an_interrupted_run_is_no_success(settings: PingSettings, httpserver: HTTPServer) -> None:
    run_finished(RunFinished(report(Outcome.INTERRUPTED)), settings)
    assert [request.path for request, _ in httpserver.log] == ["/hook/fail"]


def test_only_a_start_is_not_sent_later_when_its_run_can_have_ended() -> None:
    settings = PingSettings.model_validate({"enabled": True, "url": f"http://127.0.0.1:{free_port()}/hook"})
    with pytest.raises(TooLateError):
        run_started(RunStarted("r", False, Trigger.SCHEDULE, "policy", 0, 0), settings)
    with pytest.raises(RetryLater):
        run_finished(RunFinished(report()), settings)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_query_stays_behind_the_path(httpserver: HTTPServer, slash: str) -> None:
    httpserver.expect_request("/hook/fail", query_string="rid=1&a=b").respond_with_data("ok")
    url = httpserver.url_for(f"/hook{slash}?rid=1&a=b")
    settings = PingSettings.model_validate({"enabled": True, "url": url})
    run_finished(RunFinished(report(Outcome.ERRORS, errors=1)), settings)
    assert len(httpserver.log) == 1


def test_a_recovery_run_with_errors_is_a_failure(settings: PingSettings, httpserver: HTTPServer) -> None:
    run_finished(RunFinished(report(Outcome.ERRORS, errors=1, trigger=Trigger.RECOVERY)), settings)
    assert [request.path for request, _ in httpserver.log] == ["/hook/fail"]
