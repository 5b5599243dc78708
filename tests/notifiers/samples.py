"""Events as notifiers receive them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from eemtcleanupd.events import (
    CapacityWarning,
    ConfigRejected,
    ConfigReloaded,
    DaemonStarted,
    DaemonStopping,
    DiskPressure,
    JobNote,
    JobTally,
    RunFailed,
    RunFinished,
    RunReport,
    StoragePoint,
    StorageState,
    Total,
)
from eemtcleanupd.hookspecs import Digest
from eemtcleanupd.model import Outcome, Trigger

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
HOSTILE = (
    '<!channel> <https://evil.example|click> @here *bold* `code` & "quotes" \'',
    "line\r\nBcc: everybody@example.com\r\n\r\nbody",
    "\u202egnp.exe\u2066\x1b[31m\x00\x07",
    "bytes-\udcff\udcfe",
    "{{ 7*7 }} ${HOME} %s {0} </td><script>alert(1)</script>",
    "x" * 10_000,
)


def report(
    outcome: str = "success", *, errors: int = 0, jobs: tuple[JobNote, ...] = (), **more: object
) -> RunReport:
    storage = StorageState(
        successful_bytes=30 * 2**30,
        failed_bytes=2**30,
        free_bytes=50 * 2**30,
        total_bytes=100 * 2**30,
        capacity_max_bytes=60 * 2**30,
        trend=tuple(
            StoragePoint(NOW - timedelta(days=day), (30 + day) * 2**30, (50 - day) * 2**30)
            for day in range(5, 0, -1)
        ),
    )
    values: dict[str, object] = {
        "run_id": "20260615T120000-abcd",
        "dry_run": False,
        "trigger": Trigger.SCHEDULE,
        "user": "auto_cleanup",
        "started_at": NOW - timedelta(seconds=9),
        "finished_at": NOW,
        "outcome": Outcome(outcome),
        "successful": JobTally(3, 45 * 2**30),
        "failed": JobTally(2, 2**29),
        "errors": errors,
        "host": "gis1",
        "biggest": jobs or (JobNote("job-20240113-123456", "completed", 15 * 2**30),),
        "storage": storage,
        "totals": (Total("runs", "success", 7.0), Total("jobs_cleaned", "completed", 12.0)),
        "next_run_at": NOW + timedelta(hours=14),
    }
    return RunReport(**{**values, **more})  # type: ignore[arg-type]


FINISHED = RunFinished(report())
FAILED = RunFailed("20260615T120000-abcd", "the disk is not mounted", Trigger.SCHEDULE, "gis1", NOW)
HOSTILE_REPORT = RunFinished(
    report(
        "errors",
        errors=len(HOSTILE),
        jobs=tuple(JobNote(name, name, 2**20, name) for name in HOSTILE),
        failures=tuple(JobNote(name, name, 0, name) for name in HOSTILE),
        vetoed=tuple(JobNote(name, name, 0, name) for name in HOSTILE),
        host=HOSTILE[1],
    )
)
EVENTS = (
    FINISHED,
    FAILED,
    HOSTILE_REPORT,
    RunFinished(report("interrupted")),
    Digest(NOW, NOW, (FINISHED, HOSTILE_REPORT), (FAILED,)),
    DiskPressure(91.5, 2**30, 90, 80),
    CapacityWarning(85 * 2**30, 100 * 2**30, 80),
    ConfigReloaded("/etc/eemtcleanupd/cleanup_config.yaml", "SIGHUP"),
    ConfigRejected("/etc/eemtcleanupd/cleanup_config.yaml", "SIGHUP", "line 3: retention.hours\nis wrong"),
    DaemonStarted(1, "gis1", None),
    DaemonStopping("SIGTERM"),
)
