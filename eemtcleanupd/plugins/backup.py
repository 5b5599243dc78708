"""Plugin ``backup``: copies each job before its deletion and deletes expired copies."""

from __future__ import annotations

import logging
import socket
from contextlib import ExitStack
from datetime import timedelta

from eemtcleanupd.cancellation import current_stop_flag
from eemtcleanupd.clock import Clock, system_clock
from eemtcleanupd.config.schema import BackupConfig
from eemtcleanupd.deletion.roots import open_root
from eemtcleanupd.errors import BackupError
from eemtcleanupd.events import RunFinished
from eemtcleanupd.formatting import human_size, printable
from eemtcleanupd.hookspecs import ArtifactPath, hookimpl
from eemtcleanupd.model import Job, Trigger

log = logging.getLogger(__name__)


class BackupPlugin:
    """Copies jobs before their deletion."""

    def __init__(self, clock: Clock = system_clock) -> None:
        self._clock = clock

    @hookimpl
    def before_stage(self, job: Job, artifacts: tuple[ArtifactPath, ...], settings: BackupConfig) -> None:
        """Write and verify one archive of all artifacts."""
        from eemtcleanupd.backup.archive import Head
        from eemtcleanupd.backup.folder import BackupFolder

        now = self._clock()
        head = Head(
            job_id=job.id,
            status=job.status,
            backed_up_at=now.isoformat(),
            host=socket.gethostname(),
            artifacts=tuple(artifact.found.label for artifact in artifacts),
            workflow_type=job.workflow_type,
            completed_at=None if job.completed_at is None else job.completed_at.isoformat(),
            dem_filename=job.dem_filename,
        )
        with ExitStack() as stack:
            entries = []
            for artifact in artifacts:
                root = open_root(artifact.found.artifact.root, artifact.path.parent)
                stack.callback(root.close)
                if (root.device, root.inode) != artifact.root_id:
                    raise BackupError(f"{root.path} was replaced by another folder during the run.")
                entries.append((root, artifact.found.artifact.name))
            contents = BackupFolder(settings.path).add(
                head, settings.format, now, entries, stop=current_stop_flag()
            )
        log.info(
            "Backed up job %s: %d files, %s", printable(job.id), contents.files, human_size(contents.bytes)
        )

    @hookimpl
    def run_finished(self, event: RunFinished, settings: BackupConfig) -> str:
        """Delete expired backups."""
        report = event.report
        if report.dry_run or report.is_test or report.trigger is Trigger.RECOVERY:
            return "nothing to do"
        from eemtcleanupd.backup.folder import BackupFolder

        expired = BackupFolder(settings.path).expire(self._clock(), timedelta(days=settings.retention_days))
        for backup in expired:
            log.info("Deleted backup %s: older than %g days", backup.path.name, settings.retention_days)
        return f"{len(expired)} expired"
