"""The errors a user may meet: each says what happened, to what, and what to do.

Every error carries the exit code that the command line ends with (DESIGN: 2 usage or configuration,
3 database or roots unusable, 4 lock held, 5 refused by a breaker).  A message never holds a secret.
"""

from __future__ import annotations


class CleanupError(Exception):
    """Base of all errors that are told to a user in one message, without a traceback."""

    exit_code = 1


class ConfigError(CleanupError):
    """The configuration, an environment variable or an option is wrong."""

    exit_code = 2


class StoreError(CleanupError):
    """The job database is missing, damaged, locked for too long, or not an EEMT job database."""

    exit_code = 3


class RootError(CleanupError):
    """A folder of the job store is missing, replaced, or not fit to delete in."""

    exit_code = 3


class LockHeldError(CleanupError):
    """Another run or daemon holds the lock of this job store."""

    exit_code = 4


class BreakerError(CleanupError):
    """A safety breaker refused the run before it changed anything."""

    exit_code = 5


class AuditError(CleanupError):
    """What is done cannot be written into the audit log, so it is not done."""

    exit_code = 3


class TrashError(CleanupError):
    """What is asked of the trash cannot be done; nothing has changed."""

    exit_code = 1


class BackupError(CleanupError):
    """A backup cannot be written, read or restored; the job's data stays where it is."""

    exit_code = 1


class RerunError(CleanupError):
    """A job cannot be submitted again."""

    exit_code = 1


class ReportError(CleanupError):
    """A report, or its picture, cannot be made or written."""

    exit_code = 1
