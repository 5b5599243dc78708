"""Every key of ``cleanup_config.yaml``, with its type, default, unit and meaning."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

# A million hours are 114 years; more is a slip of the keyboard, and would leave the range of dates.
Hours = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Percent = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Names = tuple[Annotated[str, Field(min_length=1)], ...]


def _insist_on_metadata(value: bool) -> bool:
    if not value:
        raise ValueError("metadata is kept for ever; false is not possible")
    return value


def _insist_on_zone(value: str) -> str:
    if value != "local":
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415

        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(
                f"'{value}' is no time zone; write local, or a name such as Europe/Berlin"
            ) from error
    return value


class Section(BaseModel):
    """A block of the file: unknown keys are errors, values are taken by their YAML type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _lists_become_tuples(cls, data: Any) -> Any:
        # Strict mode takes no list for a tuple, and YAML knows no tuples.
        if isinstance(data, dict):
            return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return data


class SuccessfulJobs(Section):
    """Retention of jobs that succeeded; ``days`` is an older spelling of ``hours``."""

    model_config = ConfigDict(
        json_schema_extra=lambda schema: schema["properties"].update(
            days={"type": "number", "minimum": 0, "description": "Older spelling of hours; give one of them."}
        )
    )

    hours: Hours = Field(168, description="Hours that the data of a successful job is kept after its end.")
    keep_metadata: bool = Field(True, description="Always true: the rows of the job table are kept for ever.")
    keep_logs: bool = Field(False, description="Keep its log files in <logs>/jobs/<id>/ when its data goes.")
    keep_last: Count = Field(0, description="Keep the newest N successful jobs whatever their age; 0: off.")

    _metadata = field_validator("keep_metadata")(_insist_on_metadata)

    @model_validator(mode="before")
    @classmethod
    def _days(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "days" not in data:
            return data
        if "hours" in data:
            raise ValueError("has both hours and days; give one of them")
        rest = {key: value for key, value in data.items() if key != "days"}
        days = data["days"]
        return {**rest, "hours": days * 24 if isinstance(days, int | float) and days is not True else days}


class FailedJobs(Section):
    """Retention of jobs that failed."""

    hours: Hours = Field(12, description="Hours that the data of a failed job is kept after its end.")
    keep_metadata: bool = Field(True, description="Always true: the rows of the job table are kept for ever.")
    keep_error_logs: bool = Field(
        True, description="Keep its log files in <logs>/jobs/<id>/ when its data goes."
    )

    _metadata = field_validator("keep_metadata")(_insist_on_metadata)


class Statuses(Section):
    """What the values of column ``status`` mean; any other is unknown and keeps its job."""

    successful: Names = Field(
        ("completed", "success", "succeeded", "done"), description="Statuses of jobs that succeeded."
    )
    failed: Names = Field(
        ("failed", "error", "cancelled", "canceled", "timeout"), description="Statuses of jobs that failed."
    )
    live: Names = Field(
        ("pending", "queued", "running"), description="Statuses of jobs that are never touched."
    )

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Self:
        every = [*self.successful, *self.failed, *self.live]
        twice = sorted({name for name in every if every.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is listed twice; a status has one meaning")
        return self


class Override(Section):
    """Another retention for one workflow type."""

    workflow_type: str = Field(
        min_length=1, description="The workflow that this is for, as in the job table."
    )
    successful_hours: Hours | None = Field(
        None, description="Hours for its successful jobs; null: as the others."
    )
    failed_hours: Hours | None = Field(None, description="Hours for its failed jobs; null: as the others.")


class RetentionConfig(Section):
    """How long whose data is kept."""

    successful_jobs: SuccessfulJobs = Field(
        default_factory=SuccessfulJobs, description="Jobs that succeeded."
    )
    failed_jobs: FailedJobs = Field(default_factory=FailedJobs, description="Jobs that failed.")
    log_patterns: Names = Field(
        ("*.log", "*.err", "*.out"), description="What a log file is, for keep_logs and keep_error_logs."
    )
    statuses: Statuses = Field(default_factory=Statuses, description="What each status means.")
    overrides: tuple[Override, ...] = Field((), description="Other retention for single workflow types.")

    @model_validator(mode="after")
    def _one_override_each(self) -> Self:
        names = [override.workflow_type for override in self.overrides]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"overrides has {', '.join(twice)} twice")
        return self


class ScheduleConfig(Section):
    """When the daemon runs; ``clean`` runs when it is called."""

    enabled: bool = Field(True, description="Whether the daemon cleans by itself.")
    cron: str | Names = Field("0 2 * * *", description="One cron expression, or a list of them.")
    timezone: str = Field(
        "local", description="Zone of the expressions: local, or a name such as Europe/Berlin."
    )
    jitter_seconds: Count = Field(0, description="Start up to so many seconds later, at random.")
    catch_up: bool = Field(True, description="Make up, once, for a run missed while the daemon was down.")
    run_on_start: bool = Field(False, description="Run when the daemon starts.")

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        from cronsim import CronSim, CronSimError  # noqa: PLC0415  (late: only where a cron is written)

        for expression in (value,) if isinstance(value, str) else value:
            if expression.strip() in _CRON_NAMES:
                continue
            if len(expression.split()) != 5:
                names = ", ".join(sorted(_CRON_NAMES))
                raise ValueError(
                    f"'{expression}' is not five fields (minute hour day month weekday) or {names}"
                )
            try:
                CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC))
            except CronSimError as error:
                raise ValueError(f"'{expression}' is no cron expression: {error}") from error
        return value

    _zone = field_validator("timezone")(_insist_on_zone)


_CRON_NAMES = {"@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"}


class PathsConfig(Section):
    """Where the job store is; relative paths are relative to this file."""

    model_config = ConfigDict(strict=False)

    database: str = Field("./jobs.db", description="The job database: a SQLite file, or a database URL.")
    uploads: Path = Field(Path("./uploads"), description="Folder of uploaded elevation models.")
    results: Path = Field(Path("./results"), description="Folder of job outputs.")
    temp: Path = Field(Path("./temp"), description="Folder of working files; may be absent.")
    logs: Path = Field(Path("./logs"), description="Folder of our logs and of kept job logs.")


class DatabaseConfig(Section):
    """How the job database is read and written."""

    timezone: str = Field("local", description="Zone of times without one in the job table.")
    busy_timeout_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        60, description="Seconds to wait for a locked database."
    )

    _zone = field_validator("timezone")(_insist_on_zone)


class PerformanceConfig(Section):
    """How fast, and how kind to the machine."""

    batch_size: Annotated[int, Field(ge=1, le=100_000)] = Field(100, description="Jobs planned at a time.")
    parallel_delete: bool = Field(True, description="Delete with several workers.")
    max_workers: Annotated[int, Field(ge=1, le=256)] = Field(4, description="How many workers.")
    executor: Literal["threads", "processes", "dask"] = Field("threads", description="What a worker is.")
    io_priority: Literal["best-effort", "idle"] = Field("best-effort", description="Priority of disk access.")
    max_deletes_per_second: Count = Field(0, description="Files deleted per second at most; 0: no limit.")


class TrashConfig(Section):
    """The time between out of sight and gone."""

    grace_hours: Hours = Field(
        0, description="Hours that data stays in the trash; 0: deleted in the same run."
    )


class OrphansConfig(Section):
    """Entries of the folders that no row of the job table names."""

    delete_after_hours: Hours | None = Field(
        None, description="Delete those untouched for so many hours; null: only report them."
    )


class SafetyConfig(Section):
    """When a run refuses, or stops by itself."""

    max_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.9, description="Refuse a run that would take more than this share of the jobs not cleaned yet."
    )
    max_fraction_min_jobs: Count = Field(100, description="Up to so many such jobs, max_fraction is off.")
    max_clock_leap_days: Annotated[float, Field(gt=0)] = Field(
        90, description="Refuse when the clock is more days after the last run than this, or before it."
    )
    max_jobs_per_run: Count = Field(
        0, description="Jobs cleaned in one run at most, oldest first; 0: no limit."
    )


class PressureConfig(Section):
    """Cleaning ahead of the retention when the disk is nearly full."""

    enabled: bool = Field(False, description="Whether to clean early when the disk is nearly full.")
    high_watermark_percent: Percent = Field(90, description="Begin when so much of the disk is used.")
    low_watermark_percent: Percent = Field(80, description="End when no more than this is used.")
    minimum_age_hours: Hours = Field(1, description="Never take what ended less than so many hours ago.")

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low_watermark_percent >= self.high_watermark_percent:
            raise ValueError("low_watermark_percent must be below high_watermark_percent")
        return self


class BackupConfig(Section):
    """A copy of each job before it goes."""

    model_config = ConfigDict(strict=False)

    enabled: bool = Field(False, strict=True, description="Whether to back up each job before it goes.")
    path: Path = Field(Path("./backup"), description="Folder of the backups.")
    retention_days: Annotated[float, Field(ge=0)] = Field(30, description="Days that a backup is kept.")


class ApiConfig(Section):
    """The HTTP interface."""

    model_config = ConfigDict(strict=False)

    enabled: bool = Field(False, strict=True, description="Whether to serve HTTP.")
    listen: str = Field("127.0.0.1:5001", description="host:port, or unix:/path/of/a/socket.")
    tokens_file: Path | None = Field(None, description="File of token hashes.")


class MetricsConfig(Section):
    """Metrics for Prometheus."""

    model_config = ConfigDict(strict=False)

    textfile: Path | None = Field(None, description="File that one-shot runs write for node_exporter.")


class LoggingConfig(Section):
    """The log."""

    model_config = ConfigDict(strict=False)

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The lowest level written."
    )
    format: Literal["text", "json"] = Field("text", description="Lines of text, or of JSON.")
    file: Path = Field(Path("./logs/cleanup.log"), description="The log file, rotated at 10 MB.")


class EmailConfig(Section):
    """Reports by e-mail."""

    enabled: bool = Field(False, description="Whether to send e-mail.")
    smtp_server: str = Field("localhost", description="Host name of the mail server.")
    recipients: Names = Field((), description="Addresses that get the report.")


class SlackConfig(Section):
    """Reports to a Slack channel."""

    model_config = ConfigDict(strict=False)

    enabled: bool = Field(False, strict=True, description="Whether to post to Slack.")
    webhook_url: SecretStr | None = Field(None, description="The incoming webhook; a secret.")
    webhook_url_file: Path | None = Field(
        None, description="File with the webhook's URL, or its name among systemd's credentials."
    )


class AuditLogConfig(Section):
    """The audit log."""

    model_config = ConfigDict(strict=False)

    enabled: bool = Field(True, strict=True, description="Whether to write the audit log.")
    path: Path = Field(Path("./logs/cleanup_audit.jsonl"), description="The audit log file.")


class NotificationsConfig(Section):
    """Who is told what was done."""

    email: EmailConfig = Field(default_factory=EmailConfig, description="Reports by e-mail.")
    slack: SlackConfig = Field(default_factory=SlackConfig, description="Reports to Slack.")
    audit_log: AuditLogConfig = Field(default_factory=AuditLogConfig, description="The audit log.")


class Config(Section):
    """The whole of ``cleanup_config.yaml``."""

    retention: RetentionConfig = Field(default_factory=RetentionConfig, description="How long data is kept.")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="When the daemon runs.")
    paths: PathsConfig = Field(default_factory=PathsConfig, description="Where the job store is.")
    database: DatabaseConfig = Field(default_factory=DatabaseConfig, description="Reading and writing it.")
    performance: PerformanceConfig = Field(default_factory=PerformanceConfig, description="How fast.")
    trash: TrashConfig = Field(default_factory=TrashConfig, description="Out of sight before gone.")
    orphans: OrphansConfig = Field(default_factory=OrphansConfig, description="Entries that nobody owns.")
    safety: SafetyConfig = Field(default_factory=SafetyConfig, description="When a run refuses.")
    pressure: PressureConfig = Field(default_factory=PressureConfig, description="When the disk is full.")
    backup: BackupConfig = Field(default_factory=BackupConfig, description="A copy before it goes.")
    api: ApiConfig = Field(default_factory=ApiConfig, description="The HTTP interface.")
    metrics: MetricsConfig = Field(default_factory=MetricsConfig, description="Metrics for Prometheus.")
    logging: LoggingConfig = Field(default_factory=LoggingConfig, description="The log.")
    plugins: Names = Field((), description="Modules of plugins to load.")
    notifications: NotificationsConfig = Field(
        default_factory=NotificationsConfig, description="Who is told what was done."
    )
    dry_run: bool = Field(False, description="Only ever show what would be deleted.")
