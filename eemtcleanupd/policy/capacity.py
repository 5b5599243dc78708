"""The storage budget: when to warn that job data approaches or exceeds it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from eemtcleanupd.config.schema import CapacityConfig

_HYSTERESIS = 0.95


class BudgetLevel(IntEnum):
    """The budget level that was last reported."""

    WITHIN = 0
    WARNED = 1
    OVER = 2


@dataclass(frozen=True, slots=True)
class Budget:
    """The most bytes that job data should use, and the percentage at which to warn."""

    max_bytes: int
    warn_percent: float

    @classmethod
    def of(cls, config: CapacityConfig) -> Budget | None:
        """Return the configured budget, or None if there is none."""
        return None if config.max_bytes is None else cls(config.max_bytes, config.warn_percent)

    def used_percent(self, used_bytes: int) -> float:
        """Return the percentage of the budget that is used."""
        return 100 * used_bytes / self.max_bytes

    def level(self, used_bytes: int, before: BudgetLevel) -> BudgetLevel:
        """Return the current level.

        A level that was reached applies until usage is 5 % below its mark.  Otherwise usage that varies
        around a mark would cross it repeatedly.
        """
        used = self.used_percent(used_bytes)
        for level, mark in ((BudgetLevel.OVER, 100.0), (BudgetLevel.WARNED, self.warn_percent)):
            if used >= (mark * _HYSTERESIS if before >= level else mark):
                return level
        return BudgetLevel.WITHIN
