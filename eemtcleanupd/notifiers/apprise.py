"""Notifier ``apprise``: sends reports to any service that Apprise supports (the extra ``apprise``)."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SecretStr, Strict, model_validator

from eemtcleanupd.config.plugin_settings import needs_secret
from eemtcleanupd.config.types import FilePath
from eemtcleanupd.events import Event, Severity
from eemtcleanupd.hookspecs import Digest, NotifierSettings, RetryLater, hookimpl
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
def notify(event: Event | Digest, settings: AppriseSettings) -> str:
    message = render(event)
    service = _service(settings.urls)
    kind = _TYPES[message.severity]
    if not service.notify(title=message.headline, body=message.text(), notify_type=kind):
        raise RetryLater("at least one service did not accept the message")
    return f"sent to {len(settings.urls)} services"


def _service(urls: tuple[SecretStr, ...]) -> Any:
    """Return Apprise with these URLs; ValueError names an unknown one by its number, as it is secret."""
    try:
        import apprise
    except ImportError:
        raise ValueError("Apprise is not installed: pip install 'eemtcleanupd[apprise]'") from None
    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its log contains URLs
    service = apprise.Apprise()
    for number, url in enumerate(urls, start=1):
        if not service.add(url.get_secret_value()):
            raise ValueError(f"Apprise does not support the service of URL {number}")
    return service
