"""When what the jobs hold passes a budget: once for each crossing, however often it is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from eemtcleanupd.config.schema import CapacityConfig

_HELD_DOWN_TO = 0.95


class BudgetLevel(IntEnum):
    """How much of a budget is used, as it was told last."""

    WITHIN = 0
    WARNED = 1
    OVER = 2


@dataclass(frozen=True, slots=True)
class Budget:
    """What the jobs may hold, and the percentage from which on to warn of it."""

    max_bytes: int
    warn_percent: float

    @classmethod
    def of(cls, config: CapacityConfig) -> Budget | None:
        """Return the budget that is configured, None where there is none."""
        return None if config.max_bytes is None else cls(config.max_bytes, config.warn_percent)

    def used_percent(self, used_bytes: int) -> float:
        """Return how much of the budget is used."""
        return 100 * used_bytes / self.max_bytes

    def level(self, used_bytes: int, before: BudgetLevel) -> BudgetLevel:
        """Return the level now.

        Usage that swings around a mark would cross it again and again: a level once reached holds until
        usage is a twentieth below its mark.
        """
        used = self.used_percent(used_bytes)
        for level, mark in ((BudgetLevel.OVER, 100.0), (BudgetLevel.WARNED, self.warn_percent)):
            if used >= (mark * _HELD_DOWN_TO if before >= level else mark):
                return level
        return BudgetLevel.WITHIN
