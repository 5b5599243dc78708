"""Collect the events of a run into one JSON document."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import IO, Any

from eemtcleanupd.events import (
    DatabaseSummary,
    Event,
    JobCleaned,
    JobFailed,
    JobPlanned,
    JobSkipped,
    OrphanFound,
    PurgePlanned,
    RunFinished,
    RunReport,
    RunStarted,
    Warned,
)
from eemtcleanupd.formatting import human_size, space
from eemtcleanupd.model import Job, Outcome

MEMORY_LIMIT_BYTES = 1 << 20
"""Size up to which a list of the document is kept in memory."""


class RunDocument:
    """Collects a run's events; long lists are kept in temporary files instead of memory.

    If there is no space for these files, the run continues and :meth:`write` fails.
    """

    def __init__(self) -> None:
        self._lists = {
            name: _SpooledList() for name in ("details", "skipped", "errors", "orphans", "trash", "warnings")
        }
        self._database: DatabaseSummary | None = None
        self._report: RunReport | None = None

    def __call__(self, event: Event) -> None:
        """Add an event to the document."""
        match event:
            case RunStarted():
                self._database = event.database
            case JobPlanned():
                freed, trashed = (0, event.size_bytes) if event.to_trash else (event.size_bytes, 0)
                detail = _job_detail(event.job, event.age, freed, trashed)
                artifacts = [artifact.found.label for artifact in event.artifacts]
                self._lists["details"].add({**detail, "reason": event.reason, "artifacts": artifacts})
            case JobCleaned():
                detail = _job_detail(event.job, event.age, event.bytes_freed, event.bytes_trashed)
                artifacts = [artifact.found.label for artifact in event.artifacts]
                self._lists["details"].add({**detail, "artifacts": artifacts, "in_trash": event.in_trash})
            case JobSkipped():
                if event.notable:
                    self._lists["skipped"].add(
                        {"job_id": event.job.id, "status": event.job.status, "reason": event.reason}
                    )
            case JobFailed():
                self._lists["errors"].add(
                    {"job_id": event.job_id, "status": event.status, "error": event.error}
                )
            case OrphanFound():
                self._lists["orphans"].add(
                    {
                        "path": event.found.label,
                        "bytes": event.size_bytes,
                        "removed": event.removed,
                        "planned": event.planned,
                        "acknowledged": event.acknowledged,
                    }
                )
            case PurgePlanned():
                self._lists["trash"].add(
                    {
                        "job_id": event.job_id or None,
                        "artifacts": list(event.artifacts),
                        "bytes": event.size_bytes,
                    }
                )
            case Warned():
                self._lists["warnings"].add(event.message)
            case RunFinished(report):
                self._report = report
            case _:
                pass

    def write(self, stream: IO[str]) -> None:
        """Write the document, or nothing if the run did not finish.

        Raises:
            OSError: a list was lost, so nothing was written; or ``stream`` cannot be written.
        """
        report = self._report
        if report is None:
            return
        for spool in self._lists.values():
            spool.finish()
        head = {
            "success": report.outcome is Outcome.SUCCESS,
            "run_id": report.run_id,
            "dry_run": report.dry_run,
            "outcome": report.outcome,
            "trigger": report.trigger,
            "user": report.user,
            "started_at": report.started_at.isoformat(),
            "finished_at": report.finished_at.isoformat(),
            "database": None if self._database is None else self._database.document(),
            "cleaned_jobs": {"successful": report.successful.jobs, "failed": report.failed.jobs},
            "space_freed": space(report.bytes_freed),
            "space_trashed": space(report.bytes_trashed),
            "purge_after": None if report.purge_after is None else report.purge_after.isoformat(),
            "error_count": report.errors,
            "trash_purged": report.trash_purged.jobs,
            "acknowledged": report.acknowledged,
            "missing": report.missing,
            "remaining": report.remaining,
            "remaining_bytes": report.remaining_bytes,
        }
        stream.write(json.dumps(head, indent=2).removesuffix("\n}"))
        for name, spool in self._lists.items():
            stream.write(f',\n  "{name}": [')
            for index, line in enumerate(spool):
                stream.write(("," if index else "") + "\n    " + line)
            stream.write("\n  ]" if spool.count else "]")
        stream.write("\n}\n")

    def close(self) -> None:
        """Remove the temporary files."""
        for spool in self._lists.values():
            spool.close()


class _SpooledList:
    """JSON values in a temporary file that stays in memory while it is small."""

    def __init__(self) -> None:
        # Closed by close().
        self._file = tempfile.SpooledTemporaryFile(max_size=MEMORY_LIMIT_BYTES, mode="w+", encoding="ascii")  # noqa: SIM115
        self._error: OSError | None = None
        self.count = 0

    def add(self, value: object) -> None:
        if self._error is None:
            try:
                self._file.write(json.dumps(value) + "\n")
            except OSError as error:  # the run frees a full disk, so it must continue
                self._error = error
        self.count += 1

    def finish(self) -> None:
        if self._error is not None:
            raise self._error
        self._file.seek(0)

    def close(self) -> None:
        with suppress(OSError):  # buffered data does not fit on a full disk either
            self._file.close()

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            yield line.rstrip("\n")


def _space(size_bytes: int) -> dict[str, Any]:
    return {"bytes": size_bytes, "human_readable": human_size(size_bytes, fixed=True)}


def _job_detail(job: Job, age: timedelta | None, freed_bytes: int, trashed_bytes: int) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "status": job.status,
        "age_days": None if age is None else round(age.total_seconds() / 86400, 1),
        "space_freed": human_size(freed_bytes, fixed=True),
        "space_freed_bytes": freed_bytes,
        "space_trashed": human_size(trashed_bytes, fixed=True),
        "space_trashed_bytes": trashed_bytes,
    }
