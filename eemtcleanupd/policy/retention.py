"""Retention: from a job, a policy and the present to keep or clean, with the reason in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType

from eemtcleanupd.config import RetentionConfig
from eemtcleanupd.formatting import human_age, printable
from eemtcleanupd.model import Decision, Hold, Job, JobClass
from eemtcleanupd.policy.ownership import ARCHIVE_SUFFIX, invalid_name_reason

TERMINAL = (JobClass.SUCCESSFUL, JobClass.FAILED)


@dataclass(frozen=True, slots=True)
class Policy:
    """How long the data of which job is kept; ``str(policy)`` says it as a sentence."""

    successful: timedelta = timedelta(hours=168)
    failed: timedelta = timedelta(hours=12)
    statuses: Mapping[str, JobClass] = field(default_factory=dict)
    overrides: Mapping[tuple[str, JobClass], timedelta] = field(default_factory=dict)
    keep_last: int = 0
    keep_logs: frozenset[JobClass] = frozenset()
    log_patterns: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: RetentionConfig) -> Policy:
        """Build the policy that a configuration's ``retention`` block describes."""
        statuses = {
            status: job_class
            for job_class, names in (
                (JobClass.SUCCESSFUL, config.statuses.successful),
                (JobClass.FAILED, config.statuses.failed),
                (JobClass.LIVE, config.statuses.live),
            )
            for status in names
        }
        overrides = {
            (override.workflow_type, job_class): timedelta(hours=hours)
            for override in config.overrides
            for job_class, hours in (
                (JobClass.SUCCESSFUL, override.successful_hours),
                (JobClass.FAILED, override.failed_hours),
            )
            if hours is not None
        }
        kept = {
            JobClass.SUCCESSFUL: config.successful_jobs.keep_logs,
            JobClass.FAILED: config.failed_jobs.keep_error_logs,
        }
        return cls(
            successful=timedelta(hours=config.successful_jobs.hours),
            failed=timedelta(hours=config.failed_jobs.hours),
            statuses=MappingProxyType(statuses),
            overrides=MappingProxyType(overrides),
            keep_last=config.successful_jobs.keep_last,
            keep_logs=frozenset(job_class for job_class, keep in kept.items() if keep),
            log_patterns=tuple(config.log_patterns),
        )

    def classify(self, status: str | None) -> JobClass:
        """Return what a status means; one that the configuration does not name is unknown."""
        return self.statuses.get(status or "", JobClass.UNKNOWN)

    def retention(self, job_class: JobClass, workflow_type: str | None) -> timedelta:
        """Return how long the data of a terminal job of this class and workflow is kept."""
        default = self.successful if job_class is JobClass.SUCCESSFUL else self.failed
        return self.overrides.get((workflow_type or "", job_class), default)

    def shortest(self, job_class: JobClass) -> timedelta:
        """Return the shortest retention that any job of a class has: what ended later cannot be due."""
        default = self.successful if job_class is JobClass.SUCCESSFUL else self.failed
        return min([default, *(span for (_, of), span in self.overrides.items() if of is job_class)])

    def __str__(self) -> str:
        parts = [
            f"Data of successful jobs is kept for {_span(self.successful)} after their end",
            f"of failed jobs for {_span(self.failed)}",
        ]
        for (workflow, job_class), span in sorted(self.overrides.items()):
            parts.append(f"of {job_class} {workflow} jobs for {_span(span)}")
        sentences = [", ".join(parts)]
        if self.keep_last:
            last = "job keeps" if self.keep_last == 1 else f"{self.keep_last} jobs keep"
            sentences.append(f"The newest successful {last} theirs whatever their age")
        for job_class in sorted(self.keep_logs):
            sentences.append(f"Logs of {job_class} jobs ({', '.join(self.log_patterns)}) are kept")
        sentences.append("Metadata is kept for ever")
        return ". ".join(sentences) + "."


def decide(
    job: Job, policy: Policy, now: datetime, *, hold: Hold | None = None, among_last: bool = False
) -> Decision:
    """Decide about one job that has not been cleaned yet.

    Args:
        job: the job, its ``completed_at`` aware and in UTC.
        policy: the retention policy.
        now: the present, aware, in UTC.
        hold: the job's hold, active or not, if there is one.
        among_last: whether the job is one of the newest ``keep_last`` successful ones.

    Returns:
        The decision: everything that is in doubt is kept, and what an operator should hear of is notable.
    """
    job_class = policy.classify(job.status)

    def keep(reason: str, *, age: timedelta | None = None, notable: bool = False) -> Decision:
        return Decision(job, job_class, clean=False, reason=reason, age=age, notable=notable)

    if job_class is JobClass.LIVE:
        return keep(f"it is {printable(job.status)}")
    if (fault := invalid_name_reason(job.id, suffix=ARCHIVE_SUFFIX)) is not None:
        return keep(f"refused: its id {fault}", notable=True)
    if job.dem_filename is not None and (fault := invalid_name_reason(job.dem_filename)) is not None:
        return keep(f"refused: its dem_filename {fault}", notable=True)
    if job_class is JobClass.UNKNOWN:
        return keep(f"status '{printable(job.status)}' is not in retention.statuses", notable=True)
    if job.completed_at is None:
        return keep("undated: completed_at is empty or not a readable time", notable=True)
    age = now - job.completed_at
    retention = policy.retention(job_class, job.workflow_type)
    if age < retention:
        return keep(f"its {_span(retention)} end in {human_age(retention - age)}", age=age)
    if hold is not None and hold.is_active(now):
        until = f" until {hold.until:%Y-%m-%d %H:%M} UTC" if hold.until else ""
        return keep(f"held by {printable(hold.owner)}{until}: {printable(hold.reason)}", age=age)
    if among_last:
        return keep(f"one of the newest {policy.keep_last} successful jobs", age=age)
    reason = f"{job_class}, ended {human_age(age)} ago, kept for {_span(retention)}"
    return Decision(job, job_class, clean=True, reason=reason, age=age)


def _span(span: timedelta) -> str:
    """Return a retention as its author thinks of it: whole days as days, all else as hours."""
    hours = span.total_seconds() / 3600
    if hours >= 48 and hours % 24 == 0:
        return f"{hours / 24:g} days"
    return f"{hours:g} hour{'' if hours == 1 else 's'}"
