"""Reports to a Slack channel, through an incoming webhook."""

from __future__ import annotations

import json
from typing import Self

from pydantic import Field, SecretStr, model_validator

from eemtcleanupd.config.types import FilePath
from eemtcleanupd.hookspecs import NotifierSettings, hookimpl
from eemtcleanupd.notifiers.http import post
from eemtcleanupd.notifiers.messages import Message, render

# https://docs.slack.dev/reference/methods/chat.postMessage: 40,000 characters; a field far less to be read.
_MAX_TEXT = 3000
_MAX_VALUE = 1900


class SlackSettings(NotifierSettings, strict=True):
    """Reports to a Slack channel."""

    enabled: bool = Field(False, description="Whether to post to Slack.")
    webhook_url: SecretStr | None = Field(None, description="The incoming webhook, a secret; may be ${NAME}.")
    webhook_url_file: FilePath | None = Field(
        None, description="File that holds the webhook, or its name among systemd's credentials."
    )

    @model_validator(mode="after")
    def _has_a_webhook(self) -> Self:
        if self.enabled and self.webhook_url is None and self.webhook_url_file is None:
            raise ValueError("Slack is enabled and needs webhook_url or webhook_url_file")
        return self


@hookimpl
def register_settings() -> type[SlackSettings]:
    return SlackSettings


def payload(words: Message) -> dict[str, object]:
    """Return the message of the user's document: a text, and an attachment with a colour and fields.

    Slack reads no markup and no mention in what comes from jobs: ``&<>`` are escaped, as it asks for, ``@``
    is followed by a character without width, and Markdown is switched off.
    """
    fields = [
        {"title": title, "value": _escaped(value, _MAX_VALUE), "short": len(value) < 40}
        for title, value in words.facts
    ]
    fields += [
        {"title": title, "value": _escaped("\n".join(lines), _MAX_VALUE), "short": False}
        for title, lines in words.lists
    ]
    return {
        "text": _escaped(f"EEMT Cleanup Report: {words.headline}", _MAX_TEXT),
        "mrkdwn": False,
        "parse": "none",
        "link_names": False,
        "unfurl_links": False,
        "attachments": [{"color": words.mood, "fields": fields, "mrkdwn_in": []}],
    }


def _escaped(text: str, limit: int) -> str:
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "@\u200b")):
        cut = cut.replace(character, entity)
    return cut


@hookimpl
def notify(event: object, settings: SlackSettings) -> str:
    assert settings.webhook_url is not None  # noqa: S101  (checked with the settings)
    body = json.dumps(payload(render(event))).encode()
    return post(settings.webhook_url, body, timeout_seconds=settings.timeout_seconds)
