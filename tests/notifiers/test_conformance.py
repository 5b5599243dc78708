"""What every notifier that speaks HTTP must do; the outsider's is one of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from eemtcleanupd.delivery.serialization import HOOKS
from eemtcleanupd.hookspecs import Digest, RetryLater
from eemtcleanupd.plugins import Plugins
from tests.notifiers.conftest import free_port
from tests.notifiers.samples import EVENTS, FINISHED

SECRET = "T0K3N-very-secret"


@dataclass(frozen=True)
class Channel:
    """A notifier and the block that lets it speak to a URL; one that hides codes tries all of them again."""

    name: str
    block: str
    hides_codes: bool = False

    def text(self, base: str, timeout_seconds: float = 5) -> str:
        block = self.block.format(url=f"{base}/{SECRET}", address=base.removeprefix("http://"), secret=SECRET)
        return f"notifications:\n  {self.name}: {{{block}, timeout_seconds: {timeout_seconds}}}\n"


CHANNELS = (
    Channel("slack", "enabled: true, webhook_url: '{url}'"),
    Channel("webhook", "enabled: true, url: '{url}', signing_key: key"),
    Channel("ping", "enabled: true, url: '{url}'"),
    Channel("apprise", "enabled: true, urls: ['json://{address}/{secret}']", hides_codes=True),
    Channel("ntfy", "topic_url: '{url}'"),
)
RETRY = (408, 425, 429, 500, 502, 503, 504)
NO_RETRY = (301, 307, 400, 401, 403, 404, 410)

pytestmark = pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: channel.name)
MakePlugins = Callable[[str], Plugins]


@pytest.fixture(autouse=True)
def _outsider(example_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(example_site))


def tell(plugins: Plugins, channel: Channel, event: object = FINISHED) -> object:
    hook = "digest" if isinstance(event, Digest) else HOOKS[type(event)]
    call = plugins.hook_for(channel.name, hook)
    return None if call is None else call(event)


def url_of(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def assert_says_no_secret(error: BaseException, capfd: pytest.CaptureFixture[str]) -> None:
    told = "".join(traceback.format_exception(error)) + "".join(capfd.readouterr())
    assert SECRET not in told


def test_what_the_other_side_takes_is_delivered(
    channel: Channel, plugins: MakePlugins, httpserver: HTTPServer
) -> None:
    httpserver.expect_request(f"/{SECRET}").respond_with_data("ok")
    tell(plugins(channel.text(httpserver.url_for("").rstrip("/"))), channel)
    assert len(httpserver.log) == 1


@pytest.mark.parametrize("code", [*RETRY, *NO_RETRY])
def test_each_status_code_is_worth_a_retry_or_not(
    channel: Channel,
    plugins: MakePlugins,
    httpserver: HTTPServer,
    code: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    httpserver.expect_request(f"/{SECRET}").respond_with_data(
        "no", status=code, headers={"Location": httpserver.url_for("/elsewhere"), "Retry-After": "77"}
    )
    with pytest.raises(Exception) as caught:  # noqa: PT011  (which one is what is looked at)
        tell(plugins(channel.text(httpserver.url_for("").rstrip("/"))), channel)
    assert isinstance(caught.value, RetryLater) == (code in RETRY or channel.hides_codes)
    if isinstance(caught.value, RetryLater) and not channel.hides_codes:
        assert caught.value.after_seconds == 77
    if not channel.hides_codes:  # Apprise follows redirects; ours do not
        assert {request.path for request, _ in httpserver.log} == {f"/{SECRET}"}
    assert_says_no_secret(caught.value, capfd)


def test_a_refused_connection_is_worth_a_retry(
    channel: Channel, plugins: MakePlugins, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RetryLater) as caught:
        tell(plugins(channel.text(url_of(free_port()))), channel)
    assert_says_no_secret(caught.value, capfd)


def test_silence_is_worth_a_retry(
    channel: Channel, plugins: MakePlugins, silent_port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RetryLater) as caught:
        tell(plugins(channel.text(url_of(silent_port), timeout_seconds=0.2)), channel)
    assert_says_no_secret(caught.value, capfd)


def test_a_broken_connection_is_worth_a_retry(
    channel: Channel, plugins: MakePlugins, rude_port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RetryLater) as caught:
        tell(plugins(channel.text(url_of(rude_port))), channel)
    assert_says_no_secret(caught.value, capfd)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_is_told_whatever_jobs_are_called(
    channel: Channel, plugins: MakePlugins, httpserver: HTTPServer, event: object
) -> None:
    bodies: list[bytes] = []

    def take(request: Request) -> Response:
        bodies.append(request.get_data())
        return Response("ok")

    httpserver.expect_request(f"/{SECRET}").respond_with_handler(take)
    httpserver.expect_request(f"/{SECRET}/fail").respond_with_handler(take)
    tell(plugins(channel.text(httpserver.url_for("").rstrip("/"))), channel, event)
    for body in bodies:
        text = body.decode("utf-8")
        assert "\x1b" not in text
        assert "\x00" not in text
        assert len(body) < 200_000


def test_its_settings_show_no_secret(channel: Channel, plugins: MakePlugins) -> None:
    found = plugins(channel.text("http://127.0.0.1:1"))
    assert SECRET not in repr(found.settings(channel.name))
    assert SECRET not in found.redact(channel.name, f"it said http://127.0.0.1:1/{SECRET}")
    assert "********" in found.redact(channel.name, f"/{SECRET}: no")
