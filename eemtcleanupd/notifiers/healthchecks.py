"""Notifier ``ping``: sends start, success and failure of each run to a monitor such as healthchecks.io."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from eemtcleanupd.config.plugin_settings import needs_secret
from eemtcleanupd.config.types import FilePath
from eemtcleanupd.events import RunFailed, RunFinished, RunStarted
from eemtcleanupd.hookspecs import NotifierSettings, RetryLater, hookimpl
from eemtcleanupd.model import Outcome
from eemtcleanupd.notifiers.http import post
from eemtcleanupd.notifiers.messages import first_lines, render

_MAX_BODY_BYTES = 10_000


class TooLateError(Exception):
    """A ping was not sent, and is of no use later."""


class PingSettings(NotifierSettings, strict=True):
    """Settings of the ping notifier."""

    enabled: bool = Field(False, description="Whether to send pings.")
    url: SecretStr | None = Field(
        None, description="URL of the check, secret; /start and /fail are appended to its path."
    )
    url_file: FilePath | None = Field(
        None, description="File that contains the URL, or the name of a systemd credential."
    )

    _has_a_url = needs_secret("the ping", "url")


@hookimpl
def register_settings() -> type[PingSettings]:
    return PingSettings


@hookimpl
def run_started(event: RunStarted, settings: PingSettings) -> str:
    if event.dry_run or not event.trigger.plans_jobs:
        return ""
    try:
        return _ping(settings, "/start", f"run {event.run_id}")
    except RetryLater as error:
        # Sent later, it could arrive after the end of the run, and the monitor would wait for that in vain.
        raise TooLateError(str(error)) from None


@hookimpl
def run_finished(event: RunFinished, settings: PingSettings) -> str:
    report = event.report
    if not report.trigger.plans_jobs and report.outcome is not Outcome.ERRORS:
        return ""  # to the monitor, a success means that a cleanup was run
    suffix = "" if report.outcome is Outcome.SUCCESS else "/fail"
    return _ping(settings, suffix, render(event, settings).text())


@hookimpl
def run_failed(event: RunFailed, settings: PingSettings) -> str:
    return _ping(settings, "/fail", render(event, settings).text())


def _ping(settings: PingSettings, suffix: str, text: str) -> str:
    assert settings.url is not None  # noqa: S101  (checked with the settings)
    parts = urlsplit(settings.url.get_secret_value())
    url = SecretStr(parts._replace(path=parts.path.rstrip("/") + suffix).geturl())
    body = "\n".join(first_lines(text.split("\n"), _MAX_BODY_BYTES)).encode("utf-8", "replace")
    return post(url, body, content_type="text/plain; charset=utf-8", timeout_seconds=settings.timeout_seconds)
