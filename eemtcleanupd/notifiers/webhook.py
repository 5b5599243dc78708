"""Notifier ``webhook``: posts every message as JSON to a URL, signed on request."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from dataclasses import asdict

from pydantic import Field, SecretStr

from eemtcleanupd.config.plugin_settings import needs_secret
from eemtcleanupd.config.types import FilePath
from eemtcleanupd.events import Event
from eemtcleanupd.hookspecs import Digest, NotifierSettings, hookimpl
from eemtcleanupd.notifiers.http import post
from eemtcleanupd.notifiers.messages import render


class WebhookSettings(NotifierSettings, strict=True):
    """Settings of the webhook notifier."""

    enabled: bool = Field(False, description="Whether to post to the URL.")
    url: SecretStr | None = Field(None, description="Target URL, secret; can contain ${NAME}.")
    url_file: FilePath | None = Field(
        None, description="File that contains the URL, or the name of a systemd credential."
    )
    signing_key: SecretStr | None = Field(None, description="Key of the signature, secret; can be ${NAME}.")
    signing_key_file: FilePath | None = Field(
        None, description="File that contains the key, or the name of a systemd credential."
    )

    _has_a_url = needs_secret("the webhook", "url")


@hookimpl
def register_settings() -> type[WebhookSettings]:
    return WebhookSettings


@hookimpl
def notify(event: Event | Digest, settings: WebhookSettings) -> str:
    assert settings.url is not None  # noqa: S101  (checked with the settings)
    name = type(event).__name__
    message = render(event, settings)
    document = {"event": name, "headline": message.headline, "link": message.link, "data": asdict(event)}
    body = json.dumps(document, default=str).encode()
    stamp = str(int(time.time()))
    headers = {"X-Eemtcleanupd-Event": name, "X-Eemtcleanupd-Timestamp": stamp}
    if settings.signing_key is not None:
        headers["X-Eemtcleanupd-Signature"] = f"sha256={signature(settings.signing_key, stamp, body)}"
    return post(settings.url, body, headers=headers, timeout_seconds=settings.timeout_seconds)


def signature(signing_key: SecretStr, stamp: str, body: bytes) -> str:
    """Return HMAC-SHA-256 of the time stamp, a dot and the body, in hexadecimal."""
    key = signing_key.get_secret_value().encode()
    return hmac.new(key, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
