"""Errors that end a command, each with its exit code.

A message says what failed, why, and what to do.  It never contains a secret.
"""

from __future__ import annotations


class CleanupError(Exception):
    """Base of all errors that a command reports in one message, without a traceback."""

    exit_code = 1


class ConfigError(CleanupError):
    """The configuration, an environment variable or an option is invalid."""

    exit_code = 2


class StoreError(CleanupError):
    """The job database is missing, damaged, locked for too long, or not an EEMT job database."""

    exit_code = 3


class NoDatabaseError(StoreError):
    """There is no job database at its path, or the file there has no table ``jobs``."""


class RowError(StoreError):
    """A trigger, a constraint or a rule of the database refuses a change of one row."""


class RootError(CleanupError):
    """A folder of the job store is missing, was replaced, or is unsafe to use."""

    exit_code = 3


class LockHeldError(CleanupError):
    """Another run or daemon holds the lock of this job store."""

    exit_code = 4


class BreakerError(CleanupError):
    """A safety breaker refused the run before it changed anything."""

    exit_code = 5


class JobTableError(BreakerError):
    """The job table is probably not that of this store, so the run was refused."""


class AuditError(CleanupError):
    """The audit log is not writable, so the action was not performed."""

    exit_code = 3


class IdError(CleanupError):
    """An id is unknown, or several ids start with it."""


class TrashError(CleanupError):
    """A request to the trash failed and changed nothing."""


class BackupError(CleanupError):
    """A backup cannot be written, read or restored.  The job's data stays in place."""


class RerunError(CleanupError):
    """A job cannot be submitted again."""


class ReportError(CleanupError):
    """A report or its plot cannot be created or written."""
