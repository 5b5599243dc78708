"""A run as one JSON document: the answer that the user's document gives an example of, and more keys."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

from eemtcleanupd.events import (
    Event,
    JobCleaned,
    JobFailed,
    JobPlanned,
    JobSkipped,
    OrphanFound,
    RunFinished,
    RunReport,
    Warned,
)
from eemtcleanupd.formatting import human_size
from eemtcleanupd.model import Outcome

_IN_MEMORY_BYTES = 1 << 20


class RunDocument:
    """Collects a run as the document's API answer; long lists wait in temporary files, not in memory.

    Where there is no room for these the run goes on, and its answer cannot be written.
    """

    def __init__(self) -> None:
        self._lists = {
            name: _SpooledList() for name in ("details", "skipped", "errors", "orphans", "warnings")
        }
        self._report: RunReport | None = None

    def __call__(self, event: Event) -> None:
        """Remember what this event says."""
        match event:
            case JobPlanned():
                parts = [part.found.label for part in event.artifacts]
                detail = _job_entry(
                    event.job.id, event.job.status, event.age.total_seconds(), event.size_bytes
                )
                self._lists["details"].add({**detail, "reason": event.reason, "artifacts": parts})
            case JobCleaned():
                parts = [part.found.label for part in event.artifacts]
                age = None if event.age is None else event.age.total_seconds()
                detail = _job_entry(event.job.id, event.job.status, age, event.bytes_freed)
                self._lists["details"].add({**detail, "artifacts": parts, "in_trash": event.in_trash})
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
                    {"path": event.found.label, "bytes": event.size_bytes, "removed": event.removed}
                )
            case Warned():
                self._lists["warnings"].add(event.message)
            case RunFinished(report):
                self._report = report
            case _:
                pass

    def write(self, stream: IO[str]) -> None:
        """Write the document; nothing is written when the run did not end.

        Raises:
            OSError: it was not kept whole, then nothing is written; or ``stream`` cannot be written.
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
            "cleaned_jobs": {"successful": report.successful.jobs, "failed": report.failed.jobs},
            "space_freed": {
                "bytes": report.bytes_freed,
                "human_readable": human_size(report.bytes_freed, fixed=True),
            },
            "trash_purged": report.trash_purged.jobs,
            "missing": report.missing,
            "remaining": report.remaining,
        }
        stream.write(json.dumps(head, indent=2).removesuffix("\n}"))
        for name, spool in self._lists.items():
            stream.write(f',\n  "{name}": [')
            for at, line in enumerate(spool):
                stream.write(("," if at else "") + "\n    " + line)
            stream.write("\n  ]" if spool.count else "]")
        stream.write("\n}\n")

    def close(self) -> None:
        """Let go of the temporary files."""
        for spool in self._lists.values():
            spool.close()


class _SpooledList:
    """JSON values in a file that stays in memory while it is small."""

    def __init__(self) -> None:
        # Closed with the object; a run has exactly one document.
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES, mode="w+", encoding="ascii")  # noqa: SIM115
        self._error: OSError | None = None
        self.count = 0

    def add(self, value: object) -> None:
        if self._error is None:
            try:
                self._file.write(json.dumps(value) + "\n")
            except OSError as error:  # a full disk is what the run is about to mend: it must go on
                self._error = error
        self.count += 1

    def finish(self) -> None:
        if self._error is not None:
            raise self._error
        self._file.seek(0)

    def close(self) -> None:
        with suppress(OSError):  # what is left to write has no room either
            self._file.close()

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            yield line.rstrip("\n")


def _job_entry(job_id: str, status: str, age_seconds: float | None, size_bytes: int) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "status": status,
        "age_days": None if age_seconds is None else round(age_seconds / 86400, 1),
        "space_freed": human_size(size_bytes, fixed=True),
        "space_freed_bytes": size_bytes,
    }
