"""What this version cannot do yet though there is a key for it: nothing silently does nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NotYet:
    """A key, the test for values that ask for something, and what is missing for that.

    ``protects`` marks what keeps data: to go on without it would delete what its user means to keep.
    """

    key: str
    asks: Callable[[Any], object]
    missing: str
    protects: bool = False


_NO_AUDIT_LOG = "no audit log file yet; table cleanup_audit has it all"

NOT_YET = (
    NotYet("performance.executor", lambda name: name == "dask", "no other machines yet"),
    NotYet("performance.io_priority", lambda name: name != "best-effort", "no disk priority yet"),
    NotYet("performance.max_deletes_per_second", bool, "no limit of the rate yet"),
    NotYet("backup.enabled", bool, "no backups yet", protects=True),
    NotYet("api.enabled", bool, "no HTTP interface yet"),
    NotYet("metrics.textfile", bool, "no metrics yet"),
    NotYet("plugins", bool, "no plugins yet, which may veto a cleanup", protects=True),
    NotYet("notifications.email.enabled", bool, "no e-mail yet"),
    NotYet("notifications.slack.enabled", bool, "no Slack notifier yet"),
    NotYet("notifications.audit_log.enabled", bool, _NO_AUDIT_LOG),
    NotYet("notifications.audit_log.path", bool, _NO_AUDIT_LOG),
)
