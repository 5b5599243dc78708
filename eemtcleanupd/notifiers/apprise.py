"""Notifier ``apprise``: sends reports to any service that Apprise supports (the extra ``apprise``)."""

from __future__ import annotations

import hashlib
import logging
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SecretStr, Strict, model_validator

from eemtcleanupd.config.plugin_settings import needs_secret
from eemtcleanupd.config.types import FilePath
from eemtcleanupd.events import Event, Severity
from eemtcleanupd.formatting import plural
from eemtcleanupd.hookspecs import Digest, NotifierSettings, RetryLater, hookimpl
from eemtcleanupd.installation import add_extra
from eemtcleanupd.notifiers.messages import render

_TYPES = {Severity.GOOD: "success", Severity.WARNING: "warning", Severity.DANGER: "failure"}


def _lines(value: object) -> object:
    return value.split() if isinstance(value, str) else value


class AppriseSettings(NotifierSettings, strict=True):
    """Settings of the Apprise notifier."""

    enabled: bool = Field(False, description="Whether to send through Apprise.")
    urls: Annotated[
        tuple[SecretStr, ...], Strict(False), BeforeValidator(_lines, json_schema_input_type=str | list[str])
    ] = Field((), description="Apprise URLs such as tgram://token/chat, secret; can contain ${NAME}.")
    urls_file: FilePath | None = Field(
        None, description="File that contains the URLs, one per line, or the name of a systemd credential."
    )

    _has_urls = needs_secret("Apprise", "urls")

    @model_validator(mode="after")
    def _has_good_urls(self) -> Self:
        if self.enabled:
            _service(self.urls)
        return self


@hookimpl
def register_settings() -> type[AppriseSettings]:
    return AppriseSettings


@hookimpl
def notify(event: Event | Digest, settings: AppriseSettings, recipients: tuple[str, ...]) -> str:
    message = render(event, settings)
    urls = {_name(url): url for url in settings.urls}
    chosen = {name: url for name, url in urls.items() if not recipients or name in recipients}
    text = {"title": message.headline, "body": message.text(), "notify_type": _TYPES[message.severity]}
    refused = [name for name, url in chosen.items() if not _service((url,)).notify(**text)]
    if refused:
        raise RetryLater(
            f"{len(refused)} of {plural(len(chosen), 'service')} did not accept the message",
            recipients=refused,
        )
    return f"sent to {plural(len(chosen), 'service')}"


def _name(url: SecretStr) -> str:
    """Return a name for a URL, which is secret; it stays the same when URLs are added or removed."""
    return hashlib.sha256(url.get_secret_value().encode("utf-8", "replace")).hexdigest()[:16]


def _service(urls: tuple[SecretStr, ...]) -> Any:
    """Return Apprise with these URLs; ValueError names an unknown one by its number, as it is secret."""
    try:
        import apprise
    except ImportError:
        raise ValueError(f"Apprise is not installed. {add_extra('apprise')}") from None
    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its log contains URLs
    service = apprise.Apprise()
    for number, url in enumerate(urls, start=1):
        if not service.add(url.get_secret_value()):
            raise ValueError(f"Apprise does not support the service of URL {number}")
    return service
