"""Notifier ``slack``: posts the texts of ``messages.py`` to a Slack channel through an incoming webhook."""

from __future__ import annotations

import json

from pydantic import Field, SecretStr

from eemtcleanupd.config.plugin_settings import needs_secret
from eemtcleanupd.config.types import FilePath
from eemtcleanupd.events import Event
from eemtcleanupd.hookspecs import Digest, NotifierSettings, hookimpl
from eemtcleanupd.notifiers.http import post
from eemtcleanupd.notifiers.messages import Listing, Message, more_text, render

# Slack accepts 40,000 characters (https://docs.slack.dev/reference/methods/chat.postMessage).
_MAX_TEXT = 3000
_MAX_VALUE = 1900


class SlackSettings(NotifierSettings, strict=True):
    """Settings of the Slack notifier."""

    enabled: bool = Field(False, description="Whether to post to Slack.")
    webhook_url: SecretStr | None = Field(
        None, description="URL of the incoming webhook, secret; can be ${NAME}."
    )
    webhook_url_file: FilePath | None = Field(
        None, description="File that contains the webhook URL, or the name of a systemd credential."
    )

    _has_a_webhook = needs_secret("Slack", "webhook_url")


@hookimpl
def register_settings() -> type[SlackSettings]:
    return SlackSettings


def payload(message: Message) -> dict[str, object]:
    """Return the JSON for Slack: a text, and an attachment with a colour, the headline as link, and fields.

    Text from jobs cannot contain markup or mentions: ``&<>`` are escaped, ``@`` is followed by a zero-width
    space, and Markdown is off.
    """
    fields = [
        {"title": title, "value": _escaped(value, _MAX_VALUE), "short": len(value) < 40}
        for title, value in message.facts
    ]
    fields += [
        {"title": listing.title, "value": _lines(listing.cut(_MAX_VALUE), message.link), "short": False}
        for listing in message.lists
    ]
    headline = _escaped(message.headline, _MAX_TEXT)
    attachment = {
        "color": message.severity,
        "title": headline,
        "fallback": headline,  # for clients that show no attachments
        "fields": fields,
        **({} if message.link is None else {"title_link": message.link}),
        "mrkdwn_in": [],
    }
    return {
        "text": "EEMT Cleanup Report",
        "mrkdwn": False,
        "parse": "none",
        "link_names": False,
        "unfurl_links": False,
        "attachments": [attachment],
    }


def _lines(listing: Listing, link: str | None) -> str:
    lines = [_escaped(line, _MAX_VALUE) for line in listing.lines]
    if listing.more:
        text = more_text(listing.more)
        lines.append(text if link is None else f"<{_escaped(link, _MAX_TEXT).replace('|', '%7C')}|{text}>")
    return "\n".join(lines)


def _escaped(text: str, limit: int) -> str:
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "@\u200b")):
        cut = cut.replace(character, entity)
    return cut


@hookimpl
def notify(event: Event | Digest, settings: SlackSettings) -> str:
    assert settings.webhook_url is not None  # noqa: S101  (checked with the settings)
    body = json.dumps(payload(render(event, settings))).encode()
    # Slack answers `ok`; anything else comes from a proxy, or from another page of Slack.
    return post(settings.webhook_url, body, timeout_seconds=settings.timeout_seconds, success_text="ok")
