"""Events of runs and of the daemon: data, hook, filter name, severity and texts of each in one place."""

from eemtcleanupd.events.base import Emit as Emit, Event as Event, Occasion as Occasion, Severity as Severity
from eemtcleanupd.events.runs import (
    JobCleaned as JobCleaned,
    JobFailed as JobFailed,
    JobPlanned as JobPlanned,
    JobSkipped as JobSkipped,
    OrphanFound as OrphanFound,
    PurgePlanned as PurgePlanned,
    RunFailed as RunFailed,
    RunFinished as RunFinished,
    RunStarted as RunStarted,
    Warned as Warned,
)
from eemtcleanupd.events.system import (
    CapacityWarning as CapacityWarning,
    ConfigRejected as ConfigRejected,
    ConfigReloaded as ConfigReloaded,
    DaemonStarted as DaemonStarted,
    DaemonStopping as DaemonStopping,
    DiskPressure as DiskPressure,
)
from eemtcleanupd.events.values import (
    DURATION_BUCKETS as DURATION_BUCKETS,
    ArtifactSize as ArtifactSize,
    AuditEntry as AuditEntry,
    JobNote as JobNote,
    JobTally as JobTally,
    RunReport as RunReport,
    StoragePoint as StoragePoint,
    StorageState as StorageState,
    Total as Total,
)

# `slots=True` makes a second class, and the first stays a subclass: of each hook, the last class counts.
HOOK_EVENTS: dict[str, type[Event]] = {event.hook: event for event in Event.__subclasses__() if event.hook}
"""Event class by hook name, those of runs first."""
