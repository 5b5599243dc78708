"""One run: lock, preflight, breakers, recover, plan, claim, stage, delete, record, report."""

from eemtcleanupd.cleanup.context import Progress, RunRequest
from eemtcleanupd.cleanup.run import clean

__all__ = ["Progress", "RunRequest", "clean"]
