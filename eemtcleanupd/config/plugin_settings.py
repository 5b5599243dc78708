"""What every plugin's block under ``notifications:`` has, beside the keys of its own."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, get_args

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from eemtcleanupd.config.base import Section
from eemtcleanupd.config.types import not_empty, one_or_more
from eemtcleanupd.events import Occasion


def _time_of_day(value: str) -> str:
    if re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value) is None:
        raise ValueError("write a time of day in quotes, such as '07:00'")
    return value


TimeOfDay = Annotated[str, AfterValidator(_time_of_day)]
Occasions = Annotated[
    tuple[Occasion, ...],
    Strict(False),
    AfterValidator(not_empty),
    BeforeValidator(one_or_more, json_schema_input_type=Occasion | list[Occasion]),
]


class PluginSettings(Section, strict=False):
    """What every plugin's block has.

    Not strict, for the sake of whoever writes a plugin: YAML has no paths and no tuples.
    """

    enabled: bool = Field(True, description="Whether this plugin is used.")


class NotifierSettings(PluginSettings):
    """The base of a notifier's settings; the names here keep their meaning in every notifier.

    ``outlives_restarts`` is for the notifier's author: False for one that only tells how things are now, so
    that what it was not told before a restart is not worth telling after it.
    """

    outlives_restarts: ClassVar[bool] = True

    on: Occasions = Field(
        ("success", "failure", "interrupted", "pressure", "capacity", "config_rejected"),
        description=f"What it is told of: {', '.join(get_args(Occasion))}.",
    )
    only_if_cleaned: bool = Field(False, description="Tell of a successful run only if something went.")
    digest: TimeOfDay | None = Field(
        None, description="Local time of one message a day about all runs, such as '07:00'; null: one a run."
    )
    timeout_seconds: Annotated[float, Field(gt=0, le=600)] = Field(
        10, description="Seconds to wait for an answer of the other side."
    )
