"""Every key of ``cleanup_config.yaml``, with its type, default, unit and meaning.

The models are strict, so that what YAML takes for something else (``no`` for false, ``"12"`` for text) is
an error and never a surprise.  Each value that cannot work is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    Strict,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from eemtcleanupd.config.base import Section, holds, is_optional_block, leaves
from eemtcleanupd.config.plugin_settings import PluginSettings
from eemtcleanupd.config.types import (
    Cluster,
    Count,
    Crons,
    Database,
    Days,
    FilePath,
    Hours,
    Level,
    Listen,
    Metadata,
    Patterns,
    Percent,
    Size,
    SizeOrZero,
    SomeTexts,
    Text,
    Texts,
    Workers,
    Zone,
    no_small_chunk,
)


class SuccessfulJobs(Section):
    """Retention of jobs that succeeded."""

    hours: Hours = Field(168, description="Hours that the data of a successful job is kept after its end.")
    days: Days | None = Field(None, description="Older spelling of hours, in days; give one of the two.")
    keep_metadata: Metadata = Field(True, description="Always true: rows of the job table stay for ever.")
    keep_logs: bool = Field(False, description="Keep its log files in <logs>/jobs/<id>/ when its data goes.")
    keep_last: Count = Field(0, description="Keep the newest N successful jobs whatever their age; 0: off.")


class FailedJobs(Section):
    """Retention of jobs that failed."""

    hours: Hours = Field(12, description="Hours that the data of a failed job is kept after its end.")
    keep_metadata: Metadata = Field(True, description="Always true: rows of the job table stay for ever.")
    keep_error_logs: bool = Field(
        True, description="Keep its log files in <logs>/jobs/<id>/ when its data goes."
    )


class Statuses(Section):
    """What the values of column ``status`` mean; any other is unknown and keeps its job."""

    successful: SomeTexts = Field(
        ("completed", "success", "succeeded", "done"), description="Statuses of jobs that succeeded."
    )
    failed: Texts = Field(
        ("failed", "error", "cancelled", "canceled", "timeout"), description="Statuses of jobs that failed."
    )
    live: Texts = Field(
        ("pending", "queued", "running"), description="Statuses of jobs that are never touched."
    )

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Self:
        every = (*self.successful, *self.failed, *self.live)
        if twice := _repeated(every):
            raise ValueError(f"{twice} is listed twice (a list that is left out has its default)")
        return self


class Override(Section):
    """Another retention for one workflow type."""

    workflow_type: Text = Field(description="The workflow that this is for, as in the job table.")
    successful_hours: Hours | None = Field(
        None, description="Hours for its successful jobs; null: as the others."
    )
    failed_hours: Hours | None = Field(None, description="Hours for its failed jobs; null: as the others.")

    @model_validator(mode="after")
    def _overrides_something(self) -> Self:
        if self.successful_hours is None and self.failed_hours is None:
            raise ValueError("give successful_hours, failed_hours, or both")
        return self


class RetentionConfig(Section):
    """How long whose data is kept."""

    successful_jobs: SuccessfulJobs = Field(
        default_factory=SuccessfulJobs, description="Jobs that succeeded."
    )
    failed_jobs: FailedJobs = Field(default_factory=FailedJobs, description="Jobs that failed.")
    log_patterns: Patterns = Field(
        ("*.log", "*.err", "*.out"),
        description="File names that are logs, as shell patterns, for keep_logs and keep_error_logs.",
    )
    statuses: Statuses = Field(default_factory=Statuses, description="What each status means.")
    overrides: Annotated[tuple[Override, ...], Strict(False)] = Field(
        (), description="Other retention for single workflow types."
    )

    @field_validator("overrides")
    @classmethod
    def _one_override_each(cls, value: tuple[Override, ...]) -> tuple[Override, ...]:
        if twice := _repeated(tuple(override.workflow_type for override in value)):
            raise ValueError(f"workflow_type {twice} is listed twice; put its hours into one entry")
        return value


class ScheduleConfig(Section):
    """When the daemon runs; ``clean`` runs when it is called."""

    enabled: bool = Field(False, description="Whether the daemon cleans on schedule.")
    cron: Crons = Field(
        ("0 2 * * *",), description="Cron expression (minute hour day month weekday), or a list of them."
    )
    timezone: Zone = Field(
        "local", description="Zone of the expressions: local, or a name such as Europe/Berlin."
    )
    jitter_seconds: Annotated[int, Field(ge=0, le=86_400)] = Field(
        0, description="Start up to so many seconds later, at random."
    )
    catch_up: bool = Field(True, description="Make up, once, for runs missed while the daemon was down.")
    run_on_start: bool = Field(False, description="Run when the daemon starts.")
    start_delay_seconds: Annotated[int, Field(ge=0, le=86_400)] = Field(
        0, description="Start no run by itself for so many seconds after the daemon started."
    )


class PathsConfig(Section):
    """Where the job store is; relative paths are relative to the file."""

    database: Database = Field(
        "./jobs.db", validate_default=True, description="The job database: a SQLite file, or a database URL."
    )
    uploads: FilePath = Field(Path("./uploads"), description="Folder of uploaded elevation models.")
    results: FilePath = Field(Path("./results"), description="Folder of job outputs.")
    temp: FilePath = Field(Path("./temp"), description="Folder of working files; may be absent.")
    logs: FilePath = Field(Path("./logs"), description="Folder of our logs and of kept job logs.")


class DatabaseConfig(Section):
    """How the job database is read and written."""

    timezone: Zone = Field(
        "local", description="Zone of times in the job table: local, or a name such as Europe/Berlin."
    )
    busy_timeout_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        60, description="Seconds to wait for a locked database."
    )


class HaConfig(Section):
    """Two daemons on one job store, whose database is on a PostgreSQL server."""

    takeover_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        30,
        description="Seconds until a daemon that stands by takes over from one that is gone, 3 at least;"
        " 0: a second daemon does not start.",
    )

    @field_validator("takeover_seconds")
    @classmethod
    def _time_to_be_heard(cls, value: int) -> int:
        if value in {1, 2}:
            raise ValueError("3 or more (or 0): a daemon on a busy machine must have time to be heard")
        return value


class DaskConfig(Section):
    """A cluster whose workers delete, see docs/scaling.md."""

    scheduler: Cluster | None = Field(None, description="Address of its scheduler, tls://host:port.")
    tls_ca_file: FilePath | None = Field(None, description="Who signed the certificates of all (PEM).")
    tls_cert_file: FilePath | None = Field(None, description="Our certificate (PEM).")
    tls_key_file: FilePath | None = Field(None, description="Key of our certificate (PEM).")


class PerformanceConfig(Section):
    """How fast, and how kind to the machine."""

    batch_size: Annotated[int, Field(ge=1, le=100_000)] = Field(100, description="Jobs planned at a time.")
    parallel_delete: bool = Field(True, description="Delete with several workers.")
    max_workers: Workers = Field(
        4, description="How many workers delete; auto: as many as serve, found out while they work."
    )
    auto_max_workers: Annotated[int, Field(ge=1, le=256)] = Field(
        16, description="How many workers auto may use at most."
    )
    executor: Literal["threads", "processes", "dask"] = Field(
        "threads",
        description="threads or processes: threads here that move into helper processes when there is much; "
        "dask: the workers of a cluster as well.",
    )
    dask: DaskConfig = Field(default_factory=DaskConfig, description="The cluster.")
    io_priority: Literal["best-effort", "idle"] = Field(
        "best-effort",
        description="idle: those who delete use the disk only when nobody else wants it, see ionice(1).",
    )
    nice: Annotated[int, Field(ge=0, le=19)] = Field(
        0, description="Niceness of those who delete, see nice(1); 0: that of the whole process."
    )
    max_deletes_per_second: Count = Field(
        0, description="Files and folders deleted per second at most; 0: no limit."
    )
    max_bytes_per_second: SizeOrZero = Field(
        0, description="Bytes freed per second at most, such as 200M; 0: no limit."
    )
    truncate_chunk: Annotated[SizeOrZero, AfterValidator(no_small_chunk)] = Field(
        0, description="Free bigger files in steps of so many bytes, such as 1G; 0: each at once."
    )

    @model_validator(mode="after")
    def _has_a_cluster(self) -> Self:
        missing = [f"dask.{name}" for name, value in self.dask if value is None]
        if self.executor == "dask" and missing:
            raise ValueError(f"executor: dask needs {', '.join(missing)}")
        return self


class TrashConfig(Section):
    """The time between out of sight and gone."""

    grace_hours: Hours = Field(0, description="Hours that data stays in the trash; 0: it goes at once.")


class OrphansConfig(Section):
    """Entries of the folders that no row of the job table names."""

    delete_after_hours: Hours | None = Field(
        None, description="Delete those untouched for so many hours; null: only report them."
    )


class SafetyConfig(Section):
    """When a run refuses, or stops by itself."""

    max_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.9, description="Refuse a run that would take more than this share (0 to 1) of the uncleaned jobs."
    )
    max_fraction_min_jobs: Count = Field(
        100, description="With no more uncleaned jobs than this, max_fraction is off."
    )
    max_clock_leap_days: Annotated[float, Field(gt=0, le=40_000)] = Field(
        90, description="Refuse when the last run is more days ago than this, or in the future."
    )
    max_jobs_per_run: Count = Field(
        0, description="Jobs cleaned in one run at most, oldest first; 0: no limit."
    )
    ballast: SizeOrZero = Field(
        16 * 1024 * 1024,
        description="Room set aside on the disks that a run writes to, given back when one is full, in bytes "
        "or as 16M; 0: none.",
    )


class PressureConfig(Section):
    """Cleaning ahead of the retention when the disk is nearly full."""

    enabled: bool = Field(False, description="Whether to clean early when the disk is nearly full.")
    high_watermark_percent: Percent = Field(90, description="Begin when so much of the disk is used.")
    low_watermark_percent: Percent = Field(
        80, validate_default=True, description="End when no more than this is used; below high_watermark."
    )
    minimum_age_hours: Hours = Field(1, description="Never take what ended less than so many hours ago.")

    @field_validator("low_watermark_percent")
    @classmethod
    def _low_below_high(cls, value: float, info: ValidationInfo) -> float:
        high = info.data.get("high_watermark_percent")
        if high is not None and value >= high:
            raise ValueError(f"it must be below high_watermark_percent ({high:g})")
        return value


class CapacityConfig(Section):
    """A budget for what the jobs hold; it warns, and deletes nothing."""

    max_bytes: Size | None = Field(
        None, description="What the jobs may hold together, in bytes or as 500G; null: no budget."
    )
    warn_percent: Percent = Field(80, description="Warn when so much of it is used, and when all of it is.")


class BackupConfig(Section):
    """A copy of each job before it goes."""

    enabled: bool = Field(False, description="Whether to back up each job before it goes.")
    path: FilePath = Field(Path("./backup"), description="Folder of the backups.")
    retention_days: Days = Field(30, description="Days that a backup is kept.")
    format: Literal["tar.zst", "tar.gz"] = Field(
        "tar.zst", description="tar.zst, or tar.gz, which is slower and read everywhere."
    )


class ApiConfig(Section):
    """The HTTP interface."""

    enabled: bool = Field(False, description="Whether to serve HTTP.")
    listen: Listen = Field("127.0.0.1:5001", description="host:port, or unix:/path/of/the.sock.")
    tokens_file: FilePath | None = Field(None, description="File of the tokens; null: none are accepted.")
    socket_mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] = Field(
        "0660", description="Mode of a Unix socket, octal, as text."
    )
    tls_cert_file: FilePath | None = Field(None, description="Certificate chain (PEM); null: no TLS.")
    tls_key_file: FilePath | None = Field(None, description="Key of the certificate (PEM).")
    allowed_hosts: Texts = Field(
        (), description="Names by which it may be asked, besides localhost and any IP address."
    )
    trusted_proxies: Texts = Field((), description="Addresses of proxies whose X-Forwarded-For is believed.")

    @model_validator(mode="after")
    def _both_of_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("give tls_cert_file and tls_key_file, or none of them")
        return self


class MetricsConfig(Section):
    """Metrics for Prometheus."""

    textfile: FilePath | None = Field(
        None, description="File for node_exporter's textfile collector; null: none is written."
    )


class LoggingConfig(Section):
    """The log."""

    level: Level = Field("INFO", description="The lowest level that is written.")
    format: Literal["text", "json"] = Field("text", description="Lines of text, or of JSON.")
    file: FilePath = Field(
        Path("./logs/cleanup.log"), description="The log file, rotated; by default in the folder paths.logs."
    )


class NotificationsConfig(Section):
    """Who is told what was done: a block for each notifier, whose plugin says what may be in it."""

    if TYPE_CHECKING:  # the blocks are not known before plugins are

        def __getattr__(self, name: str) -> Any: ...


class Config(Section):
    """The whole of ``cleanup_config.yaml``."""

    retention: RetentionConfig = Field(
        default_factory=RetentionConfig, description="How long whose data is kept."
    )
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="When the daemon runs.")
    paths: PathsConfig = Field(default_factory=PathsConfig, description="Where the job store is.")
    database: DatabaseConfig = Field(
        default_factory=DatabaseConfig, description="How the job database is read and written."
    )
    ha: HaConfig = Field(default_factory=HaConfig, description="Two daemons on one job store.")
    performance: PerformanceConfig = Field(default_factory=PerformanceConfig, description="How fast.")
    trash: TrashConfig = Field(
        default_factory=TrashConfig, description="The time between out of sight and gone."
    )
    orphans: OrphansConfig = Field(default_factory=OrphansConfig, description="Entries that no job owns.")
    safety: SafetyConfig = Field(
        default_factory=SafetyConfig, description="When a run refuses, or stops by itself."
    )
    pressure: PressureConfig = Field(
        default_factory=PressureConfig, description="Cleaning early when the disk is nearly full."
    )
    capacity: CapacityConfig = Field(
        default_factory=CapacityConfig, description="A budget for what the jobs hold."
    )
    backup: BackupConfig = Field(
        default_factory=BackupConfig, description="A copy of each job before it goes."
    )
    api: ApiConfig = Field(default_factory=ApiConfig, description="The HTTP interface.")
    metrics: MetricsConfig = Field(default_factory=MetricsConfig, description="Metrics for Prometheus.")
    logging: LoggingConfig = Field(default_factory=LoggingConfig, description="The log.")
    plugins: Texts = Field((), description="Modules of plugins to load (module, or module:name).")
    blocked_plugins: Texts = Field((), description="Names of plugins that are installed but not to be used.")
    notifications: NotificationsConfig = Field(
        default_factory=NotificationsConfig, description="Who is told what was done."
    )
    dry_run: bool = Field(False, description="Only ever show what would be deleted.")

    def with_retention(self, successful_hours: float | None, failed_hours: float | None) -> Self:
        """Return the configuration with other hours for successful and failed jobs, None for its own."""
        retention = self.retention
        changes: dict[str, Any] = {}
        if successful_hours is not None:
            changes["successful_jobs"] = retention.successful_jobs.model_copy(
                update={"hours": successful_hours}
            )
        if failed_hours is not None:
            changes["failed_jobs"] = retention.failed_jobs.model_copy(update={"hours": failed_hours})
        return self.model_copy(update={"retention": retention.model_copy(update=changes)})


class Schema:
    """All keys that there are, those of the notifiers included.

    Args:
        notifiers: the settings of each notifier, by the name of its block.
    """

    def __init__(self, notifiers: Mapping[str, type[PluginSettings]]) -> None:
        blocks: dict[str, Any] = {name: _block(model) for name, model in notifiers.items()}
        notifications = create_model("NotificationsConfig", __base__=NotificationsConfig, **blocks)
        self.model: type[Config] = create_model(
            "Config",
            __base__=Config,
            notifications=(
                notifications,
                Field(default_factory=notifications, description="Who is told what was done."),
            ),
        )

    @staticmethod
    def of(notifiers: Mapping[str, type[PluginSettings]]) -> Schema:
        """Return the schema for these notifiers; the same one again for the same models.

        A daemon loads its file often, and models are never forgotten by pydantic.
        """
        return _schema_of(tuple(notifiers.items()))

    @cached_property
    def fields(self) -> dict[str, FieldInfo]:
        """Every key that is not a block, dotted, in the order of the schema."""
        return dict(leaves(self.model))

    @cached_property
    def path_keys(self) -> tuple[str, ...]:
        """Keys whose values are paths."""
        return ("paths.database", *(key for key, field in self.fields.items() if holds(field, Path)))

    @cached_property
    def secret_keys(self) -> tuple[str, ...]:
        """Keys whose values are never shown."""
        return ("paths.database", *(key for key, field in self.fields.items() if holds(field, SecretStr)))

    @cached_property
    def optional_blocks(self) -> tuple[str, ...]:
        """Beginnings of the keys of blocks that may be absent."""
        notifications: Any = self.model.model_fields["notifications"].annotation
        return tuple(
            f"notifications.{name}."
            for name, field in notifications.model_fields.items()
            if is_optional_block(field)
        )

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the file, for editors."""
        schema = self.model.model_json_schema()
        for block in (schema, *schema["$defs"].values()):
            for field in block.get("properties", {}).values():
                if "$ref" in field:  # a block, which may be empty
                    field["anyOf"] = [{"$ref": field.pop("$ref")}, {"type": "null"}]
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


@lru_cache(maxsize=8)
def _schema_of(notifiers: tuple[tuple[str, type[PluginSettings]], ...]) -> Schema:
    return Schema(dict(notifiers))


def _block(model: type[PluginSettings]) -> tuple[Any, Any]:
    """Return the field of a notifier's block: it may be absent, also where it has keys without a default."""
    words = (model.__doc__ or "").strip().partition("\n")[0]
    if any(field.is_required() for field in model.model_fields.values()):
        return (model | None, Field(None, description=words))
    return (model, Field(default_factory=model, description=words))


def _repeated(names: tuple[str, ...]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]
