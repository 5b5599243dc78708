"""Reports through Apprise, which speaks to a hundred services (the extra ``apprise``)."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SecretStr, Strict, model_validator

from eemtcleanupd.config.types import FilePath
from eemtcleanupd.hookspecs import NotifierSettings, RetryLater, hookimpl
from eemtcleanupd.notifiers.messages import render

_TYPES = {"good": "success", "warning": "warning", "danger": "failure"}


def _lines(value: object) -> object:
    return value.split() if isinstance(value, str) else value


class AppriseSettings(NotifierSettings, strict=True):
    """Reports through Apprise."""

    enabled: bool = Field(False, description="Whether to use Apprise.")
    urls: Annotated[
        tuple[SecretStr, ...], Strict(False), BeforeValidator(_lines, json_schema_input_type=str | list[str])
    ] = Field((), description="Apprise URLs, secrets, such as tgram://token/chat; may hold ${NAME}.")
    urls_file: FilePath | None = Field(
        None, description="File that holds the URLs, one a line, or its name among systemd's credentials."
    )

    @model_validator(mode="after")
    def _has_good_urls(self) -> Self:
        if not self.enabled:
            return self
        if not self.urls and self.urls_file is None:
            raise ValueError("Apprise is enabled and needs urls or urls_file")
        _service(self.urls)
        return self


@hookimpl
def register_settings() -> type[AppriseSettings]:
    return AppriseSettings


@hookimpl
def notify(event: object, settings: AppriseSettings) -> str:
    words = render(event)
    service = _service(settings.urls)
    if not service.notify(title=words.headline, body=words.text(), notify_type=_TYPES[words.mood]):
        raise RetryLater("at least one of its services did not take the message")
    return f"sent to {len(settings.urls)} services"


def _service(urls: tuple[SecretStr, ...]) -> Any:
    """Return Apprise with these URLs; ValueError says which of them it does not know, by its number."""
    try:
        import apprise
    except ImportError:
        raise ValueError("Apprise is not installed: pip install 'eemtcleanupd[apprise]'") from None
    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its lines show URLs
    service = apprise.Apprise()
    for number, url in enumerate(urls, start=1):
        if not service.add(url.get_secret_value()):
            raise ValueError(f"Apprise does not know the service of URL {number}")
    return service
