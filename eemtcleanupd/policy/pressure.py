"""Disk pressure: when the disk counts as nearly full, how much must go, and what may go ahead of its time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from eemtcleanupd.policy.retention import Policy


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """A filesystem's bytes: all, used, and free for those who are not root (statvfs(3), f_bavail)."""

    total_bytes: int
    used_bytes: int
    free_bytes: int

    @property
    def used_percent(self) -> float:
        """The share that is used, as df(1) has it: what is kept back for root counts as neither."""
        usable = self.used_bytes + self.free_bytes
        return 100 * self.used_bytes / usable if usable else 100.0

    def bytes_above(self, percent: float) -> int:
        """Return how many bytes must go until no more than ``percent`` is used, 0 when it is so."""
        return max(0, self.used_bytes - int((self.used_bytes + self.free_bytes) * percent / 100))


@dataclass(frozen=True, slots=True)
class Pressure:
    """What a run under disk pressure may do.

    Attributes:
        low_watermark_percent: it ends when no more than this is used.
        minimum_age: no job that ended less than this ago goes, however full the disk is.
    """

    low_watermark_percent: float
    minimum_age: timedelta


def early_policy(policy: Policy, minimum_age: timedelta) -> Policy:
    """Return the policy under pressure: everything may go at the minimum age; what was due still is.

    ``keep_last``, the meaning of statuses and the logs that are kept stay as they are.
    """
    return replace(
        policy,
        successful=min(policy.successful, minimum_age),
        failed=min(policy.failed, minimum_age),
        overrides={key: min(span, minimum_age) for key, span in policy.overrides.items()},
    )
