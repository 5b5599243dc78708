"""A report on a job store: what was cleaned, what is held, and how long the disk will do."""

from __future__ import annotations

from eemtcleanupd.report.gathering import Report, gather

__all__ = ["Report", "gather"]
