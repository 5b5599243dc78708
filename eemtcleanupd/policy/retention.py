"""Retention: whether a job is kept or cleaned at a given time, and why."""

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
FIRST_YEAR = 2000
"""Jobs did not exist before this year, so an earlier end is a number or a placeholder."""
FUTURE_TOLERANCE = timedelta(minutes=5)
"""How far the clocks of two machines can differ."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Retention periods by job class and workflow.  ``str(policy)`` describes them in sentences."""

    successful: timedelta = timedelta(hours=168)
    failed: timedelta = timedelta(hours=12)
    statuses: Mapping[str, JobClass] = field(default_factory=dict)
    overrides: Mapping[tuple[str, JobClass], timedelta] = field(default_factory=dict)
    keep_last: int = 0
    keep_logs: frozenset[JobClass] = frozenset()
    log_patterns: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: RetentionConfig) -> Policy:
        """Build the policy from the ``retention`` block of a configuration."""
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
        keep_logs = {
            JobClass.SUCCESSFUL: config.successful_jobs.keep_logs,
            JobClass.FAILED: config.failed_jobs.keep_error_logs,
        }
        return cls(
            successful=timedelta(hours=config.successful_jobs.hours),
            failed=timedelta(hours=config.failed_jobs.hours),
            statuses=MappingProxyType(statuses),
            overrides=MappingProxyType(overrides),
            keep_last=config.successful_jobs.keep_last,
            keep_logs=frozenset(job_class for job_class, keep in keep_logs.items() if keep),
            log_patterns=tuple(config.log_patterns),
        )

    def classify(self, status: str | None) -> JobClass:
        """Return the class of a status.  A status that the configuration does not name is unknown."""
        return self.statuses.get(status or "", JobClass.UNKNOWN)

    def retention(self, job_class: JobClass, workflow_type: str | None) -> timedelta:
        """Return the retention of terminal jobs of this class and workflow."""
        return self.overrides.get((workflow_type or "", job_class), self.default(job_class))

    def shortest(self, job_class: JobClass) -> timedelta:
        """Return the shortest retention of a class.  A job that ended more recently is never expired."""
        overrides = (span for (_, of), span in self.overrides.items() if of is job_class)
        return min([self.default(job_class), *overrides])

    def default(self, job_class: JobClass) -> timedelta:
        """Return the retention of jobs of this class whose workflow has none of its own."""
        return self.successful if job_class is JobClass.SUCCESSFUL else self.failed

    def __str__(self) -> str:
        parts = [
            f"Data of successful jobs is kept for {_format_retention(self.successful)} after their end",
            f"of failed jobs for {_format_retention(self.failed)}",
        ]
        for (workflow, job_class), span in sorted(self.overrides.items()):
            parts.append(f"of {job_class} {workflow} jobs for {_format_retention(span)}")
        sentences = [", ".join(parts)]
        if self.keep_last:
            newest = "job is" if self.keep_last == 1 else f"{self.keep_last} jobs are"
            sentences.append(f"The newest successful {newest} kept at any age")
        for job_class in sorted(self.keep_logs):
            sentences.append(f"Logs of {job_class} jobs ({', '.join(self.log_patterns)}) are kept")
        sentences.append("Metadata is never deleted")
        return ". ".join(sentences) + "."


def end_problem(job: Job, now: datetime) -> str | None:
    """Return why the end of a job that is over cannot be trusted, or None if it can.

    Args:
        job: the job, with its times aware and in UTC.
        now: the current time, aware.
    """
    end = job.completed_at
    if end is None:
        return "end time unknown: completed_at is empty or not a valid time"
    if end.year < FIRST_YEAR:
        return f"its end ({_format_moment(end)}) is before the year {FIRST_YEAR}"
    for name, earlier in (("started_at", job.started_at), ("created_at", job.created_at)):
        if earlier is not None and end < earlier:
            return f"its end ({_format_moment(end)}) is before {name} ({_format_moment(earlier)})"
    if end > now + FUTURE_TOLERANCE:
        return f"its end ({_format_moment(end)}) lies in the future. Is database.timezone right?"
    return None


def decide(
    job: Job, policy: Policy, now: datetime, *, hold: Hold | None = None, among_last: bool = False
) -> Decision:
    """Decide whether to clean a job that has not been cleaned yet.  In doubt, keep it.

    ``hold`` is the job's hold, active or not.  ``among_last`` says whether the job is one of the
    ``keep_last`` newest successful jobs.  Times are aware, in UTC.
    """
    job_class = policy.classify(job.status)

    def keep(reason: str, *, age: timedelta | None = None, notable: bool = False) -> Decision:
        return Decision(job, job_class, clean=False, reason=reason, age=age, notable=notable)

    if job_class is JobClass.LIVE:
        return keep(f"status is {printable(job.status)}")
    if (problem := invalid_name_reason(job.id, suffix=ARCHIVE_SUFFIX)) is not None:
        return keep(f"invalid job: its id {problem}", notable=True)
    if job.dem_filename is not None and (problem := invalid_name_reason(job.dem_filename)) is not None:
        return keep(f"invalid job: its dem_filename {problem}", notable=True)
    if job_class is JobClass.UNKNOWN:
        return keep(f"status '{printable(job.status)}' is not in retention.statuses", notable=True)
    problem = end_problem(job, now)
    if problem is not None or job.completed_at is None:
        return keep(problem or "", notable=True)
    age = now - job.completed_at
    retention = policy.retention(job_class, job.workflow_type)
    if age < retention:
        return keep(
            f"its retention of {_format_retention(retention)} ends in {human_age(retention - age)}", age=age
        )
    if hold is not None and hold.is_active(now):
        until = f" until {hold.until:%Y-%m-%d %H:%M} UTC" if hold.until else ""
        return keep(f"held by {printable(hold.owner)}{until}: {printable(hold.reason)}", age=age)
    if among_last:
        return keep(f"one of the {policy.keep_last} newest successful jobs (keep_last)", age=age)
    reason = f"{job_class}, ended {human_age(age)} ago, retention {_format_retention(retention)}"
    return Decision(job, job_class, clean=True, reason=reason, age=age)


def kept_until(decision: Decision, policy: Policy, now: datetime, hold: Hold | None) -> datetime | None:
    """Return until when a job that has not been cleaned is kept: until its retention and its hold have ended.

    The time of an expired job is in the past.  Return None if that time is not known: the job is live, it has
    no valid end, its hold has no end, or something else keeps it.
    """
    end = decision.job.completed_at
    if decision.age is None or end is None:
        return None
    expiry = end + policy.retention(decision.job_class, decision.job.workflow_type)
    if hold is not None and hold.is_active(now):
        return None if hold.until is None else max(expiry, hold.until)
    return expiry if decision.clean or now < expiry else None


def _format_moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _format_retention(retention: timedelta) -> str:
    # As operators configure it: whole days as days, everything else as hours.
    hours = retention.total_seconds() / 3600
    if hours >= 48 and hours % 24 == 0:
        days = hours / 24
        return "1 day" if days == 1 else f"{days:,g} days"
    return f"{hours:g} hour{'' if hours == 1 else 's'}"
