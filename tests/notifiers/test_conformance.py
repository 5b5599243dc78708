"""Requirements for every notifier that sends over HTTP, the one in examples/ included."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from eemtcleanupd.events import Event
from eemtcleanupd.hookspecs import Digest, RetryLater
from eemtcleanupd.plugins import Plugins
from tests.notifiers.samples import EVENTS, FINISHED
from tests.ports import free_port

SECRET = "T0K3N-very-secret"


@dataclass(frozen=True)
class Channel:
    """A notifier and its block for a URL; one that hides status codes retries all errors."""

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
def _example_plugin(example_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(example_site))


def send(plugins: Plugins, channel: Channel, event: Event | Digest = FINISHED) -> object:
    hook = "digest" if isinstance(event, Digest) else event.hook
    call = plugins.hook_for(channel.name, hook)
    return None if call is None else call(event)


def url_of(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def assert_hides_secret(error: BaseException, capfd: pytest.CaptureFixture[str]) -> None:
    output = "".join(traceback.format_exception(error)) + "".join(capfd.readouterr())
    assert SECRET not in output


def test_an_accepted_message_is_delivered(
    channel: Channel, plugins: MakePlugins, httpserver: HTTPServer
) -> None:
    httpserver.expect_request(f"/{SECRET}").respond_with_data("ok")
    send(plugins(channel.text(httpserver.url_for("").rstrip("/"))), channel)
    assert len(httpserver.log) == 1


@pytest.mark.parametrize("code", [*RETRY, *NO_RETRY])
def test_the_status_code_decides_about_a_retry(
    channel: Channel,
    plugins: MakePlugins,
    httpserver: HTTPServer,
    code: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    httpserver.expect_request(f"/{SECRET}").respond_with_data(
        "no", status=code, headers={"Location": httpserver.url_for("/elsewhere"), "Retry-After": "77"}
    )
    with pytest.raises(Exception) as caught:  # noqa: PT011  (the class is checked below)
        send(plugins(channel.text(httpserver.url_for("").rstrip("/"))), channel)
    assert isinstance(caught.value, RetryLater) == (code in RETRY or channel.hides_codes)
    if isinstance(caught.value, RetryLater) and not channel.hides_codes:
        assert caught.value.after_seconds == 77
    if not channel.hides_codes:  # Apprise follows redirects, the others do not
        assert {request.path for request, _ in httpserver.log} == {f"/{SECRET}"}
    assert_hides_secret(caught.value, capfd)


def test_a_refused_connection_is_retried(
    channel: Channel, plugins: MakePlugins, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RetryLater) as caught:
        send(plugins(channel.text(url_of(free_port()))), channel)
    assert_hides_secret(caught.value, capfd)


def test_a_missing_response_is_retried(
    channel: Channel, plugins: MakePlugins, silent_port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RetryLater) as caught:
        send(plugins(channel.text(url_of(silent_port), timeout_seconds=0.2)), channel)
    assert_hides_secret(caught.value, capfd)


def test_a_broken_connection_is_retried(
    channel: Channel, plugins: MakePlugins, rude_port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RetryLater) as caught:
        send(plugins(channel.text(url_of(rude_port))), channel)
    assert_hides_secret(caught.value, capfd)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_is_sent_whatever_the_names_of_jobs(
    channel: Channel, plugins: MakePlugins, httpserver: HTTPServer, event: Event | Digest
) -> None:
    bodies: list[bytes] = []

    def respond(request: Request) -> Response:
        bodies.append(request.get_data())
        return Response("ok")

    httpserver.expect_request(f"/{SECRET}").respond_with_handler(respond)
    httpserver.expect_request(f"/{SECRET}/fail").respond_with_handler(respond)
    send(plugins(channel.text(httpserver.url_for("").rstrip("/"))), channel, event)
    for body in bodies:
        text = body.decode("utf-8")
        assert "\x1b" not in text
        assert "\x00" not in text
        assert len(body) < 200_000


def test_settings_and_redacted_text_hide_the_secret(channel: Channel, plugins: MakePlugins) -> None:
    loaded = plugins(channel.text("http://127.0.0.1:1"))
    assert SECRET not in repr(loaded.settings(channel.name))
    assert SECRET not in loaded.redact(channel.name, f"failed: http://127.0.0.1:1/{SECRET}")
    assert "********" in loaded.redact(channel.name, f"/{SECRET}: no")
