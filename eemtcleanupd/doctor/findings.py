"""Findings of `doctor`: what each check yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial


class FindingLevel(StrEnum):
    """The severity of a finding: all is well, needs attention, or prevents cleanup."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check; ``advice`` is how to fix it, or empty."""

    check: str
    level: FindingLevel
    message: str
    advice: str = ""


Result = tuple[FindingLevel, str, str]
"""What a check yields: the level, the message and the advice of a finding."""

NamedCheck = tuple[str, Callable[[], Iterator[Result]]]
"""A check, with the name that its findings have."""


def _result(level: FindingLevel, message: str, advice: str = "") -> Result:
    return level, message, advice


ok = partial(_result, FindingLevel.OK)
warning = partial(_result, FindingLevel.WARNING)
problem = partial(_result, FindingLevel.PROBLEM)
