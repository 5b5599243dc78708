"""Every message as JSON to a URL of your own, signed so that the other side can tell that it is from here."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from dataclasses import asdict
from typing import Any, Self

from pydantic import Field, SecretStr, model_validator

from eemtcleanupd.config.types import FilePath
from eemtcleanupd.hookspecs import NotifierSettings, hookimpl
from eemtcleanupd.notifiers.http import post
from eemtcleanupd.notifiers.messages import render


class WebhookSettings(NotifierSettings, strict=True):
    """Every message as JSON to a URL."""

    enabled: bool = Field(False, description="Whether to post to the URL.")
    url: SecretStr | None = Field(None, description="Where to, a secret; may hold ${NAME}.")
    url_file: FilePath | None = Field(
        None, description="File that holds the URL, or its name among systemd's credentials."
    )
    signing_key: SecretStr | None = Field(None, description="Key of the signature; may be ${NAME}.")
    signing_key_file: FilePath | None = Field(
        None, description="File that holds the key, or its name among systemd's credentials."
    )

    @model_validator(mode="after")
    def _has_a_url(self) -> Self:
        if self.enabled and self.url is None and self.url_file is None:
            raise ValueError("the webhook is enabled and needs url or url_file")
        return self


@hookimpl
def register_settings() -> type[WebhookSettings]:
    return WebhookSettings


@hookimpl
def notify(event: object, settings: WebhookSettings) -> str:
    assert settings.url is not None  # noqa: S101  (checked with the settings)
    name = type(event).__name__
    document = {"event": name, "headline": render(event).headline, "data": asdict(event)}  # type: ignore[call-overload]
    body = json.dumps(document, default=str).encode()
    stamp = str(int(time.time()))
    headers = {"X-Eemtcleanupd-Event": name, "X-Eemtcleanupd-Timestamp": stamp}
    if settings.signing_key is not None:
        headers["X-Eemtcleanupd-Signature"] = f"sha256={signature(settings.signing_key, stamp, body)}"
    return post(settings.url, body, headers=headers, timeout_seconds=settings.timeout_seconds)


def signature(signing_key: SecretStr, stamp: str, body: bytes) -> str:
    """Return HMAC-SHA-256, in hex, of the time stamp, a dot, and the body."""
    key = signing_key.get_secret_value().encode()
    signed: Any = hmac.new(key, stamp.encode() + b"." + body, hashlib.sha256)
    return str(signed.hexdigest())
