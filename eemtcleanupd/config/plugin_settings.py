"""The keys that every plugin block under ``notifications:`` has in addition to its own."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, PrivateAttr, Strict, model_validator

from eemtcleanupd.config.base import Section
from eemtcleanupd.config.types import not_empty, one_or_more, require
from eemtcleanupd.events import OCCASIONS, Occasion

TimeOfDay = Annotated[
    str,
    require(
        re.compile(r"([01]\d|2[0-3]):[0-5]\d").fullmatch,
        "Write a time of day in quotes, such as '07:00'.",
    ),
]
Occasions = Annotated[
    tuple[Occasion, ...],
    Strict(False),
    not_empty,
    BeforeValidator(one_or_more, json_schema_input_type=Occasion | list[Occasion]),
]


class PluginSettings(Section, strict=False):
    """The base of all plugin settings.

    It is not strict, because YAML has no paths and tuples and plugin authors should not have to convert them.
    """

    enabled: bool = Field(True, description="Use this plugin.")


def needs_secret(channel: str, key: str) -> Any:
    """Return a validator of an enabled block: it needs a secret, or the file that contains it."""

    def check(settings: Any) -> Any:
        if settings.enabled and getattr(settings, key) in {None, ()} and not getattr(settings, f"{key}_file"):
            raise ValueError(f"{channel} is enabled, so it needs {key} or {key}_file")
        return settings

    return model_validator(mode="after")(check)


class NotifierSettings(PluginSettings):
    """The base of notifier settings. These keys have the same meaning in every notifier.

    The author of a notifier sets ``outlives_restarts`` to False if it only reports the current state.
    Messages that such a notifier did not receive before a restart are dropped.
    """

    outlives_restarts: ClassVar[bool] = True

    on: Occasions = Field(
        ("success", "failure", "interrupted", "trash", "recovery", "pressure", "capacity", "config_rejected"),
        description="Events to report: "
        + "; ".join(f"{occasion} ({meaning})" for occasion, meaning in OCCASIONS.items())
        + ".",
    )
    only_if_cleaned: bool = Field(False, description="Report a successful run only if it deleted something.")
    digest: TimeOfDay | None = Field(
        None,
        description="Local time of a daily message about all runs, such as '07:00'. null sends a message per "
        "run.",
    )
    timeout_seconds: Annotated[float, Field(gt=0, le=600)] = Field(
        10, description="Seconds to wait for a response from the service."
    )
    # From the configuration and not from an event: everyone who can write the job database can write the
    # events that wait there, and must not choose where a message links to.
    _public_url: str | None = PrivateAttr(None)

    def set_public_url(self, url: str | None) -> None:
        """Set the URL of the dashboard (``api.public_url``)."""
        self._public_url = url

    def page_url(self, path: str | None) -> str | None:
        """Return the URL of a page of the dashboard, None without a page or without ``api.public_url``."""
        return None if path is None or self._public_url is None else f"{self._public_url}/{path}"
