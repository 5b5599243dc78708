"""Sends reports of eemtcleanupd to an ntfy topic (https://ntfy.sh)."""

import requests
from pydantic import SecretStr

from eemtcleanupd.events import RunFailed, RunFinished
from eemtcleanupd.hookspecs import NotifierSettings, RetryLater, hookimpl


class NtfySettings(NotifierSettings):
    """Reports to an ntfy topic."""

    topic_url: SecretStr  # everyone who knows the name of a topic can read it


@hookimpl
def register_settings():
    return NtfySettings


@hookimpl
def run_finished(event: RunFinished, settings: NtfySettings):
    report = event.report
    jobs = report.successful.jobs + report.failed.jobs
    text = f"{jobs} jobs cleaned, {report.bytes_freed / 2**30:.1f} GB freed, {report.errors} errors"
    return _send(text, "default" if report.outcome == "success" else "high", settings)


@hookimpl
def run_failed(event: RunFailed, settings: NtfySettings):
    return _send(f"The cleanup did not run: {event.error}", "urgent", settings)


def _send(text, priority, settings):
    try:
        response = requests.post(
            settings.topic_url.get_secret_value(),
            data=text.encode("utf-8", "replace"),
            headers={"Title": "EEMT cleanup", "Priority": priority},
            timeout=settings.timeout_seconds,
            allow_redirects=False,
        )
    except requests.RequestException as error:
        # Only the class: the text of these exceptions contains the URL, which is secret.
        raise RetryLater(type(error).__name__) from None
    if response.status_code in {408, 425, 429} or response.status_code >= 500:
        seconds = response.headers.get("Retry-After", "")
        raise RetryLater(
            f"ntfy answered {response.status_code}", float(seconds) if seconds.isdigit() else None
        )
    if response.status_code >= 300:
        raise RuntimeError(f"ntfy answered {response.status_code}")
    return f"{response.status_code} {response.reason}"
