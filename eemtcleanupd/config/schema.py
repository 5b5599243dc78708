"""Every key of `cleanup_config.yaml` but those of plugins, with its type, bounds, default and description.

`make reference` generates the sample configuration, its JSON Schema and the key tables from this module, so
the docstring of a block and the description of a key are written for operators.

The models are strict: a value that YAML reads as another type (`no` as false, `"12"` as text) is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    PrivateAttr,
    SecretStr,
    Strict,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from eemtcleanupd.config.base import Section, configured_paths, holds, is_optional_block, leaves
from eemtcleanupd.config.plugin_settings import PluginSettings
from eemtcleanupd.config.types import (
    Cluster,
    Count,
    Crons,
    Database,
    Days,
    FilePath,
    Hours,
    HttpUrl,
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
    require,
)


class SuccessfulJobs(Section):
    """Successful jobs."""

    hours: Hours = Field(
        168, description="Hours to keep the data after the end of the job, such as 72 (three days) or 0.5."
    )
    days: Days | None = Field(
        None,
        description="Older spelling of hours, in days. Set only one of the two.",
        examples=[7],
        json_schema_extra={"deprecated": True},
    )
    keep_metadata: Metadata = Field(True, description="Always true: rows of the job table are never deleted.")
    keep_logs: bool = Field(False, description="Keep log files in <logs>/jobs/<id>/ when the job is deleted.")
    keep_last: Count = Field(
        0, description="Number of newest successful jobs to keep regardless of age. 0 disables this rule."
    )


class FailedJobs(Section):
    """Failed jobs."""

    hours: Hours = Field(12, description="Hours to keep the data after the end of the job.")
    keep_metadata: Metadata = Field(True, description="Always true: rows of the job table are never deleted.")
    keep_error_logs: bool = Field(
        True, description="Keep log files in <logs>/jobs/<id>/ when the job is deleted."
    )


class Statuses(Section):
    """Meaning of the values in column `status`. A job with any other status is kept and reported."""

    successful: SomeTexts = Field(
        ("completed", "success", "succeeded", "done"), description="Statuses of successful jobs."
    )
    failed: Texts = Field(
        ("failed", "error", "cancelled", "canceled", "timeout"), description="Statuses of failed jobs."
    )
    live: Texts = Field(
        ("pending", "queued", "running"), description="Statuses of live jobs, which are never cleaned."
    )

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Self:
        if duplicate := _duplicate((*self.successful, *self.failed, *self.live)):
            raise ValueError(
                f"The status {duplicate} is listed twice. A list that you leave out has its default."
            )
        return self


class Override(Section):
    """Retention of one workflow type."""

    workflow_type: Text = Field(description="Workflow type, as in the job table.")
    successful_hours: Hours | None = Field(
        None, description="Hours for its successful jobs. null means the general value."
    )
    failed_hours: Hours | None = Field(
        None, description="Hours for its failed jobs. null means the general value."
    )

    @model_validator(mode="after")
    def _overrides_something(self) -> Self:
        if self.successful_hours is None and self.failed_hours is None:
            raise ValueError("Set successful_hours, failed_hours, or both.")
        return self


class RetentionConfig(Section):
    """Retention periods by job outcome."""

    successful_jobs: SuccessfulJobs = Field(default_factory=SuccessfulJobs)
    failed_jobs: FailedJobs = Field(default_factory=FailedJobs)
    log_patterns: Patterns = Field(
        ("*.log", "*.err", "*.out"),
        description="Names of the log files that keep_logs and keep_error_logs keep, as shell patterns.",
    )
    statuses: Statuses = Field(default_factory=Statuses)
    overrides: Annotated[tuple[Override, ...], Strict(False)] = Field(
        (),
        description="Retention periods of individual workflow types. They replace the general values.",
        examples=[[{"workflow_type": "eemt", "successful_hours": 336, "failed_hours": 24}]],
    )

    @field_validator("overrides")
    @classmethod
    def _one_override_each(cls, value: tuple[Override, ...]) -> tuple[Override, ...]:
        if duplicate := _duplicate(tuple(override.workflow_type for override in value)):
            raise ValueError(f"The workflow_type {duplicate} is listed twice. Put its hours into one entry.")
        return value


class ScheduleConfig(Section):
    """Scheduled runs of the daemon. The command `clean` ignores this block."""

    enabled: bool = Field(False, description="Run on schedule.")
    cron: Crons = Field(
        ("0 2 * * *",),
        description="Cron expression (minute, hour, day of month, month, day of week), or a list of them. "
        "@hourly, @daily, @weekly and @monthly work as well, see crontab(5).",
        examples=[["0 2 * * *", "0 14 * * 6"]],
    )
    timezone: Zone = Field(
        "local",
        description="Time zone of the cron expressions: local (the zone of the machine), or a name such as "
        "Europe/Berlin.",
    )
    jitter_seconds: Annotated[int, Field(ge=0, le=86_400)] = Field(
        0,
        description="Maximum random delay of a run in seconds, so that several machines do not start at the "
        "same time.",
    )
    catch_up: bool = Field(
        True, description="Run once at the start if the daemon was down during a scheduled run."
    )
    run_on_start: bool = Field(False, description="Also run when the daemon starts.")
    start_delay_seconds: Annotated[int, Field(ge=0, le=86_400)] = Field(
        0, description="Seconds after the start of the daemon during which it starts no automatic run."
    )


class PathsConfig(Section):
    """Location of the job store."""

    database: Database = Field(
        "./jobs.db",
        validate_default=True,
        description="Job database: the path of a SQLite file, or a database URL.",
        examples=["postgresql://eemt:${PGPASSWORD}@db/eemt"],
    )
    uploads: FilePath = Field(Path("./uploads"), description="Folder of uploaded elevation models.")
    results: FilePath = Field(Path("./results"), description="Folder of job outputs.")
    temp: FilePath = Field(Path("./temp"), description="Folder of working files. It can be missing.")
    logs: FilePath = Field(
        Path("./logs"), description="Folder of the logs of eemtcleanupd and of the job logs that are kept."
    )


class DatabaseConfig(Section):
    """Access to the job database."""

    timezone: Zone = Field(
        "local",
        description="Time zone of times without a zone in the job table: local (the zone of the machine), or "
        "a name such as UTC.",
    )
    busy_timeout_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        60, description="Seconds to wait while another program locks the database."
    )


class HaConfig(Section):
    """High availability: two daemons on one job store. It needs a database on a PostgreSQL server."""

    takeover_seconds: Annotated[
        int,
        Field(ge=0, le=3600),
        require(
            lambda seconds: seconds not in {1, 2},
            "Use 0, or 3 or more: a daemon on a busy machine needs time to respond.",
        ),
    ] = Field(
        30,
        description="Seconds until the standby takes over from an active daemon that does not respond, at "
        "least 3. 0 means that a second daemon does not start.",
    )


class DaskConfig(Section):
    """Dask cluster, for `executor: dask`."""

    scheduler: Cluster | None = Field(
        None,
        description="Address of the scheduler, tls://HOST:PORT.",
        examples=["tls://cluster.example.org:8786"],
    )
    tls_ca_file: FilePath | None = Field(
        None, description="Certificate of the authority that signed all certificates of the cluster (PEM)."
    )
    tls_cert_file: FilePath | None = Field(None, description="Client certificate (PEM).")
    tls_key_file: FilePath | None = Field(None, description="Private key of the client certificate (PEM).")


class PerformanceConfig(Section):
    """Speed, and load on the machine.

    A reload applies io_priority, nice and the limits below them to a run in progress.
    """

    batch_size: Annotated[int, Field(ge=1, le=100_000)] = Field(
        100, description="Number of jobs to plan at a time."
    )
    parallel_delete: bool = Field(True, description="Delete with several workers.")
    max_workers: Workers = Field(
        4, description="Number of workers that delete. auto adjusts the number during the run."
    )
    auto_max_workers: Annotated[int, Field(ge=1, le=256)] = Field(
        16, description="Maximum number of workers with auto."
    )
    executor: Literal["threads", "dask"] = Field(
        "threads",
        description="Where workers run. threads are on this machine; they move large folders to helper "
        'processes. dask uses the workers of a cluster as well. See the page "Tune speed and use a cluster".',
    )
    dask: DaskConfig = Field(default_factory=DaskConfig)
    io_priority: Literal["best-effort", "idle"] = Field(
        "best-effort",
        description="I/O scheduling class of the workers, see ionice(1). With idle they use the disk only "
        "while no other program does.",
    )
    nice: Annotated[int, Field(ge=0, le=19)] = Field(
        0, description="Nice value of the workers, see nice(1). 0 means that of the process."
    )
    max_deletes_per_second: Count = Field(
        0, description="Maximum number of files and folders deleted per second. 0 means no limit."
    )
    max_bytes_per_second: SizeOrZero = Field(
        0, description="Maximum bytes freed per second, such as 200M. 0 means no limit."
    )
    truncate_chunk: Annotated[SizeOrZero, no_small_chunk] = Field(
        0,
        description="Free files larger than this in steps of this many bytes, such as 1G, for filesystems "
        "that are slow at it. At least 1M. 0 frees each file at once.",
    )

    @model_validator(mode="after")
    def _has_a_cluster(self) -> Self:
        missing = [f"performance.dask.{name}" for name, value in self.dask if value is None]
        if self.executor == "dask" and missing:
            raise ValueError(f"executor: dask needs {', '.join(missing)}.")
        return self


class TrashConfig(Section):
    """Trash: deleted data that can still be restored."""

    grace_hours: Hours = Field(
        0,
        description="Hours that data stays in .eemtcleanupd-trash/ of its folder. 0 deletes the data "
        "immediately.",
    )


class OrphansConfig(Section):
    """Orphans: files and folders of the job store that no row of the job table names."""

    delete_after_hours: Hours | None = Field(
        None,
        description="Delete orphans that nobody changed for this many hours, such as 720. null only reports "
        "them.",
    )


class SafetyConfig(Section):
    """Limits at which a run refuses to delete (exit code 5) or stops early."""

    max_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.9, description="Refuse to clean more than this fraction of the finished jobs that still have data."
    )
    max_fraction_min_jobs: Count = Field(
        100, description="Apply max_fraction only if more finished jobs than this still have data."
    )
    max_clock_leap_days: Annotated[float, Field(gt=0, le=40_000)] = Field(
        90, description="Refuse if the last run was more than this many days ago, or is in the future."
    )
    max_orphan_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.2,
        description="Refuse to delete orphans that are more than this fraction of the entries or bytes of a "
        "folder with more than 20 entries. The job table is probably wrong then. --force does not override "
        "this.",
    )
    min_idle_minutes: Annotated[float, Field(ge=0, le=1_000_000)] = Field(
        60,
        description="Keep a job until the next run while another process has one of its files open, or if "
        "one of its folders or its zip changed less than this many minutes ago. 0 disables this rule.",
    )
    max_jobs_per_run: Count = Field(
        0, description="Maximum number of jobs cleaned in one run, oldest first. 0 means no limit."
    )
    ballast: SizeOrZero = Field(
        16 * 1024 * 1024,
        description="Space to reserve on each disk that a run writes to, such as 16M. A run releases it when "
        "the disk is full, because it must record a deletion before the deletion. 0 reserves nothing.",
    )


class PressureConfig(Section):
    """Disk pressure: clean before the retention period ends when a disk is nearly full."""

    enabled: bool = Field(False, description="Clean early. The daemon checks the disks every minute.")
    high_watermark_percent: Percent = Field(90, description="Start when this percentage of a disk is used.")
    low_watermark_percent: Percent = Field(
        80,
        validate_default=True,
        description="Stop when no more than this percentage is used. It must be below "
        "high_watermark_percent.",
    )
    minimum_age_hours: Hours = Field(1, description="Keep jobs that ended less than this many hours ago.")

    @field_validator("low_watermark_percent")
    @classmethod
    def _low_below_high(cls, value: float, info: ValidationInfo) -> float:
        high = info.data.get("high_watermark_percent")
        if high is not None and value >= high:
            raise ValueError(f"The value must be below high_watermark_percent ({high:g}).")
        return value


class CapacityConfig(Section):
    """Budget for the data of all jobs. It only warns (`on: capacity` of a notifier).

    See the page "Report and plan capacity".
    """

    max_bytes: Size | None = Field(
        None, description="Budget in bytes, or a size such as 500G (powers of 1024). null means no budget."
    )
    warn_percent: Percent = Field(
        80,
        description="Warn once when this percentage of the budget is used, and once when all of it is used.",
    )


class BackupConfig(Section):
    """Backup of each job before it is deleted.

    Each backup is read back and verified. A job is kept if its backup fails.
    """

    enabled: bool = Field(False, description="Back up each job.")
    path: FilePath = Field(
        Path("./backup"),
        description="Folder of the backups. It must be outside the job store, preferably on another disk.",
    )
    retention_days: Days = Field(30, description="Days to keep a backup.")
    format: Literal["tar.zst", "tar.gz"] = Field(
        "tar.zst", description="Archive format. tar.gz is slower, but every system can read it."
    )


class WebInterfaceConfig(Section):
    """The EEMT web interface, to which `rerun` submits jobs."""

    url: HttpUrl | None = Field(
        None, description="Base URL of the web interface.", examples=["http://localhost:5000"]
    )


class ApiConfig(Section):
    """HTTP interface and dashboard. Clients need a token, except on a Unix socket.

    See the page "Use the dashboard and the HTTP API".
    """

    enabled: bool = Field(False, description="Serve HTTP.")
    listen: Listen = Field(
        "127.0.0.1:5001", description="Address to listen on: HOST:PORT, or unix:/path/of/the.sock."
    )
    tokens_file: FilePath | None = Field(
        None, description="File of tokens, written by `eemtcleanupd token add`. null accepts no token."
    )
    socket_mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] = Field(
        "0660",
        description="Octal mode of the Unix socket, in quotes. Every user who can open the socket has full "
        "access.",
    )
    tls_cert_file: FilePath | None = Field(
        None, description="Certificate chain (PEM). Set it together with tls_key_file. null means no TLS."
    )
    tls_key_file: FilePath | None = Field(None, description="Private key of the certificate (PEM).")
    allowed_hosts: Texts = Field(
        (),
        description="Host names that clients can use in addition to localhost, IP addresses and the host of "
        "public_url.",
    )
    trusted_proxies: Texts = Field(
        (), description="Addresses of proxies whose X-Forwarded-For header is trusted."
    )
    public_url: HttpUrl | None = Field(
        None,
        description="URL at which browsers reach the dashboard. Notifications link to its pages, and clients "
        "can use its host name.",
        examples=["https://cleanup.example.com"],
    )

    @model_validator(mode="after")
    def _both_of_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("Set both tls_cert_file and tls_key_file, or neither.")
        return self

    @property
    def host_names(self) -> frozenset[str]:
        """Names of this server besides its addresses, in lower case, with a port where one is given."""
        public = urlsplit(self.public_url or "")
        given = (*self.allowed_hosts, public.netloc, public.hostname or "")
        return frozenset(name.lower() for name in given if name)


class MetricsConfig(Section):
    """Metrics for Prometheus."""

    textfile: FilePath | None = Field(
        None,
        description="File for the textfile collector of node_exporter, written at the end of each run. null "
        "writes no file.",
    )


class LoggingConfig(Section):
    """Log."""

    level: Level = Field("INFO", description="Lowest level to log.")
    format: Literal["text", "json"] = Field(
        "text", description="Format of the log file. json writes one object per line."
    )
    file: FilePath = Field(
        Path("./logs/cleanup.log"),
        description="Log file, rotated at 10 MB. If you leave it out, it is cleanup.log in paths.logs.",
    )


class NotificationsConfig(Section):
    """Notifications, one block per notifier. `eemtcleanupd notify-test` sends a test message."""

    if TYPE_CHECKING:  # the blocks are known only after plugins are loaded

        def __getattr__(self, name: str) -> Any: ...


class Config(Section):
    """Configuration of eemtcleanupd."""

    dry_run: bool = Field(False, description="Delete nothing. Every run only shows what it would delete.")
    run_as: str = Field(
        "owner",
        description="User that a process of root becomes before it opens the job store: owner (who owns the "
        "SQLite file, or paths.results if the database is on a server), root, or a name. "
        'See the page "Security".',
    )
    retention: RetentionConfig = Field(default_factory=RetentionConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    paths: PathsConfig = Field(default_factory=PathsConfig)
    database: DatabaseConfig = Field(default_factory=DatabaseConfig)
    ha: HaConfig = Field(default_factory=HaConfig)
    performance: PerformanceConfig = Field(default_factory=PerformanceConfig)
    trash: TrashConfig = Field(default_factory=TrashConfig)
    orphans: OrphansConfig = Field(default_factory=OrphansConfig)
    safety: SafetyConfig = Field(default_factory=SafetyConfig)
    pressure: PressureConfig = Field(default_factory=PressureConfig)
    capacity: CapacityConfig = Field(default_factory=CapacityConfig)
    backup: BackupConfig = Field(default_factory=BackupConfig)
    web_interface: WebInterfaceConfig = Field(default_factory=WebInterfaceConfig)
    api: ApiConfig = Field(default_factory=ApiConfig)
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    plugins: Texts = Field(
        (),
        description="Modules of plugins to load, as MODULE or MODULE:NAME, in addition to installed plugins. "
        "The settings of a plugin are in the block of its name under notifications. "
        'See the page "Write a notifier".',
    )
    blocked_plugins: Texts = Field(
        (), description="Names of plugins that are not used although they are installed or built in."
    )
    notifications: NotificationsConfig = Field(default_factory=NotificationsConfig)
    _file: Path | None = PrivateAttr(None)

    def set_file(self, file: Path | None) -> None:
        """Keep the path of the file that was read, see :meth:`paths_in_use`."""
        self._file = file

    def paths_in_use(self) -> Iterator[Path]:
        """Yield every path that belongs to no job: those that the configuration names, and its own file."""
        yield from configured_paths(self)
        if self._file is not None:
            yield self._file

    def with_retention(self, successful_hours: float | None, failed_hours: float | None) -> Self:
        """Return a copy with other hours for successful and failed jobs; None keeps a value."""
        changes = {
            name: getattr(self.retention, name).model_copy(update={"hours": hours})
            for name, hours in (("successful_jobs", successful_hours), ("failed_jobs", failed_hours))
            if hours is not None
        }
        return self.model_copy(update={"retention": self.retention.model_copy(update=changes)})


Notifiers = tuple[tuple[str, type[PluginSettings]], ...]
"""The name and the settings model of each block under ``notifications:``."""


class Schema:
    """All keys of the configuration, with a settings model for each block under ``notifications:``."""

    def __init__(self, notifiers: Notifiers) -> None:
        blocks: dict[str, Any] = {name: _plugin_block(model) for name, model in notifiers}
        notifications = create_model(
            "NotificationsConfig", __base__=NotificationsConfig, __doc__=NotificationsConfig.__doc__, **blocks
        )
        self.model: type[Config] = create_model(
            "Config",
            __base__=Config,
            __doc__=Config.__doc__,
            notifications=(notifications, Field(default_factory=notifications)),
        )

    @staticmethod
    @lru_cache(maxsize=8)
    def of(notifiers: Notifiers) -> Schema:
        """Return the schema for these notifiers, and the same object again for the same models.

        A daemon loads its file often, and pydantic never frees a model.
        """
        return Schema(notifiers)

    @cached_property
    def fields(self) -> dict[str, FieldInfo]:
        """Dotted keys that are not blocks, with their fields, in the order of the schema."""
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
        """Key prefixes of the blocks that can be absent."""
        notifications: Any = self.model.model_fields["notifications"].annotation
        return tuple(
            f"notifications.{name}."
            for name, field in notifications.model_fields.items()
            if is_optional_block(field)
        )

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the file, for editors."""
        schema = self.model.model_json_schema()
        for definition in (schema, *schema["$defs"].values()):
            for field in definition.get("properties", {}).values():
                if "$ref" in field:  # an empty block is allowed
                    field["anyOf"] = [{"$ref": field.pop("$ref")}, {"type": "null"}]
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _plugin_block(model: type[PluginSettings]) -> tuple[Any, Any]:
    """Return the field of a plugin's block, which can be absent even if it has keys without a default."""
    if any(field.is_required() for field in model.model_fields.values()):
        return (model | None, None)
    return (model, Field(default_factory=model))


def _duplicate(names: tuple[str, ...]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)
