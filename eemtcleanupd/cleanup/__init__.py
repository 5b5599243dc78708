"""One run: lock, preflight, breakers, recover, plan, claim, stage, delete, record, report."""

from eemtcleanupd.cleanup.run import Progress, RunRequest, clean

__all__ = ["Progress", "RunRequest", "clean"]
