"""Disk pressure: how much to free on a nearly full disk, and which jobs can be cleaned early."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from eemtcleanupd.policy.retention import Policy


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """The size of a filesystem.  ``free_bytes`` excludes blocks reserved for root (statvfs(3), f_bavail)."""

    total_bytes: int
    used_bytes: int
    free_bytes: int

    @property
    def used_percent(self) -> float:
        """The used share in percent, as df(1) computes it.  Blocks reserved for root are not counted."""
        usable = self.used_bytes + self.free_bytes
        return 100 * self.used_bytes / usable if usable else 100.0

    def bytes_above(self, percent: float) -> int:
        """Return how many bytes to free until at most ``percent`` is used, or 0."""
        return max(0, self.used_bytes - int((self.used_bytes + self.free_bytes) * percent / 100))


@dataclass(frozen=True, slots=True)
class Pressure:
    """Limits of a run under disk pressure: it stops at the low watermark, and keeps younger jobs."""

    low_watermark_percent: float
    minimum_age: timedelta


def early_policy(policy: Policy, minimum_age: timedelta) -> Policy:
    """Return the policy under pressure: no retention is longer than the minimum age.

    ``keep_last``, the meaning of statuses and the kept logs do not change.
    """
    return replace(
        policy,
        successful=min(policy.successful, minimum_age),
        failed=min(policy.failed, minimum_age),
        overrides={key: min(span, minimum_age) for key, span in policy.overrides.items()},
    )
