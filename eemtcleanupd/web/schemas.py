"""Request and response bodies of ``/api/cleanup``, the source of its OpenAPI description."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

_MAX_LENGTH = 1000


def storable(value: object) -> str:
    """Return text that every database accepts.

    Names that are not UTF-8 arrive as lone surrogates, which pydantic's own text type refuses.

    Raises:
        ValueError: the value is not text that can be stored.
    """
    if not isinstance(value, str):
        raise ValueError("must be text")  # noqa: TRY004  (pydantic expects ValueError)
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("contains an invalid Unicode character") from None
    if "\0" in value:
        raise ValueError("contains a NUL character")
    if len(value) > _MAX_LENGTH:
        raise ValueError(f"has more than {_MAX_LENGTH} characters")
    return value


def _not_empty(value: object) -> str:
    text = storable(value)
    if not text:
        raise ValueError("must not be empty")
    return text


_SCHEMA: dict[str, Any] = {"type": "string", "maxLength": _MAX_LENGTH, "pattern": r"^[^\u0000]*$"}
Text = Annotated[str, PlainValidator(storable), WithJsonSchema(_SCHEMA)]
JobId = Annotated[str, PlainValidator(_not_empty), WithJsonSchema({**_SCHEMA, "minLength": 1})]
Hours = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CleanupBody(_Body):
    """Options of a run; all are optional."""

    dry_run: bool = Field(False, description="Only report what would be cleaned.", examples=[True])
    success_retention_hours: Hours | None = Field(
        None, description="Hours to keep successful jobs, instead of the configured ones.", examples=[168]
    )
    failed_retention_hours: Hours | None = Field(
        None, description="Hours to keep failed jobs, instead of the configured ones.", examples=[12]
    )
    force: bool = Field(False, description="Override the breakers for the clock and the share of jobs only.")

    @property
    def retention(self) -> tuple[float | None, float | None]:
        """Hours for successful and for failed jobs, None for the configured ones."""
        return self.success_retention_hours, self.failed_retention_hours


class PurgeBody(_Body):
    """Which part of the trash to delete."""

    older_than_hours: Hours = Field(0, description="Delete only what has been in the trash for this long.")

    @property
    def age(self) -> timedelta:
        """How long an item must have been in the trash."""
        return timedelta(hours=self.older_than_hours)


class StopBody(_Body):
    """Which run to stop."""

    run_id: Text | None = Field(
        None,
        description="Stop only this run: 409 if another is in progress. The default is the one in progress.",
        examples=["20240120T020001-3f2a"],
    )


class JobCounts(BaseModel):
    """Numbers of jobs."""

    successful: int = Field(examples=[3])
    failed: int = Field(examples=[2])


class Space(BaseModel):
    """An amount of disk space."""

    bytes: int = Field(examples=[48318382080])
    human_readable: str = Field(examples=["45.0 GB"])


class Detail(BaseModel):
    """A job that the run cleaned, or would clean."""

    model_config = ConfigDict(extra="allow")

    job_id: str = Field(examples=["job-20240115-123456"])
    status: str = Field(examples=["completed"])
    age_days: float | None = Field(examples=[8.2])
    space_freed: str = Field(examples=["15.0 GB"])


class CleanupAnswer(BaseModel):
    """The result of a run or of a dry run."""

    model_config = ConfigDict(extra="allow")

    success: bool
    run_id: str = Field(examples=["20240120T020001-3f2a"])
    dry_run: bool
    cleaned_jobs: JobCounts
    space_freed: Space
    space_trashed: Space
    details: list[Detail]


class ActiveHold(BaseModel):
    """Who holds a job, and why; without `until`, until it is released."""

    owner: str = Field(examples=["ann"])
    reason: str = Field(examples=["needed for the paper"])
    until: datetime | None


class JobAnswer(BaseModel):
    """Where a job's data is, and for how long."""

    job_id: str = Field(examples=["job-20240115-123456"])
    status: str = Field(examples=["completed"])
    cleaned: bool = Field(description="Whether the data was deleted, or moved to the trash.")
    why: str = Field(
        description="Why the next run keeps or cleans the job, or what the run that cleaned it did.",
        examples=["its retention of 7 days ends in 2.5 days"],
    )
    kept_until: datetime | None = Field(
        description="End of the retention and of the hold; null if there is none."
    )
    cleaned_at: datetime | None
    size: Space | None = Field(description="Size of the data, also after it was cleaned; null if unknown.")
    purge_after: datetime | None = Field(
        description="When the data is deleted from the trash, if it is there."
    )
    hold: ActiveHold | None


class RunAccepted(BaseModel):
    """A run that has started."""

    run_id: str = Field(examples=["20240120T020001-3f2a"])
    url: str = Field(examples=["/api/cleanup/runs/20240120T020001-3f2a"])


class HoldBody(_Body):
    """A job to hold."""

    job_id: JobId = Field(examples=["job-20240115-123456"])
    reason: Annotated[str, AfterValidator(storable), WithJsonSchema(_SCHEMA)] = ""
    hours: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] | None = Field(
        None, description="How long to hold the job. The default is until it is released."
    )
    unknown_ok: bool = Field(False, description="Also hold a job that is not in the database (yet).")


class ReleaseBody(_Body):
    """A job to release from its hold."""

    job_id: JobId = Field(examples=["job-20240115-123456"])


class RestoreBody(_Body):
    """A job to restore from the trash."""

    job_id: JobId = Field(examples=["job-20240115-123456"])
    only: list[Text] = Field(
        default_factory=list, max_length=100, examples=[["results/job-20240115-123456/"]]
    )
    hold: bool = Field(True, description="Hold the restored job for its retention period.")
